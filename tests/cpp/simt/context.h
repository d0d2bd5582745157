// The fibre switch: 4 ns on x86-64, ucontext elsewhere (and with SIMT_UCONTEXT, for its test).
#pragma once

namespace simt {

// Prepares a stack (its highest address) so that the first switch to it calls entry, which never returns.
void* make_context(char* stack_low, char* stack_top, void (*entry)());
// Leaves the running context in *save and goes on with `load`.
void switch_context(void** save, void* load);

}  // namespace simt

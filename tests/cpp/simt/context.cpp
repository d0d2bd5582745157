#include "context.h"

#include <cstdint>

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)

// `pop; jmp` instead of `ret`: the return predictor would miss every time (19 ns against 4).
extern "C" void simt_switch(void** save, void* load);
asm(R"(.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch, . - simt_switch
)");

namespace simt {

void* make_context(char*, char* stack_top, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  // A function expects the stack 8 bytes off a 16-byte boundary: its caller pushed a return address.
  auto* sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack_top) / 16 * 16 - 8);
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--sp = nullptr;
  return sp;
}

void switch_context(void** save, void* load) { simt_switch(save, load); }

}  // namespace simt

#else
#include <ucontext.h>

namespace simt {

void* make_context(char* stack_low, char* stack_top, void (*entry)()) {
  // The context lies at the top of the very stack that it describes.
  const uintptr_t at = (reinterpret_cast<uintptr_t>(stack_top) - sizeof(ucontext_t)) / 64 * 64;
  auto* context = reinterpret_cast<ucontext_t*>(at);
  getcontext(context);
  context->uc_stack.ss_sp = stack_low;
  context->uc_stack.ss_size = static_cast<size_t>(reinterpret_cast<char*>(context) - stack_low);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void switch_context(void** save, void* load) {
  ucontext_t here;  // stays valid: this frame lives on the stack that is left
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}

}  // namespace simt
#endif

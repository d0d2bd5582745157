// The race and memory checker: shadow state per byte and per 4-byte cell, vector clocks per thread. It is on
// when some object was compiled with -fsanitize=thread, whose hooks (sanitizer_hooks.cpp) report every
// access.
#pragma once
#include "machine.h"

namespace simt::checker {

enum Kind : uint8_t { kPlain = 1, kAtomic = 2, kAsyncProxy = 4 };

// Where an access happened: a code offset, or a source line known to a wrapper.
using Where = uint32_t;
Where where_code(const void* return_address);
Where where_line(Site site);

void enable();
bool enabled();

void begin_launch(uint64_t blocks);
void end_launch();
void begin_block(Block& b, size_t dynamic_bytes);
void end_block(Block& b);
void begin_thread(Thread& t, const ClockPtr& zero);

// A kernel's access to any memory, found through the compiler's hooks. `align` is what the instruction needs.
void on_access(const void* p, size_t n, bool write, Kind kind, size_t align, Where where);
void on_misaligned(uintptr_t pointer, size_t needed, Site site);
// An access to device memory made by an emulated instruction on behalf of a thread.
void on_instruction(Thread& t, const void* p, size_t n, bool write, uint8_t kind, Site site);
// The write of an asynchronous copy: it happens in the async proxy, some time after `seen`.
void on_async_write(Thread& t, const void* p, size_t n, const ClockPtr& seen, Site site);

// Device memory states.
void mark_allocated(const void* p, size_t n);
void mark_initialised(const void* p, size_t n);
void mark_freed(const void* p, size_t n);

// Happens-before. All of them do nothing and return null while the checker is off.
Snapshot arrive(Thread& t);  // a release point
ClockPtr merge(const std::vector<Snapshot>& in);
ClockPtr join(const ClockPtr& a, const ClockPtr& b);
ClockPtr join(const ClockPtr& a, const Snapshot& b);
void fence(Thread& t);
void proxy_fence(Thread& t);

std::vector<std::string> take();

}  // namespace simt::checker

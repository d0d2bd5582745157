#include "checker.h"

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <set>

// Bounds of the executable: its tables and constants are fair game for a kernel. Weak, for the library, which
// has no such bounds and no checker.
extern "C" __attribute__((weak)) char __executable_start, _end;

namespace simt::checker {

namespace {

struct Access {
  uint32_t step, block;
  Where where;
  uint16_t thread;
  uint8_t bytes;  // which of the cell's four
  uint8_t kind;
};
struct Cell {  // last writer and two readers of four bytes
  Access write, read, other_read;
};
enum ByteState : uint8_t { kForeign, kUninitialised, kInitialised };

bool on = false;
Cell* cells = nullptr;
uint8_t* states = nullptr;

// Steps start anew above all earlier ones with each launch, so old entries of the shadow count as ordered.
uint32_t first_step = 1;
constexpr uint32_t kStepsPerLaunch = 1u << 20;
std::vector<uint32_t> block_fence;  // per block: its last __threadfence

constexpr size_t kMaxReports = 100;
std::set<std::string> seen_reports;
std::vector<std::string> reports;

constexpr Where kLineFlag = 1u << 31;
std::vector<Site> lines;

template <class T>
T* reserve(size_t count) {
  void* p = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return static_cast<T*>(p);
}

size_t heap_offset(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - device_heap_base());
}

std::string text(Where where) {
  return where & kLineFlag ? at(lines[where & ~kLineFlag]) : "@" + std::to_string(where);
}

void report(const std::string& identity, const std::string& message) {
  if (reports.size() < kMaxReports && seen_reports.insert(identity).second) reports.push_back(message);
}

[[noreturn]] void report_and_stop(const std::string& message) {
  report(message, message);
  fail(message);
}

// Who makes the access being checked.
struct Actor {
  Thread* thread;
  const Clock* seen;
  uint32_t block, id, step;
};

bool ordered(const Access& earlier, const Actor& now) {
  if (!earlier.bytes || earlier.step < first_step) return true;
  if (earlier.block == now.block)
    return earlier.thread == now.id || (*now.seen)[earlier.thread] >= earlier.step;
  // Another block: both sides must have fenced (a heuristic: the atomic between them is not followed).
  return now.thread->fence_step >= first_step && block_fence[earlier.block] > earlier.step;
}

void check_race(const Access& earlier, const Access& now, const Actor& actor, const char* what, bool shared) {
  const bool both_atomic = earlier.kind & now.kind & kAtomic;
  if (!(earlier.bytes & now.bytes) || both_atomic || ordered(earlier, actor)) return;
  report(what + text(earlier.where) + text(now.where),
         std::string("RACE ") + what + (shared ? " shared " : " global ") + text(earlier.where) +
             " by block " + std::to_string(earlier.block) + " thread " + std::to_string(earlier.thread) +
             " and " + text(now.where) + " by " + where(*actor.thread));
}

void check_proxy(const Cell& cell, const Access& now, const Actor& actor) {
  const Access& w = cell.write;
  if (!(w.bytes & now.bytes) || w.step < first_step || w.kind & kAsyncProxy || w.block != actor.block) return;
  const Clock& seen = *actor.seen;
  if (seen[seen.size() / 2 + w.thread] >= w.step) return;
  report("proxy" + text(w.where) + text(now.where), "MISSING fence.proxy.async between write " +
                                                        text(w.where) + " and async read " + text(now.where) +
                                                        " by " + where(*actor.thread));
}

void check_bytes(size_t offset, size_t n, bool write, Where location, const Actor& actor) {
  for (size_t i = offset; i < offset + n; ++i) {
    if (states[i] == kForeign)
      report_and_stop(std::string("OUT OF BOUNDS ") + (write ? "write " : "read ") + text(location) + " by " +
                      where(*actor.thread));
    if (!write && states[i] == kUninitialised)
      report("uninitialised" + text(location),
             "UNINITIALISED read " + text(location) + " by " + where(*actor.thread));
    if (write) states[i] = kInitialised;
  }
}

void check(const void* p, size_t n, bool write, uint8_t kind, Where location, const Actor& actor) {
  const size_t offset = heap_offset(p);
  check_bytes(offset, n, write, location, actor);
  const bool shared = in_shared(*actor.thread->owner, p);
  for (size_t c = offset / 4; c <= (offset + n - 1) / 4; ++c) {
    const size_t low = std::max(offset, c * 4), high = std::min(offset + n, c * 4 + 4);
    const auto bytes = static_cast<uint8_t>(((1u << (high - low)) - 1) << (low % 4));
    const Access now{actor.step, actor.block, location, static_cast<uint16_t>(actor.id), bytes, kind};
    Cell& cell = cells[c];
    check_race(cell.write, now, actor, write ? "write/write" : "write/read", shared);
    if (write) {
      check_race(cell.read, now, actor, "read/write", shared);
      check_race(cell.other_read, now, actor, "read/write", shared);
      cell.write = now;
    } else {
      if (kind & kAsyncProxy && shared) check_proxy(cell, now, actor);
      if (cell.read.bytes && cell.read.thread != now.thread) cell.other_read = cell.read;
      cell.read = now;
    }
  }
}

Actor as_actor(Thread& t) {
  return {&t, t.seen.get(), static_cast<uint32_t>(t.owner->linear), t.linear, t.step};
}

// Memory outside the device heap that a kernel may touch: its own stack, its indices, launch arguments,
// constants.
bool is_local(const Thread& t, const char* p) {
  constexpr size_t kRedZone = 4096, kLaunchFrames = 64 << 10;
  const char* frame = static_cast<const char*>(__builtin_frame_address(0));
  const char* main_stack = static_cast<const char*>(worker->main_context);
  const char* threads = reinterpret_cast<const char*>(t.owner->threads);
  return (p >= &__executable_start && p < &_end) ||
         (p > frame - kRedZone && p < t.stack->low + t.stack->bytes) ||
         (p >= threads && p < threads + sizeof(Thread) * t.owner->size) ||
         (p >= main_stack && p < main_stack + kLaunchFrames);
}

void check_foreign(const Thread& t, const char* p, Where location) {
  if (is_local(t, p)) return;
  for (const Stack& s : worker->stacks)
    if (p >= s.low && p < s.low + s.bytes)
      report_and_stop("LOCAL memory of another thread " + text(location) + " by " + where(t));
  report_and_stop("HOST pointer used in a kernel " + text(location) + " by " + where(t));
}

}  // namespace

// ---- switching on, locations
// ----------------------------------------------------------------------------------

void enable() {
  if (on) return;
  on = true;
  cells = reserve<Cell>(kHeapBytes / 4);
  states = reserve<uint8_t>(kHeapBytes);
}
bool enabled() { return on; }

Where where_code(const void* return_address) {
  return static_cast<Where>(static_cast<const char*>(return_address) - &__executable_start);
}

Where where_line(Site site) {
  static std::map<std::pair<const char*, int>, Where> known;
  auto [found, fresh] =
      known.try_emplace({site.file, site.line}, kLineFlag | static_cast<Where>(lines.size()));
  if (fresh) lines.push_back(site);
  return found->second;
}

std::vector<std::string> take() {
  seen_reports.clear();
  return std::exchange(reports, {});
}

// ---- launches, blocks, threads
// --------------------------------------------------------------------------------

void begin_launch(uint64_t blocks) {
  if (on) block_fence.assign(blocks, 0);
}
void end_launch() {
  if (!on) return;
  first_step += kStepsPerLaunch;
  if (first_step <= UINT32_MAX - kStepsPerLaunch) return;
  // Steps are used up: forget all accesses and count from the start again.
  madvise(static_cast<void*>(cells), kHeapBytes / 4 * sizeof(Cell), MADV_DONTNEED);
  first_step = 1;
}

void begin_block(Block& b, size_t dynamic_bytes) {
  if (!on) return;
  const size_t arena = heap_offset(b.smem);
  memset(states + arena, kForeign, kSharedBytes);
  memset(states + arena + kDynamicStart, kUninitialised, dynamic_bytes);
  b.async_step = first_step;
}

void end_block(Block& b) {
  if (!on) return;
  // The next block gets the same arena: what happened in it must not look like a race between blocks.
  memset(static_cast<void*>(cells + heap_offset(b.smem) / 4), 0,
         std::min(b.smem_used + 16, kSharedBytes) / 4 * sizeof(Cell));
  for (unsigned i = 0; i < b.size; ++i) {
    block_fence[b.linear] = std::max(block_fence[b.linear], b.threads[i].fence_step);
    b.threads[i].seen.reset();
  }
}

void begin_thread(Thread& t, const ClockPtr& zero) {
  t.seen = zero;
  t.step = first_step;
  t.fence_step = 0;
}

// ---- accesses
// ---------------------------------------------------------------------------------------------------

void on_access(const void* p, size_t n, bool write, Kind kind, size_t align, Where location) {
  Thread* t = self();
  if (!t || t->in_runtime || p == static_cast<const void*>(&current)) return;
  RuntimeScope scope;
  if (reinterpret_cast<uintptr_t>(p) % align)
    report_and_stop("MISALIGNED " + std::to_string(n) + "-byte access " + text(location) + " by " +
                    where(*t));
  if (in_device_heap(p))
    check(p, n, write, kind, location, as_actor(*t));
  else
    check_foreign(*t, static_cast<const char*>(p), location);
}

void on_misaligned(uintptr_t pointer, size_t needed, Site site) {
  if (!current) return;
  RuntimeScope scope;
  report_and_stop((pointer ? "MISALIGNED pointer for " : "NULL pointer for ") + std::to_string(needed) +
                  "-byte alignment, " + at(site) + " by " + where(*self()));
}

void on_instruction(Thread& t, const void* p, size_t n, bool write, uint8_t kind, Site site) {
  if (!on) return;
  if (!in_device_heap(p)) report_and_stop("HOST pointer used in a kernel, " + at(site));
  check(p, n, write, kind, where_line(site), as_actor(t));
}

void on_async_write(Thread& t, const void* p, size_t n, const ClockPtr& seen, Site site) {
  if (!on) return;
  Block& b = *t.owner;
  const Actor proxy{&t, seen.get(), static_cast<uint32_t>(b.linear), b.size, ++b.async_step};
  check(p, n, true, kPlain | kAsyncProxy, where_line(site), proxy);
}

void mark_allocated(const void* p, size_t n) {
  if (on) memset(states + heap_offset(p), kUninitialised, n);
}
void mark_initialised(const void* p, size_t n) {
  if (on) memset(states + heap_offset(p), kInitialised, n);
}
void mark_freed(const void* p, size_t n) {
  if (on) memset(states + heap_offset(p), kForeign, n);
}

// ---- happens-before
// ---------------------------------------------------------------------------------------------

Snapshot arrive(Thread& t) { return on ? Snapshot{t.linear, t.step++, t.seen} : Snapshot{}; }

static void absorb(Clock& into, const Clock& other) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], other[i]);
}

ClockPtr merge(const std::vector<Snapshot>& in) {
  if (in.empty() || !on) return nullptr;
  auto result = std::make_shared<Clock>(*in[0].seen);
  const Clock* last = in[0].seen.get();
  for (const Snapshot& s : in) {
    if (s.seen.get() != last) absorb(*result, *s.seen);  // threads mostly share one clock
    last = s.seen.get();
    (*result)[s.thread] = std::max((*result)[s.thread], s.step);
  }
  return result;
}

ClockPtr join(const ClockPtr& a, const ClockPtr& b) {
  if (!a || !b || a == b) return a ? a : b;
  auto result = std::make_shared<Clock>(*a);
  absorb(*result, *b);
  return result;
}

ClockPtr join(const ClockPtr& a, const Snapshot& b) {
  if (!on) return nullptr;
  auto result = std::make_shared<Clock>(*b.seen);
  if (a) absorb(*result, *a);
  (*result)[b.thread] = std::max((*result)[b.thread], b.step);
  return result;
}

void fence(Thread& t) { t.fence_step = ++t.step; }

void proxy_fence(Thread& t) {
  if (!on) return;
  auto fenced = std::make_shared<Clock>(*t.seen);
  const size_t half = fenced->size() / 2;
  for (size_t i = 0; i < half; ++i) (*fenced)[half + i] = std::max((*fenced)[half + i], (*fenced)[i]);
  (*fenced)[half + t.linear] = t.step++;
  t.seen = fenced;
}

}  // namespace simt::checker

namespace simt {

void atomic_access(const void* p, size_t bytes, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  if (reinterpret_cast<uintptr_t>(p) % bytes) fail("misaligned atomic, " + at(site));
  checker::on_instruction(t, p, bytes, true, checker::kPlain | checker::kAtomic, site);
  if (options.order == Order::kRandom && random_bits(*t.owner) % 4 == 0) yield_fibre();
}

}  // namespace simt

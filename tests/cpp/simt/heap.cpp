// Device memory: one reserved range of addresses for global buffers and the blocks' shared arenas, so that
// the checker finds the shadow of an address by subtraction. Buffers are 256-aligned with gaps between them.
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <new>

#include "checker.h"

namespace simt {

namespace {

constexpr size_t kGap = 256;

struct Heap {
  std::mutex mutex;
  char* base;
  char* top;           // global buffers grow up from base
  char* arena_bottom;  // shared arenas grow down from the end
  std::map<char*, size_t> buffers;

  Heap() {
    void* p =
        mmap(nullptr, kHeapBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base = top = static_cast<char*>(p);
    arena_bottom = base + kHeapBytes;
  }
};

Heap& heap() {
  static Heap* instance = new Heap;  // never destroyed: static buffers may outlive it
  return *instance;
}

char* align_up(char* p, size_t align) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(p) + align - 1) / align * align);
}

}  // namespace

char* device_heap_base() { return heap().base; }

bool in_device_heap(const void* p) {
  return static_cast<size_t>(static_cast<const char*>(p) - heap().base) < kHeapBytes;
}

void* device_alloc(size_t bytes) {
  Heap& h = heap();
  std::lock_guard<std::mutex> lock(h.mutex);
  char* p = align_up(h.top + kGap, 256);
  if (bytes > kHeapBytes || p + bytes + kGap > h.arena_bottom) throw std::bad_alloc();
  h.top = p + bytes;
  h.buffers[p] = bytes;
  memset(p, 0xFF, bytes);
  checker::mark_allocated(p, bytes);
  return p;
}

void device_free(void* p) {
  Heap& h = heap();
  std::lock_guard<std::mutex> lock(h.mutex);
  const auto found = h.buffers.find(static_cast<char*>(p));
  if (found == h.buffers.end()) throw std::invalid_argument("device_free: not a device buffer");
  checker::mark_freed(p, found->second);
  h.buffers.erase(found);
  h.top = h.buffers.empty() ? h.base : h.buffers.rbegin()->first + h.buffers.rbegin()->second;
}

void device_mark_initialised(void* p, size_t bytes) { checker::mark_initialised(p, bytes); }

char* shared_arena() {
  Heap& h = heap();
  std::lock_guard<std::mutex> lock(h.mutex);
  auto bottom = reinterpret_cast<uintptr_t>(h.arena_bottom) - kSharedBytes - kGap;
  h.arena_bottom = reinterpret_cast<char*>(bottom / 1024 * 1024);
  return h.arena_bottom;
}

void* static_shared(const void* tag, size_t bytes, size_t align) {
  RuntimeScope scope;
  Block& b = *self()->owner;
  for (auto& [known, p] : b.statics)
    if (known == tag) return p;
  constexpr size_t kRedZone = 128;
  b.smem_used = (b.smem_used + kRedZone + align - 1) / align * align;
  char* p = b.smem + b.smem_used;
  b.smem_used += bytes;
  if (b.smem_used > kSharedBytes) fail("out of shared memory");
  memset(p, 0xFF, bytes);
  checker::mark_allocated(p, bytes);
  b.statics.emplace_back(tag, p);
  return p;
}

void* dynamic_shared() { return self()->owner->smem + kDynamicStart; }

uint32_t shared_address(const void* p) {
  RuntimeScope scope;
  const Block& b = *self()->owner;
  if (!in_shared(b, p)) fail("not a shared-memory address");
  return static_cast<uint32_t>(static_cast<const char*>(p) - b.smem);
}

}  // namespace simt

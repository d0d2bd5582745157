// Runs CUDA kernels on the CPU for tests. Every CUDA thread is a fibre that leaves the processor only at
// barriers, warp collectives, waits and (in random order) atomics. docs/simt.md tells what is modelled.
#pragma once
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace simt {

// A source line of kernel code.
struct Site {
  const char* file;
  int line;
};

struct ThreadContext {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
  unsigned linear, lane, warp;  // linear thread number in the block, lane in its warp, warp in the block
};

// The CUDA thread that runs now; null in host code.
extern __thread ThreadContext* current;

// Which runnable thread goes next. Each order lets a thread run as far ahead as its waits allow.
enum class Order { kForward, kReverse, kRandom };

struct Options {
  Order order = Order::kForward;
  uint64_t seed = 1;
  int os_threads = 2;
  size_t stack_bytes = 128 << 10;
};
extern Options options;

struct Stats {
  uint64_t threads, switches, collectives, barriers, mma, ldmatrix, ldmatrix_conflicts, cp_async, wgmma, tma;
};
extern Stats stats;

// ---- launching ------------------------------------------------------------------------------------------

struct LaunchConfig {
  dim3 grid, block;
  size_t smem = 0;
  void* stream = nullptr;
};
// Throws std::runtime_error for a bad configuration and for every fault that ends a block.
void run_grid(const LaunchConfig& config, void (*body)(void*), void* argument);
// What the race and memory checker found since the last call, with file:line. Empty in unchecked builds.
std::vector<std::string> take_reports();
// Whether kernels were compiled with the hooks that the checker needs.
bool checking();

// ---- device memory: exact bounds, uninitialised until written
// ----------------------------------------------

void* device_alloc(size_t bytes);
void device_free(void* p);
void device_mark_initialised(void* p, size_t bytes);

// ---- what ptx.cuh and cuda_names.h are made of
// ---------------------------------------------------------------

struct Collective;  // one warp-wide operation
extern const Collective kSyncWarp, kShuffle, kBallot, kAny, kAll, kMatch;

struct ShuffleArg {
  enum Mode { kIndex, kUp, kDown, kXor };
  uint64_t value;
  Mode mode;
  int operand, width;
};
uint64_t shuffle(unsigned mask, ShuffleArg arg, Site site);
uint64_t vote(const Collective& op, unsigned mask, uint64_t value, Site site);

int barrier_sync(int id, int count, int predicate, Site site);  // number of threads with predicate != 0
void barrier_arrive(int id, int count, Site site);
void memory_fence();
void proxy_fence();
void atomic_access(const void* p, size_t bytes, Site site);

void* static_shared(const void* tag, size_t bytes, size_t align);
void* dynamic_shared();
uint32_t shared_address(const void* p);

void cp_async(void* dst, const void* src, int bytes, int source_bytes, Site site);
void cp_async_commit();
void cp_async_wait(int groups_left);
void cp_async_mbarrier_arrive(void* barrier, Site site);

void mbarrier_init(void* barrier, int count, Site site);
void mbarrier_arrive(void* barrier, int transaction_bytes, Site site);  // expect_tx when bytes > 0
void mbarrier_wait(void* barrier, int parity, Site site);

struct TensorMap {  // stands for CUtensorMap, two dimensions
  const void* base;
  uint64_t size[2];    // elements, innermost first
  uint64_t row_bytes;  // stride of dimension 1
  uint32_t box[2];     // elements
  int item_bytes;
  int swizzle_bytes;  // 0, 32, 64 or 128
};
void tma_load(void* dst, const TensorMap& map, int x, int y, void* barrier, Site site);
void bulk_load(void* dst, const void* src, int bytes, void* barrier, Site site);

enum class Half : uint8_t { kBF16, kF16 };
void ldmatrix(uint32_t* out, int count, bool transposed, const void* row, Site site);
void stmatrix_transposed(void* row, const uint32_t* r, Site site);
void mma_m16n8k16(Half type, float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site);

void wgmma_fence(Site site);
void wgmma_issue(Half type, int n, bool items_first, float* d, uint64_t desc_a, uint64_t desc_b,
                 bool accumulate, Site site);
void wgmma_commit(Site site);
void wgmma_wait(int groups_left, Site site);

// Every CUDA thread gets its own copy of the parameters, as on the device.
template <class... P, class... A>
void run_kernel(void (*kernel)(P...), const LaunchConfig& config, A&&... args) {
  auto body = [&] { kernel(P(args)...); };
  run_grid(config, [](void* b) { (*static_cast<decltype(body)*>(b))(); }, &body);
}

template <class T>
T shuffle_value(unsigned mask, T value, ShuffleArg::Mode mode, int operand, int width, Site site) {
  static_assert(sizeof(T) <= 8);
  ShuffleArg arg{0, mode, operand, width};
  std::memcpy(&arg.value, &value, sizeof value);
  const uint64_t bits = shuffle(mask, arg, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T, class F>
T atomic_update(T* p, F next, Site site) {
  atomic_access(p, sizeof(T), site);
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits));
  Bits* bits = reinterpret_cast<Bits*>(p);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
  T old;
  do {
    std::memcpy(&old, &seen, sizeof old);
    const T value = next(old);
    std::memcpy(&wanted, &value, sizeof wanted);
  } while (!__atomic_compare_exchange_n(bits, &seen, wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace simt

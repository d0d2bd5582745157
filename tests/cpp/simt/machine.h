// The harness's own state: blocks, warps, threads, barriers. Only the .cpp files of this folder see it.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simt.h"

namespace simt {

// ---- happens-before, for the checker
// -------------------------------------------------------------------------

// Per thread of the block, the last of its steps that is ordered before us; then the same of those steps
// whose writes a proxy fence on the way has shown to the async proxy.
using Clock = std::vector<uint32_t>;
using ClockPtr = std::shared_ptr<const Clock>;
struct Snapshot {  // what one thread has done and seen when it arrives somewhere
  unsigned thread;
  uint32_t step;
  ClockPtr seen;
};

// ---- pieces of a block ------------------------------------------------------------------------------------

enum class State : uint8_t { kNew, kReady, kWarpWait, kBarrierWait, kMbarrierWait, kDone };

struct Stack {
  char* low;
  size_t bytes;
};

struct CopyRequest {
  void* dst;
  const void* src;
  int bytes, source_bytes;
};
using CopyGroup = std::vector<CopyRequest>;

struct Block;
struct Warp;
struct Thread;

// Completed by the last lane to arrive, for all lanes of `lanes` at once; `threads` is lane 0.
struct Collective {
  const char* name;
  bool whole_warp;
  void (*complete)(Block& block, Warp& warp, Thread* threads, unsigned lanes);
};

struct Thread : ThreadContext {
  Block* owner;
  State state;
  void* context;
  Stack* stack;
  // What the thread waits for.
  const Collective* op;
  unsigned mask;
  void* arg;
  Site site;
  int barrier_id, barrier_result;
  const void* waits_on;
  // cp.async: copies not yet committed, and committed groups in order.
  CopyGroup open_copies;
  std::deque<CopyGroup> copy_groups;
  // Checker. `step` counts the thread's own release points.
  ClockPtr seen;
  uint32_t step, fence_step;
  int in_runtime;
};

struct WgmmaRequest {
  Half type;
  int n;
  bool items_first;  // both operands MN-major, else K-major
  bool accumulate;
  uint64_t desc_a, desc_b;
  float* d[32];  // each lane's accumulators
  Site site;
};
using WgmmaGroup = std::vector<WgmmaRequest>;

struct Warp {
  unsigned live = 0, waiting = 0;
  // wgmma: accumulators in flight are keyed by lane 0's array.
  bool fenced = false;
  WgmmaGroup open_wgmma;
  std::deque<WgmmaGroup> wgmma_groups;
  std::map<float*, std::vector<float>> accumulators;  // [16][n]
};

struct Barrier {
  int arrived = 0, predicates = 0;
  std::vector<Thread*> waiting;
  std::vector<Snapshot> arrivals;
  Site site{};
};

struct Mbarrier {
  bool initialised = false;
  int expected = 0, pending = 0, phase = 0;
  int64_t transaction_bytes = 0;
  ClockPtr collected, completed;  // of the current and of the last phase
};

// An asynchronous operation in flight that ends by touching an mbarrier.
struct AsyncJob {
  enum Kind { kTensorLoad, kBulkLoad, kArriveAfterCopies } kind = kTensorLoad;
  void* dst = nullptr;
  const void* src = nullptr;
  int64_t bytes = 0;
  TensorMap map{};
  int x = 0, y = 0;
  uint32_t mbarrier = 0;  // shared address
  CopyGroup copies;
  ClockPtr seen;
  Site site{};
};

struct Block {
  unsigned size = 0, warp_count = 0;
  int live = 0;
  uint64_t linear = 0, rng = 1;
  Thread* threads = nullptr;
  std::vector<Warp> warps;
  Barrier barriers[16];
  std::vector<uint64_t> ready;  // one bit per thread
  std::map<uint32_t, Mbarrier> mbarriers;
  std::deque<AsyncJob> jobs;
  uint32_t async_step = 1;  // the async proxy counts as one more thread, number `size`
  char* smem = nullptr;
  size_t smem_used = 0;
  std::vector<std::pair<const void*, char*>> statics;
  std::string error;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

// One OS thread's set of fibres; it runs one block at a time.
struct Worker {
  Stats stats{};
  Block block;
  void* main_context = nullptr;
  std::vector<Stack> stacks;
  std::vector<Stack*> free_stacks;
  unsigned capacity = 0;
};
extern thread_local Worker* worker;

constexpr size_t kSharedBytes = 228 << 10;  // arena; its start is address 0 of shared memory
constexpr size_t kDynamicStart = 1024;
constexpr size_t kMaxDynamicBytes = 227 << 10;

inline Thread* self() { return static_cast<Thread*>(current); }
inline bool in_shared(const Block& b, const void* p) {
  return static_cast<const char*>(p) >= b.smem && static_cast<const char*>(p) < b.smem + kSharedBytes;
}

// Code of the standard library may exist once, compiled with the checker's hooks: they stay silent in here.
class RuntimeScope {
 public:
  RuntimeScope() : thread_(self()) {
    if (thread_) ++thread_->in_runtime;
  }
  ~RuntimeScope() {
    if (thread_) --thread_->in_runtime;
  }
  RuntimeScope(const RuntimeScope&) = delete;
  RuntimeScope& operator=(const RuntimeScope&) = delete;

 private:
  Thread* thread_;
};

// ---- scheduler.cpp
// ------------------------------------------------------------------------------------------

uint64_t random_bits(Block& b);
void set_ready(Thread& t);
void wait_as(State state);  // leaves the calling fibre until set_ready
void yield_fibre();
[[noreturn]] void end_fibre();

// ---- diagnostics.cpp
// ------------------------------------------------------------------------------------------

std::string where(const ThreadContext& t);
std::string at(Site site);
[[noreturn]] void fail(const std::string& message);  // gives up the block, from inside a fibre
std::string describe_deadlock(const Block& b);
void catch_signals();
std::string symbolise(std::string report);  // replaces @pc by file:line

// ---- the rest
// -------------------------------------------------------------------------------------------------

bool try_release_barrier(Block& b, int id, int count);
bool try_release_warp(Block& b, Warp& w, unsigned lane);
void collective(const Collective& op, unsigned mask, void* arg, Site site);
void run_job(Block& b, size_t index);
char* shared_arena();  // kSharedBytes, 1024-aligned, inside the device heap
bool in_device_heap(const void* p);
char* device_heap_base();
constexpr size_t kHeapBytes = 512ull << 20;

}  // namespace simt

// Launches a grid: one block at a time per OS thread, its CUDA threads as fibres.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>

#include "checker.h"
#include "context.h"

namespace simt {

__thread ThreadContext* current = nullptr;
thread_local Worker* worker = nullptr;
Options options;
Stats stats{};

// ---- fibres ---------------------------------------------------------------------------------------------

uint64_t random_bits(Block& b) {  // xorshift64
  b.rng ^= b.rng << 13;
  b.rng ^= b.rng >> 7;
  return b.rng ^= b.rng << 17;
}

void set_ready(Thread& t) {
  t.state = State::kReady;
  t.owner->ready[t.linear >> 6] |= 1ull << (t.linear & 63);
}

static void leave_fibre() { switch_context(&self()->context, worker->main_context); }

void wait_as(State state) {
  self()->state = state;
  leave_fibre();
}

void yield_fibre() {
  set_ready(*self());
  leave_fibre();
}

void end_fibre() {
  leave_fibre();
  __builtin_unreachable();
}

static void check_nothing_in_flight(const Thread& t, const Warp& w) {
  if (!t.open_copies.empty() || !t.copy_groups.empty()) fail("thread ended with cp.async still in flight");
  if (t.lane == 0 && (!w.open_wgmma.empty() || !w.wgmma_groups.empty()))
    fail("warp ended with wgmma still in flight");
}

// The others of its warp and block no longer wait for a thread that has exited.
static void release_those_left(Block& b, Warp& w) {
  for (unsigned lanes = w.waiting; lanes; lanes &= lanes - 1)
    if (try_release_warp(b, w, static_cast<unsigned>(__builtin_ctz(lanes)))) break;
  const Barrier& all = b.barriers[0];
  if (all.arrived && all.arrived == b.live)
    fail("__syncthreads at " + at(all.site) + " reached by " + std::to_string(b.live) + " of " +
         std::to_string(b.size) + " threads only, the others have exited");
}

static void fibre_main() {
  Thread* t = self();
  Block& b = *t->owner;
  t->state = State::kReady;
  b.body(b.argument);
  t->in_runtime = 1;
  Warp& w = b.warps[t->warp];
  check_nothing_in_flight(*t, w);
  t->state = State::kDone;
  w.live &= ~(1u << t->lane);
  --b.live;
  release_those_left(b, w);
  worker->free_stacks.push_back(t->stack);
  end_fibre();
}

static void start_fibre(Worker& w, Thread& t) {
  t.stack = w.free_stacks.back();
  w.free_stacks.pop_back();
  // Staggered: equal page offsets would make the stacks share the sets of the L1 cache.
  const size_t stagger = 64 + static_cast<size_t>((t.stack - w.stacks.data()) & 63) * 320;
  t.context = make_context(t.stack->low, t.stack->low + t.stack->bytes - stagger, fibre_main);
}

static void run_fibre(Worker& w, Thread& t) {
  if (t.state == State::kNew) start_fibre(w, t);
  ++w.stats.switches;
  t.state = State::kReady;
  current = &t;
  switch_context(&w.main_context, t.context);
  current = nullptr;
}

// The next runnable thread in the chosen order, no longer marked ready; null when there is none.
static Thread* pick(Block& b) {
  const size_t groups = b.ready.size();
  const size_t start = options.order == Order::kRandom ? random_bits(b) % (groups * 64) : 0;
  for (size_t i = 0; i <= groups; ++i) {
    const size_t g =
        options.order == Order::kReverse ? (groups - 1) - std::min(i, groups - 1) : (start / 64 + i) % groups;
    uint64_t candidates = b.ready[g];
    if (i == 0) candidates &= ~0ull << (start & 63);
    if (!candidates) continue;
    const int bit =
        options.order == Order::kReverse ? 63 - __builtin_clzll(candidates) : __builtin_ctzll(candidates);
    b.ready[g] &= ~(1ull << bit);
    return &b.threads[g * 64 + static_cast<size_t>(bit)];
  }
  return nullptr;
}

// ---- blocks -----------------------------------------------------------------------------------------------

static void prepare_worker(Worker& w, unsigned threads) {
  catch_signals();
  if (!w.block.smem) w.block.smem = shared_arena();
  if (w.capacity >= threads) return;
  constexpr size_t kGuard = 4096;
  const size_t step = options.stack_bytes + kGuard;
  void* memory = mmap(nullptr, step * threads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  w.stacks.clear();
  for (unsigned i = 0; i < threads; ++i) {
    char* guard = static_cast<char*>(memory) + i * step;
    mprotect(guard, kGuard, PROT_NONE);
    w.stacks.push_back({guard + kGuard, options.stack_bytes});
  }
  delete[] w.block.threads;
  w.block.threads = new Thread[threads]();
  w.capacity = threads;
}

static uint3 block_index(const dim3& grid, uint64_t linear) {
  return {static_cast<unsigned>(linear % grid.x), static_cast<unsigned>(linear / grid.x % grid.y),
          static_cast<unsigned>(linear / grid.x / grid.y)};
}

static void reset_block(Worker& w, const LaunchConfig& c, uint64_t linear) {
  Block& b = w.block;
  b.size = c.block.x * c.block.y * c.block.z;
  b.warp_count = (b.size + 31) / 32;
  b.live = static_cast<int>(b.size);
  b.linear = linear;
  b.rng = (options.seed * 0x9E3779B97F4A7C15ull ^ (linear + 1) * 0xD1B54A32D192ED03ull) | 1;
  b.warps.assign(b.warp_count, Warp());
  for (Barrier& barrier : b.barriers) barrier = Barrier();
  b.ready.assign((b.size + 63) / 64, 0);
  b.mbarriers.clear();
  b.jobs.clear();
  b.statics.clear();
  b.smem_used = kDynamicStart + c.smem;
  b.error.clear();
  memset(b.smem + kDynamicStart, 0xFF, c.smem);
  checker::begin_block(b, c.smem);
  w.free_stacks.clear();
  for (unsigned i = b.size; i-- > 0;) w.free_stacks.push_back(&w.stacks[i]);
}

static void reset_threads(Block& b, const LaunchConfig& c) {
  const uint3 index = block_index(c.grid, b.linear);
  const ClockPtr zero = std::make_shared<const Clock>(checker::enabled() ? 2 * (b.size + 1) : 0, 0);
  for (unsigned i = 0; i < b.size; ++i) {
    Thread& t = b.threads[i];
    t.thread = {i % c.block.x, i / c.block.x % c.block.y, i / c.block.x / c.block.y};
    t.block = index;
    t.block_dim = c.block;
    t.grid_dim = c.grid;
    t.linear = i;
    t.lane = i % 32;
    t.warp = i / 32;
    t.owner = &b;
    t.stack = nullptr;
    t.open_copies.clear();
    t.copy_groups.clear();
    t.in_runtime = 0;
    checker::begin_thread(t, zero);
    set_ready(t);
    t.state = State::kNew;
    b.warps[t.warp].live |= 1u << t.lane;
  }
}

static void run_block(Worker& w, const LaunchConfig& c, uint64_t linear, void (*body)(void*),
                      void* argument) {
  reset_block(w, c, linear);
  Block& b = w.block;
  b.body = body;
  b.argument = argument;
  reset_threads(b, c);
  w.stats.threads += b.size;
  const bool random = options.order == Order::kRandom;
  while (b.live && b.error.empty()) {  // asynchronous copies land when nothing else can run, or at random
    if (random && !b.jobs.empty() && random_bits(b) % 8 == 0) run_job(b, random_bits(b) % b.jobs.size());
    if (Thread* t = pick(b))
      run_fibre(w, *t);
    else if (!b.jobs.empty())
      run_job(b, random ? random_bits(b) % b.jobs.size() : 0);
    else
      b.error = describe_deadlock(b);
  }
  if (b.error.empty() && !b.jobs.empty())
    b.error = "block ended with an asynchronous copy still in flight, " + at(b.jobs[0].site);
  checker::end_block(b);
  if (!b.error.empty()) throw std::runtime_error(symbolise(b.error));
}

// ---- grids ------------------------------------------------------------------------------------------------

static void check_config(const LaunchConfig& c) {
  const uint64_t threads = static_cast<uint64_t>(c.block.x) * c.block.y * c.block.z;
  const bool grid_ok =
      c.grid.x && c.grid.x <= 0x7FFFFFFF && c.grid.y && c.grid.y <= 65535 && c.grid.z && c.grid.z <= 65535;
  if (current) throw std::runtime_error("launch from inside a kernel");
  if (!grid_ok || !threads || threads > 1024 || c.block.z > 64 || c.smem > kMaxDynamicBytes)
    throw std::runtime_error("bad launch configuration: grid (" + std::to_string(c.grid.x) + "," +
                             std::to_string(c.grid.y) + "," + std::to_string(c.grid.z) + "), " +
                             std::to_string(threads) + " threads, " + std::to_string(c.smem) + " bytes");
}

namespace {

// Workers keep their stacks and arena between launches.
class WorkerLease {
 public:
  explicit WorkerLease(unsigned threads) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (pool_.empty()) pool_.push_back(new Worker);
      worker = pool_.back();
      pool_.pop_back();
    }
    prepare_worker(*worker, threads);
  }
  ~WorkerLease() {
    std::lock_guard<std::mutex> lock(mutex_);
    auto* total = reinterpret_cast<uint64_t*>(&stats);
    const auto* part = reinterpret_cast<const uint64_t*>(&worker->stats);
    for (size_t i = 0; i < sizeof(Stats) / sizeof(uint64_t); ++i) total[i] += part[i];
    worker->stats = Stats{};
    pool_.push_back(worker);
    worker = nullptr;
  }

 private:
  static inline std::mutex mutex_;
  static inline std::vector<Worker*> pool_;
};

}  // namespace

void run_grid(const LaunchConfig& c, void (*body)(void*), void* argument) {
  check_config(c);
  const uint64_t blocks = static_cast<uint64_t>(c.grid.x) * c.grid.y * c.grid.z;
  std::atomic<uint64_t> next{0};
  std::mutex mutex;
  std::string error;
  auto work = [&] {
    WorkerLease lease(c.block.x * c.block.y * c.block.z);
    try {
      for (uint64_t i; (i = next.fetch_add(1)) < blocks;)
        run_block(*worker, c, options.order == Order::kReverse ? blocks - 1 - i : i, body, argument);
    } catch (const std::exception& e) {
      std::lock_guard<std::mutex> lock(mutex);
      if (error.empty()) error = e.what();
      next = blocks;
    }
  };
  checker::begin_launch(blocks);
  // The checker's shadow has one owner.
  const uint64_t helpers =
      checker::enabled() ? 0 : std::min<uint64_t>(blocks, static_cast<uint64_t>(options.os_threads)) - 1;
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < helpers; ++i) threads.emplace_back(work);
  work();
  for (auto& t : threads) t.join();
  checker::end_launch();
  if (!error.empty()) throw std::runtime_error(error);
}

}  // namespace simt

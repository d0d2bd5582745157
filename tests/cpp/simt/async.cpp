// cp.async, mbarriers, TMA and bulk copies. Adversarial: a destination is poisoned (0xFF: NaN) when the copy
// is issued and written as late as the waits allow, so a missing or too weak wait shows in the result.
#include "checker.h"

namespace simt {

// ---- cp.async
// -----------------------------------------------------------------------------------------------

static void land(const CopyRequest& c) {
  memcpy(c.dst, c.src, static_cast<size_t>(c.source_bytes));
  memset(static_cast<char*>(c.dst) + c.source_bytes, 0, static_cast<size_t>(c.bytes - c.source_bytes));
}

void cp_async(void* dst, const void* src, int bytes, int source_bytes, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  ++worker->stats.cp_async;
  const uintptr_t addresses =
      reinterpret_cast<uintptr_t>(dst) | (source_bytes ? reinterpret_cast<uintptr_t>(src) : 0);
  if (addresses % static_cast<uintptr_t>(bytes)) fail("cp.async misaligned at " + at(site));
  if (!in_shared(*t.owner, dst)) fail("cp.async destination is not shared memory, " + at(site));
  checker::on_instruction(t, dst, static_cast<size_t>(bytes), true, checker::kPlain, site);
  if (source_bytes)
    checker::on_instruction(t, src, static_cast<size_t>(source_bytes), false, checker::kPlain, site);
  memset(dst, 0xFF, static_cast<size_t>(bytes));
  t.open_copies.push_back({dst, src, bytes, source_bytes});
}

void cp_async_commit() {
  RuntimeScope scope;
  Thread& t = *self();
  t.copy_groups.push_back(std::move(t.open_copies));
  t.open_copies.clear();
}

void cp_async_wait(int groups_left) {
  RuntimeScope scope;
  Thread& t = *self();
  while (t.copy_groups.size() > static_cast<size_t>(groups_left)) {
    for (const CopyRequest& c : t.copy_groups.front()) land(c);
    t.copy_groups.pop_front();
  }
  if (options.order == Order::kRandom && random_bits(*t.owner) % 4 == 0) yield_fibre();
}

// ---- mbarrier
// -----------------------------------------------------------------------------------------------

static Mbarrier& find_mbarrier(Block& b, const void* p, Site site) {
  Mbarrier& m = b.mbarriers[shared_address(p)];
  if (!m.initialised) fail("mbarrier not initialised, " + at(site));
  return m;
}

static void complete_phase_if_done(Block& b, Mbarrier& m) {
  if (m.pending || m.transaction_bytes) return;
  for (const AsyncJob& job : b.jobs)
    if (job.kind != AsyncJob::kArriveAfterCopies && &b.mbarriers[job.mbarrier] == &m) {
      b.error =
          "mbarrier phase complete while a load announced to it is still in flight (expect_tx too small), "
          "load at " +
          at(job.site);
      return;
    }
  m.phase ^= 1;
  m.pending = m.expected;
  m.completed = m.collected;
  for (unsigned i = 0; i < b.size; ++i) {
    Thread& t = b.threads[i];
    if (t.state == State::kMbarrierWait && t.waits_on == &m) set_ready(t);
  }
}

static void arrive(Block& b, Mbarrier& m, Site site) {
  if (!m.pending) {
    b.error = "too many arrivals on mbarrier, " + at(site);
    return;
  }
  --m.pending;
  complete_phase_if_done(b, m);
}

void mbarrier_init(void* barrier, int count, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  checker::on_instruction(t, barrier, 8, true, checker::kPlain, site);
  Mbarrier& m = t.owner->mbarriers[shared_address(barrier)];
  m = Mbarrier();
  m.initialised = true;
  m.expected = m.pending = count;
}

void mbarrier_arrive(void* barrier, int transaction_bytes, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  Mbarrier& m = find_mbarrier(*t.owner, barrier, site);
  checker::on_instruction(t, barrier, 8, false, checker::kPlain, site);
  m.collected = checker::join(m.collected, checker::arrive(t));
  m.transaction_bytes += transaction_bytes;
  arrive(*t.owner, m, site);
  if (!t.owner->error.empty()) fail(t.owner->error);
}

void mbarrier_wait(void* barrier, int parity, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  Mbarrier& m = find_mbarrier(*t.owner, barrier, site);
  checker::on_instruction(t, barrier, 8, false, checker::kPlain, site);
  t.site = site;
  t.waits_on = &m;
  while (m.phase == parity) wait_as(State::kMbarrierWait);
  t.seen = checker::join(t.seen, m.completed);
}

static AsyncJob new_job(AsyncJob::Kind kind, Site site) {
  AsyncJob job;
  job.kind = kind;
  job.site = site;
  return job;
}

void cp_async_mbarrier_arrive(void* barrier, Site site) {
  RuntimeScope scope;
  Thread& t = *self();
  find_mbarrier(*t.owner, barrier, site);
  checker::on_instruction(t, barrier, 8, false, checker::kPlain, site);
  if (!t.copy_groups.empty())
    fail("cp.async groups and mbarrier arrival in one thread are not modelled, " + at(site));
  AsyncJob job = new_job(AsyncJob::kArriveAfterCopies, site);
  job.mbarrier = shared_address(barrier);
  job.copies = std::move(t.open_copies);
  t.open_copies.clear();
  job.seen = checker::join(t.seen, checker::arrive(t));
  t.owner->jobs.push_back(std::move(job));
}

// ---- TMA and bulk copies
// ------------------------------------------------------------------------------------

static void issue(AsyncJob job, void* dst, void* barrier) {
  Thread& t = *self();
  Block& b = *t.owner;
  ++worker->stats.tma;
  find_mbarrier(b, barrier, job.site);
  job.dst = dst;
  job.mbarrier = shared_address(barrier);
  job.seen = checker::join(t.seen, checker::arrive(t));
  checker::on_async_write(t, dst, static_cast<size_t>(job.bytes), job.seen, job.site);
  memset(dst, 0xFF, static_cast<size_t>(job.bytes));
  b.jobs.push_back(std::move(job));
}

void tma_load(void* dst, const TensorMap& map, int x, int y, void* barrier, Site site) {
  RuntimeScope scope;
  const int row_bytes = static_cast<int>(map.box[0]) * map.item_bytes;
  const uint32_t align = map.swizzle_bytes ? static_cast<uint32_t>(map.swizzle_bytes) * 8 : 128;
  if (shared_address(dst) % align) fail("TMA destination misaligned for its swizzle, " + at(site));
  if (map.swizzle_bytes && row_bytes > map.swizzle_bytes)
    fail("TMA inner box larger than its swizzle, " + at(site));
  AsyncJob job = new_job(AsyncJob::kTensorLoad, site);
  job.bytes = static_cast<int64_t>(row_bytes) * map.box[1];
  job.map = map;
  job.x = x;
  job.y = y;
  issue(std::move(job), dst, barrier);
}

void bulk_load(void* dst, const void* src, int bytes, void* barrier, Site site) {
  RuntimeScope scope;
  if ((shared_address(dst) | reinterpret_cast<uintptr_t>(src) | static_cast<uintptr_t>(bytes)) % 16)
    fail("bulk copy: addresses and size must be multiples of 16, " + at(site));
  checker::on_instruction(*self(), src, static_cast<size_t>(bytes), false, checker::kPlain, site);
  AsyncJob job = new_job(AsyncJob::kBulkLoad, site);
  job.bytes = bytes;
  job.src = src;
  issue(std::move(job), dst, barrier);
}

static void land_tensor(Block& b, const AsyncJob& job) {
  const TensorMap& m = job.map;
  const auto item = static_cast<size_t>(m.item_bytes);
  const auto start = static_cast<uint32_t>(static_cast<char*>(job.dst) - b.smem);
  for (uint32_t r = 0; r < m.box[1]; ++r)
    for (uint32_t c = 0; c < m.box[0]; ++c) {
      uint32_t address = start + (r * m.box[0] + c) * static_cast<uint32_t>(item);
      if (m.swizzle_bytes) address ^= (address >> 7 & (static_cast<uint32_t>(m.swizzle_bytes) / 16 - 1)) << 4;
      const int64_t x = static_cast<int64_t>(job.x) + c, y = static_cast<int64_t>(job.y) + r;
      const bool inside =
          x >= 0 && y >= 0 && x < static_cast<int64_t>(m.size[0]) && y < static_cast<int64_t>(m.size[1]);
      if (inside)
        memcpy(b.smem + address,
               static_cast<const char*>(m.base) + static_cast<uint64_t>(y) * m.row_bytes +
                   static_cast<uint64_t>(x) * item,
               item);
      else
        memset(b.smem + address, 0, item);  // as the hardware does
    }
}

void run_job(Block& b, size_t index) {
  const AsyncJob job = std::move(b.jobs[index]);
  b.jobs.erase(b.jobs.begin() + static_cast<std::ptrdiff_t>(index));
  Mbarrier& m = b.mbarriers[job.mbarrier];
  m.collected = checker::join(m.collected, job.seen);
  if (job.kind == AsyncJob::kArriveAfterCopies) {
    for (const CopyRequest& c : job.copies) land(c);
    arrive(b, m, job.site);
    return;
  }
  if (job.kind == AsyncJob::kTensorLoad)
    land_tensor(b, job);
  else
    memcpy(job.dst, job.src, static_cast<size_t>(job.bytes));
  m.transaction_bytes -= job.bytes;
  m.collected = checker::join(m.collected, Snapshot{b.size, b.async_step, job.seen});
  complete_phase_if_done(b, m);
}

}  // namespace simt

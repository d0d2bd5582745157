// wgmma with both operands in shared memory, both K-major or both MN-major. Each warp of the warpgroup
// computes its own 16 rows. Accumulators are NaN from issue to wait; operands are read both at issue (for the
// checker) and at the wait, so a stage that is overwritten too early shows in the result.
#include <algorithm>
#include <cmath>

#include "checker.h"
#include "half.h"

namespace simt {

constexpr int kRows = 16, kDepth = 16;  // of one warp's share of m64 n k16

// Element e of a lane's accumulator array is at this row and column of the warp's [16, n] tile.
static int accumulator_index(int lane, int e, int n) {
  return (lane / 4 + e / 2 % 2 * 8) * n + e / 4 * 8 + lane % 4 * 2 + e % 2;
}

// Descriptor bits as in PTX ISA "matrix-descriptor": address, leading and stride byte offsets (in 16 bytes),
// swizzle. K-major: a row's k lie side by side.
static uint32_t address_k_first(uint64_t descriptor, int row, int k_byte) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
  const auto leading = static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
  const int mode = static_cast<int>(descriptor >> 62);  // 0 none, 1: 128 bytes, 2: 64, 3: 32
  const uint32_t width = mode ? 256u >> mode : 16;
  const auto column = static_cast<uint32_t>(k_byte);
  uint32_t p = start + static_cast<uint32_t>(row / 8) * stride + static_cast<uint32_t>(row % 8) * width;
  p += mode ? column : column % 16 + column / 16 * leading;
  return mode ? p ^ (p >> 7 & (width / 16 - 1)) << 4 : p;
}

// MN-major under the 128-byte swizzle: of each k 64 rows lie side by side, 8 k are 1024 bytes, `stride` leads
// to the next 8 k and `leading` to the next 64 rows.
static uint32_t address_items_first(uint64_t descriptor, int row, int k, Site site) {
  if (descriptor >> 62 != 1)
    fail("MN-major wgmma operands are modelled with the 128-byte swizzle only, " + at(site));
  const auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
  const auto leading = static_cast<uint32_t>(descriptor >> 16 & 0x3FFF) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
  const uint32_t p = start + static_cast<uint32_t>(row / 64) * leading +
                     static_cast<uint32_t>(k / 8) * stride +
                     static_cast<uint32_t>(k % 8 * 128 + row % 64 * 2);
  return p ^ (p >> 7 & 7) << 4;
}

static float operand(Block& b, const WgmmaRequest& request, uint64_t descriptor, int row, int k, Thread& t) {
  const uint32_t address = request.items_first ? address_items_first(descriptor, row, k, request.site)
                                               : address_k_first(descriptor, row, k * 2);
  if (address + 2 > kSharedBytes) fail("wgmma descriptor points outside shared memory, " + at(request.site));
  checker::on_instruction(t, b.smem + address, 2, false, checker::kPlain | checker::kAsyncProxy,
                          request.site);
  uint16_t bits;
  memcpy(&bits, b.smem + address, 2);
  return half_to_float(request.type, bits);
}

struct Operands {
  std::vector<float> a, b;  // [16][16], [16][n]
};

static Operands read_operands(Block& b, const WgmmaRequest& request, unsigned warp, Thread& t) {
  Operands o{std::vector<float>(kRows * kDepth), std::vector<float>(static_cast<size_t>(kDepth * request.n))};
  for (int i = 0; i < kRows; ++i)
    for (int k = 0; k < kDepth; ++k)
      o.a[static_cast<size_t>(i * kDepth + k)] =
          operand(b, request, request.desc_a, static_cast<int>(warp % 4) * kRows + i, k, t);
  for (int j = 0; j < request.n; ++j)
    for (int k = 0; k < kDepth; ++k)
      o.b[static_cast<size_t>(k * request.n + j)] = operand(b, request, request.desc_b, j, k, t);
  return o;
}

static void multiply(Block& b, Warp& w, const WgmmaRequest& request, Thread& t) {
  const Operands o = read_operands(b, request, t.warp, t);
  std::vector<float>& sum = w.accumulators[request.d[0]];
  if (!request.accumulate) std::fill(sum.begin(), sum.end(), 0.f);
  const auto n = static_cast<size_t>(request.n);
  for (size_t i = 0; i < kRows; ++i)
    for (size_t k = 0; k < kDepth; ++k)
      for (size_t j = 0; j < n; ++j) sum[i * n + j] += o.a[i * kDepth + k] * o.b[k * n + j];
}

static void deliver(Warp& w, const WgmmaRequest& request) {
  for (const WgmmaGroup& group : w.wgmma_groups)
    for (const WgmmaRequest& other : group)
      if (other.d[0] == request.d[0]) return;  // a later product still owns these registers
  const std::vector<float>& sum = w.accumulators[request.d[0]];
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < request.n / 2; ++e)
      request.d[lane][e] = sum[static_cast<size_t>(accumulator_index(lane, e, request.n))];
}

// ---- the four instructions
// ---------------------------------------------------------------------------------------

static void complete_fence(Block&, Warp& w, Thread*, unsigned) { w.fenced = true; }

static void complete_commit(Block&, Warp& w, Thread*, unsigned) {
  w.wgmma_groups.push_back(std::move(w.open_wgmma));
  w.open_wgmma.clear();
}

static void complete_wait(Block& b, Warp& w, Thread* threads, unsigned) {
  const int groups_left = *static_cast<int*>(threads[0].arg);
  while (w.wgmma_groups.size() > static_cast<size_t>(groups_left)) {
    const WgmmaGroup group = std::move(w.wgmma_groups.front());
    for (const WgmmaRequest& request : group) multiply(b, w, request, *self());
    w.wgmma_groups.pop_front();
    for (const WgmmaRequest& request : group) deliver(w, request);
  }
  if (w.wgmma_groups.empty() && w.open_wgmma.empty()) w.accumulators.clear();
  if (groups_left == 0) w.fenced = false;  // the next product may find registers changed by plain code
}

static void complete_issue(Block& b, Warp& w, Thread* threads, unsigned) {
  ++worker->stats.wgmma;
  WgmmaRequest request = *static_cast<WgmmaRequest*>(threads[0].arg);
  if (!w.fenced) fail("wgmma without wgmma.fence after the last wait, " + at(request.site));
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<WgmmaRequest*>(threads[lane].arg);
    if (own.desc_a != request.desc_a || own.desc_b != request.desc_b || own.accumulate != request.accumulate)
      fail("wgmma operands differ inside a warp, " + at(request.site));
    request.d[lane] = own.d[0];
  }
  std::vector<float>& sum = w.accumulators[request.d[0]];
  const bool first_use = sum.empty();
  if (first_use) sum.resize(static_cast<size_t>(kRows * request.n));
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < request.n / 2; ++e) {
      if (first_use) sum[static_cast<size_t>(accumulator_index(lane, e, request.n))] = request.d[lane][e];
      request.d[lane][e] = NAN;
    }
  if (checker::enabled()) read_operands(b, request, threads[0].warp, *self());
  w.open_wgmma.push_back(request);
}

static const Collective kFence{"wgmma.fence", true, complete_fence};
static const Collective kIssue{"wgmma.mma_async", true, complete_issue};
static const Collective kCommit{"wgmma.commit_group", true, complete_commit};
static const Collective kWait{"wgmma.wait_group", true, complete_wait};

void wgmma_fence(Site site) {
  RuntimeScope scope;
  collective(kFence, ~0u, nullptr, site);
}

void wgmma_issue(Half type, int n, bool items_first, float* d, uint64_t desc_a, uint64_t desc_b,
                 bool accumulate, Site site) {
  RuntimeScope scope;
  WgmmaRequest request{type, n, items_first, accumulate, desc_a, desc_b, {d}, site};
  collective(kIssue, ~0u, &request, site);
}

void wgmma_commit(Site site) {
  RuntimeScope scope;
  collective(kCommit, ~0u, nullptr, site);
}

void wgmma_wait(int groups_left, Site site) {
  RuntimeScope scope;
  collective(kWait, ~0u, &groups_left, site);
}

}  // namespace simt

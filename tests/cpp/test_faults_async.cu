// Planted faults around asynchronous copies and wgmma (check build only). Too weak a wait has no race to
// report: it shows as the poison that the harness leaves until a copy lands.
#include "cuda/ptx_wgmma.cuh"
#include "faults.h"
#include "tensor_map.h"

using namespace rad::cuda;
using testing::Device;

namespace {

constexpr const char* kWrong = "wrong result";

// ---- cp.async ---------------------------------------------------------------------------------------------

enum class CopyFault { kNone, kWeakWait, kNoWait, kNoBarrier, kMisaligned, kPastTheEnd };

template <CopyFault Fault>
__global__ void copy(const uint4* x, uint4* y, int n) {
  CUDA_SHARED(uint4[2][32], tile);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 2; ++i) {
    const char* source =
        reinterpret_cast<const char*>(x + i * 32 + t) + (Fault == CopyFault::kMisaligned ? 4 : 0);
    cp_async16(&tile[i][t], source, Fault == CopyFault::kPastTheEnd || i * 32 + t < n ? 16 : 0);
    cp_async_commit();
  }
  if constexpr (Fault == CopyFault::kWeakWait)
    cp_async_wait<1>();
  else if constexpr (Fault != CopyFault::kNoWait)
    cp_async_wait<0>();
  if (Fault != CopyFault::kNoBarrier) __syncthreads();
  for (int i = 0; i < 2; ++i) y[i * 32 + t] = tile[i][31 - t];
}

template <CopyFault Fault>
std::string copy_problems() {
  std::vector<uint16_t> x(60 * 8, 1);
  Device<uint16_t> dx(x), dy(64 * 8);
  return testing::problems([&] {
    launch(copy<Fault>, {dim3(1), dim3(32)}, reinterpret_cast<const uint4*>(dx.data()),
           reinterpret_cast<uint4*>(dy.data()), 60);
    for (uint16_t v : dy.get())
      if (v > 1) throw testing::Failure(kWrong);
  });
}

#define EXPECT_IN(text, words)                                                            \
  do {                                                                                    \
    const std::string found_ = (text);                                                    \
    EXPECT(found_.find(words) != std::string::npos, "expected ", words, " in: ", found_); \
  } while (0)

TEST(fault_cp_async) {
  const auto healthy = copy_problems<CopyFault::kNone>();
  EXPECT(healthy.empty(), healthy);
  EXPECT_IN(copy_problems<CopyFault::kWeakWait>(), "in flight");
  EXPECT_IN(copy_problems<CopyFault::kNoWait>(), "in flight");
  EXPECT_IN(copy_problems<CopyFault::kNoBarrier>(), "RACE");
  EXPECT_IN(copy_problems<CopyFault::kMisaligned>(), "misaligned");
  EXPECT_IN(copy_problems<CopyFault::kPastTheEnd>(), "OUT OF BOUNDS");
}

// ---- a TMA ring that feeds wgmma
// ------------------------------------------------------------------------------

enum class RingFault {
  kNone,
  kProducerIgnoresEmpty,
  kExpectTooSmall,
  kConsumerIgnoresFull,
  kWrongParity,
  kNoWgmmaFence,
  kNoWgmmaWait,
  kReleasedTooEarly,
  kNoBarrierBeforeRelease,
  kNotInitialised
};
constexpr int kStages = 2, kTileBytes = 64 * 64 * 2, kSteps = 5;

template <RingFault Fault>
__global__ void ring(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* out) {
  char* tiles = dyn_smem<char>();
  CUDA_SHARED(uint64_t[kStages], full);
  CUDA_SHARED(uint64_t[kStages], empty);
  if (threadIdx.x == 0)
    for (int s = 0; s < (Fault == RingFault::kNotInitialised ? 1 : kStages); ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 1);
    }
  __syncthreads();
  if (threadIdx.x >= 128) {
    for (int k = 0; k < kSteps && threadIdx.x == 128; ++k) {
      const int s = k % kStages, round = k / kStages;
      if (round > 0 && Fault != RingFault::kProducerIgnoresEmpty) mbarrier_wait(&empty[s], (round - 1) & 1);
      mbarrier_arrive_expect(&full[s], Fault == RingFault::kExpectTooSmall ? kTileBytes : 2 * kTileBytes);
      tma_load_2d(tiles + s * 2 * kTileBytes, &a, k * 64, 0, &full[s]);
      tma_load_2d(tiles + s * 2 * kTileBytes + kTileBytes, &b, k * 64, 0, &full[s]);
    }
    return;
  }
  float d[32] = {};
  for (int k = 0; k < kSteps; ++k) {
    const int s = k % kStages, parity = (k / kStages) & 1;
    if (Fault != RingFault::kConsumerIgnoresFull)
      mbarrier_wait(&full[s], Fault == RingFault::kWrongParity ? parity ^ 1 : parity);
    const char *ta = tiles + s * 2 * kTileBytes, *tb = ta + kTileBytes;
    if (Fault != RingFault::kNoWgmmaFence) wgmma_fence();
    for (int i = 0; i < 4; ++i)
      wgmma_m64n64k16<bf16>(d, wgmma_operand_k128(ta + i * 32), wgmma_operand_k128(tb + i * 32), true);
    wgmma_commit();
    if constexpr (Fault == RingFault::kReleasedTooEarly)
      wgmma_wait<1>();
    else if constexpr (Fault != RingFault::kNoWgmmaWait)
      wgmma_wait<0>();
    if (Fault != RingFault::kNoBarrierBeforeRelease) named_barrier_sync(1, 128);
    if (threadIdx.x == 0) mbarrier_arrive(&empty[s]);
  }
  if (Fault != RingFault::kNoWgmmaWait) wgmma_wait<0>();
  for (int e = 0; e < 32; ++e) out[threadIdx.x * 32 + static_cast<unsigned>(e)] = d[e];
}

template <RingFault Fault>
std::string ring_problems() {
  // Column block k of `a` holds k + 1, so a stage that is overwritten too early changes the sum.
  std::vector<bf16> a(64 * 64 * kSteps), b(a.size(), static_cast<bf16>(1.f));
  for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<bf16>(static_cast<float>(i / 64 % kSteps + 1));
  Device<bf16> da(a), db(b);
  Device<float> out(128 * 32);
  return testing::problems([&] {
    launch(ring<Fault>, {dim3(1), dim3(160), kStages * 2 * kTileBytes},
           testing::tensor_map(da.data(), 64, 64 * kSteps, 64, 64, true),
           testing::tensor_map(db.data(), 64, 64 * kSteps, 64, 64, true), out.data());
    for (float v : out.get())
      if (v != 64.f * (1 + 2 + 3 + 4 + 5)) throw testing::Failure(kWrong);
  });
}

TEST(fault_ring) {
  const auto healthy = ring_problems<RingFault::kNone>();
  EXPECT(healthy.empty(), healthy);
  EXPECT(!ring_problems<RingFault::kProducerIgnoresEmpty>().empty());
  EXPECT_IN(ring_problems<RingFault::kExpectTooSmall>(), "expect_tx too small");
  EXPECT(!ring_problems<RingFault::kConsumerIgnoresFull>().empty());
  EXPECT(!ring_problems<RingFault::kWrongParity>().empty());
  EXPECT_IN(ring_problems<RingFault::kNoWgmmaFence>(), "without wgmma.fence");
  EXPECT_IN(ring_problems<RingFault::kNoWgmmaWait>(), "wgmma still in flight");
  EXPECT(!ring_problems<RingFault::kReleasedTooEarly>().empty());
  EXPECT(!ring_problems<RingFault::kNoBarrierBeforeRelease>().empty());
  EXPECT_IN(ring_problems<RingFault::kNotInitialised>(), "mbarrier not initialised");
}

// ---- proxies, exits
// ---------------------------------------------------------------------------------------------

template <bool Broken>
__global__ void unpack_and_multiply(float* out) {
  char* tile = dyn_smem<char>();
  for (int i = static_cast<int>(threadIdx.x); i < 2 * 64 * 64; i += 128)
    reinterpret_cast<bf16*>(tile)[i] = static_cast<bf16>(1.f);
  if (!Broken) fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  wgmma_m64n64k16<bf16>(d, wgmma_operand_k128(tile), wgmma_operand_k128(tile + kTileBytes), true);
  wgmma_commit();
  wgmma_wait<0>();
  out[threadIdx.x] = d[0];
}

TEST(fault_missing_proxy_fence) {
  Device<float> out(128);
  EXPECT_CAUGHT("MISSING fence.proxy.async", [&](auto broken) {
    launch(unpack_and_multiply<broken>, {dim3(1), dim3(128), 2 * kTileBytes}, out.data());
  });
}

// One warpgroup writes, another multiplies: the reader's own fence serves too, but only after the barrier,
// and the writer's only before it.
enum class FenceFault { kNone, kMissing, kReaderTooEarly, kWriterTooLate };

template <FenceFault Fault>
__global__ void fenced_by_the_reader(float* out) {
  char* tile = dyn_smem<char>();
  const bool writes = threadIdx.x >= 128;
  if (writes)
    for (int i = static_cast<int>(threadIdx.x) - 128; i < 2 * 64 * 64; i += 128)
      reinterpret_cast<bf16*>(tile)[i] = static_cast<bf16>(1.f);
  else if (Fault == FenceFault::kReaderTooEarly)
    fence_proxy_async();
  __syncthreads();
  if (writes) {
    if (Fault == FenceFault::kWriterTooLate) fence_proxy_async();
    return;
  }
  if (Fault == FenceFault::kNone) fence_proxy_async();
  float d[32] = {};
  wgmma_fence();
  wgmma_m64n64k16<bf16>(d, wgmma_operand_k128(tile), wgmma_operand_k128(tile + kTileBytes), true);
  wgmma_commit();
  wgmma_wait<0>();
  out[threadIdx.x] = d[0];
}

template <FenceFault Fault>
std::string fence_problems() {
  Device<float> out(128);
  return testing::problems(
      [&] { launch(fenced_by_the_reader<Fault>, {dim3(1), dim3(256), 2 * kTileBytes}, out.data()); });
}

TEST(fault_proxy_fence_out_of_order) {
  const auto healthy = fence_problems<FenceFault::kNone>();
  EXPECT(healthy.empty(), healthy);
  EXPECT_IN(fence_problems<FenceFault::kMissing>(), "MISSING fence.proxy.async");
  EXPECT_IN(fence_problems<FenceFault::kReaderTooEarly>(), "MISSING fence.proxy.async");
  EXPECT_IN(fence_problems<FenceFault::kWriterTooLate>(), "MISSING fence.proxy.async");
}

template <bool Broken>
__global__ void bulk_in_flight(const char* x) {
  char* tile = dyn_smem<char>();
  CUDA_SHARED(uint64_t, landed);
  if (threadIdx.x == 0) {
    mbarrier_init(&landed, 1);
    mbarrier_arrive_expect(&landed, 256);
    bulk_load(tile, x, 256, &landed);
  }
  __syncthreads();
  if (!Broken) mbarrier_wait(&landed, 0);
}

TEST(fault_copy_in_flight_at_exit) {
  // In random order the copy may land before the block ends, and then nothing is wrong.
  const auto options = simt::options;
  simt::options.order = simt::Order::kForward;
  Device<char> x(std::vector<char>(256));
  EXPECT_CAUGHT("in flight",
                [&](auto broken) { launch(bulk_in_flight<broken>, {dim3(1), dim3(32), 256}, x.data()); });
  simt::options = options;
}

template <bool Broken>
__global__ void unaligned_rows(uint32_t* out) {
  CUDA_SHARED(uint16_t[2 * 64 + 8], tile);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * 64 + 8; i += 32) tile[i] = 1;
  __syncthreads();
  uint32_t r[2];
  ldmatrix<2, false>(r, tile + threadIdx.x % 16 * 8 + (Broken ? 1 : 0));
  out[threadIdx.x] = r[0];
}

TEST(fault_unaligned_ldmatrix) {
  Device<uint32_t> out(32);
  EXPECT_CAUGHT("16-byte aligned",
                [&](auto broken) { launch(unaligned_rows<broken>, {dim3(1), dim3(32)}, out.data()); });
}

}  // namespace

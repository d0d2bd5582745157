// The product of a tile by wgmma (sm_90a): one warpgroup brings the operands of some steps ahead, two
// multiply. One block sums a tile in one order, so results repeat.
//
// Features go along the 64 rows of wgmma and outputs along its 256 columns, which reads 10 KB of shared
// memory for 2^18 multiplications; the other way round it would be 12 KB, too much beside the copies that
// come in.
#pragma once
#include "cuda/gemm/pipeline.cuh"
#include "cuda/gemm/tile.cuh"
#include "cuda/octets.cuh"
#include "cuda/ptx_wgmma.cuh"

namespace rad::cuda::gemm::warpgroups {

constexpr int kOutputs = 256, kDepth = 64, kStages = 4;
constexpr int kGroup = 128, kMultiplying = 2, kThreads = kGroup * (1 + kMultiplying);
constexpr int kGroupFeatures = 64, kHalf = kOutputs / 2;
static_assert(kMultiplying * kGroupFeatures == kFeatures);

using Rows = Operand<kOutputs, kDepth>;         // of dy
using Lines = Operand<kFeatures, kDepth>;       // stored
using Result = Operand<kGroupFeatures, kHalf>;  // of a warpgroup, half of its outputs at a time
constexpr int kStageBytes = Rows::kBytes + Lines::kBytes, kRingBytes = kStages * kStageBytes;
constexpr int kSharedBytes = kRingBytes + kMultiplying * Result::kBytes;
static_assert(kSharedBytes + 1024 <= 227 << 10);

using Barriers = Ring<kStages>;
using RingTurn = Turn<kStages>;

RAD_DEVICE char* rows_of(int stage) { return dyn_smem<char>() + stage * kStageBytes; }
RAD_DEVICE char* lines_of(int stage) { return rows_of(stage) + Rows::kBytes; }

// By one thread of the block; a __syncthreads follows. A thread's copies are one arrival, so is each warp
// that has multiplied.
RAD_DEVICE void init(Barriers& ring) { ring.init(kGroup, kMultiplying * kGroup / 32); }

// The first warpgroup: loaders of rows and lines whose chunks arrive by cp.async.
template <class A, class B>
RAD_DEVICE void bring(const Steps<kDepth>& steps, A& rows, B& lines, RingTurn& turn) {
#pragma unroll 1
  for (int step = 0; step < steps.count; ++step) {
    turn.wait_until_empty();
    rows.fetch(step, rows_of(turn.stage));
    lines.fetch(step, lines_of(turn.stage));
    cp_async_mbarrier_arrive(&turn.ring.full[turn.stage]);
    rows.place(step, rows_of(turn.stage));
    lines.place(step, lines_of(turn.stage));
    turn.next();
  }
}

// The others, each with 64 features. A thread's sums, by the fragments of wgmma: rows are features.
struct Share {
  float sum[kOutputs / 2];
  int group, warp, lane;

  RAD_DEVICE explicit Share(int group_)
      : group(group_),
        warp(static_cast<int>(threadIdx.x) / 32 % 4),
        lane(static_cast<int>(threadIdx.x) % 32) {}
};

// share.sum (+)= a^T b of the next `count` steps. The product of one is in flight while the next is awaited.
template <class T>
RAD_DEVICE void multiply_steps(int count, bool accumulate, RingTurn& turn, Share& share) {
  int multiplied = -1;  // the stage that the product in flight reads
  const auto release = [&] {
    __syncwarp();
    if (share.lane == 0 && multiplied >= 0) mbarrier_arrive(&turn.ring.empty[multiplied]);
  };
#pragma unroll 1
  for (int step = 0; step < count; ++step) {
    turn.wait_until_full();
    fence_proxy_async();  // cp.async writes as plain stores do
    const char* rows = rows_of(turn.stage);
    const char* lines = lines_of(turn.stage) + share.group * Lines::kPanelBytes;
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth; k += 16)
      wgmma_m64n256k16_mn<T>(share.sum, wgmma_operand_mn128(lines + k * kPanel * 2, Lines::kPanelBytes),
                             wgmma_operand_mn128(rows + k * kPanel * 2, Rows::kPanelBytes),
                             accumulate || step > 0 || k > 0);
    wgmma_commit();
    wgmma_wait<1>();
    release();
    multiplied = turn.stage;
    turn.next();
  }
  wgmma_wait<0>();
  release();
}

// share.sum = ratio * (a^T b over the head of the steps) + a^T b over the rest.
template <class T>
RAD_DEVICE void multiply(const Steps<kDepth>& steps, float ratio, RingTurn& turn, Share& share) {
  multiply_steps<T>(steps.head, false, turn, share);
  const bool both = steps.head > 0 && steps.head < steps.count;
  if (both) {
#pragma unroll
    for (float& sum : share.sum) sum *= ratio;
  }
  multiply_steps<T>(steps.count - steps.head, both, turn, share);
}

// dW[output.., feature..] = sum * scale, rounded once: through shared memory, so that 128 bytes of a row are
// stored together.
template <class T>
RAD_DEVICE void store(const Share& share, float scale, int64_t output, int64_t feature, int64_t outputs,
                      int64_t features, bool vectors, T* dw) {
  char* tile = dyn_smem<char>() + kRingBytes + share.group * Result::kBytes;
  const int within = share.lane % 8, second = share.lane / 8 % 2, third = share.lane / 16;
  const int thread = share.warp * 32 + share.lane, chunk = thread % Result::kChunks;
  const int64_t column = feature + share.group * kGroupFeatures + chunk * kChunk;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int n = 0; n < kHalf / 8; n += 2) {
      const float* sum = share.sum + (half * kHalf / 8 + n) * 4;
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Vector<T, 2> pair{narrow<T>(sum[i * 2] * scale), narrow<T>(sum[i * 2 + 1] * scale)};
        pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
      stmatrix_transposed(tile + Result::chunk_at((n + third) * 8 + within, share.warp * 2 + second), pairs);
    }
    named_barrier_sync(1 + share.group, kGroup);
    const int64_t first = output + half * kHalf;
#pragma unroll 4
    for (int row = thread / Result::kChunks; row < kHalf; row += kGroup / Result::kChunks) {
      if (first + row >= outputs) break;
      const auto values = *reinterpret_cast<const Vector<T, kChunk>*>(tile + Result::chunk_at(row, chunk));
      store_octet(dw + (first + row) * features, column, features, vectors, values.item);
    }
    named_barrier_sync(1 + share.group, kGroup);
  }
}

}  // namespace rad::cuda::gemm::warpgroups

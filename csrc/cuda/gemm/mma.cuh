// The product of a tile by mma.sync, for every architecture since sm_80: a ring of stages in shared memory,
// filled a few steps ahead of the warps that multiply. One block sums a tile in one order, so results repeat.
#pragma once
#include "cuda/gemm/tile.cuh"
#include "cuda/octets.cuh"

namespace rad::cuda::gemm {

// Three stages of 16 KB: two blocks fit the 100 KB of the smallest multiprocessor, and one multiplies while
// the other stores.
constexpr int kDepth = 32, kStages = 3;
using StepTile = Operand<kOutputs, kDepth>;
using ResultTile = Operand<kFeatures, kOutputs>;
constexpr int kStageBytes = 2 * StepTile::kBytes, kSharedBytes = kStages * kStageBytes;
static_assert(kOutputs == kFeatures && ResultTile::kBytes <= kSharedBytes);

// How the warps of a block of `Threads` share its tile. Four warps have 64 x 64 sums each, which reads least
// of shared memory; eight have 64 x 32 and leave registers to what happens to the operands on their way.
template <int Threads, int Features = kFeatures>
struct Shape {
  static constexpr int kThreads = Threads, kBlocks = 256 / Threads;  // to a multiprocessor
  static constexpr int kWarpOutputs = 64, kColumns = Threads / 32 * kWarpOutputs / kOutputs;
  static constexpr int kWarpFeatures = Features / kColumns;
  static constexpr int kBlocksM = kWarpOutputs / 16, kBlocksN = kWarpFeatures / 8;  // of mma
  static_assert(kBlocksN % 2 == 0);

  // A warp's share, by the fragments of mma.m16n8k16.
  float sum[kBlocksM][kBlocksN][4];
  int lane, output, feature;  // first of the share

  RAD_DEVICE Shape()
      : lane(static_cast<int>(threadIdx.x) % 32),
        output(static_cast<int>(threadIdx.x) / 32 / kColumns * kWarpOutputs),
        feature(static_cast<int>(threadIdx.x) / 32 % kColumns * kWarpFeatures) {}

  // f(sum) for each.
  template <class F>
  RAD_DEVICE void each(const F& f) {
#pragma unroll
    for (auto& block : sum)
#pragma unroll
      for (auto& fragment : block)
#pragma unroll
        for (float& value : fragment) f(value);
  }
};

// warp.sum += a step's a^T b. Lane 8 m + i gives ldmatrix row i of its matrix m: of `a` the matrices go along
// the outputs first, of `b` along the rows.
template <class T, class Warp>
RAD_DEVICE void multiply_step(const char* a, const char* b, Warp& warp) {
  constexpr int kBlocksM = Warp::kBlocksM, kBlocksN = Warp::kBlocksN;
  const int within = warp.lane % 8, second = warp.lane / 8 % 2, third = warp.lane / 16;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t fa[kBlocksM][4];
#pragma unroll
    for (int m = 0; m < kBlocksM; ++m)
      ldmatrix<4, true>(
          fa[m], a + StepTile::chunk_at(k + third * 8 + within, warp.output / kChunk + m * 2 + second));
#pragma unroll
    for (int n = 0; n < kBlocksN; n += 2) {
      uint32_t fb[4];
      ldmatrix<4, true>(fb,
                        b + StepTile::chunk_at(k + second * 8 + within, warp.feature / kChunk + n + third));
#pragma unroll
      for (int m = 0; m < kBlocksM; ++m) {
        mma_m16n8k16<T>(warp.sum[m][n], fa[m], {fb[0], fb[1]}, warp.sum[m][n]);
        mma_m16n8k16<T>(warp.sum[m][n + 1], fa[m], {fb[2], fb[3]}, warp.sum[m][n + 1]);
      }
    }
  }
}

// warp.sum = ratio * (a^T b over the head of the steps) + a^T b over the rest. The block leaves its stages
// free.
template <class T, class A, class B, class Warp>
RAD_DEVICE void multiply(const Steps<kDepth>& steps, float ratio, A& a, B& b, Warp& warp) {
  char* stages = dyn_smem<char>();
  const auto stage = [&](int step) { return stages + step % kStages * kStageBytes; };

  warp.each([](float& sum) { sum = 0; });
#pragma unroll 1
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps.count) {
      a.fetch(step, stage(step));
      b.fetch(step, stage(step) + StepTile::kBytes);
      a.place(step, stage(step));
      b.place(step, stage(step) + StepTile::kBytes);
    }
    cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps.count; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    const int next = step + kStages - 1;
    char* free = stage(next);
    if (next < steps.count) {
      a.fetch(next, free);
      b.fetch(next, free + StepTile::kBytes);
    }
    if (step == steps.head) warp.each([&](float& sum) { sum *= ratio; });
    multiply_step<T>(stage(step), stage(step) + StepTile::kBytes, warp);
    if (next < steps.count) {
      a.place(next, free);
      b.place(next, free + StepTile::kBytes);
    }
    cp_async_commit();
  }
  cp_async_wait<0>();
  __syncthreads();
}

// dW[output.., feature..] = sum * scale(feature), rounded once: through shared memory, so that whole rows of
// the tile are stored.
template <class T, class Warp, class Scale>
RAD_DEVICE void store(const Warp& warp, const Scale& scale, int64_t output, int64_t feature, int64_t outputs,
                      int64_t features, bool vectors, T* dw) {
  char* tile = dyn_smem<char>();
#pragma unroll
  for (int n = 0; n < Warp::kBlocksN; ++n) {
    const int column = warp.feature + n * 8 + warp.lane % 4 * 2;
    const float weight[2] = {scale(feature + column), scale(feature + column + 1)};
#pragma unroll
    for (int m = 0; m < Warp::kBlocksM; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp.output + m * 16 + half * 8 + warp.lane / 4;
        Vector<T, 2> pair;
        pair.item[0] = narrow<T>(warp.sum[m][n][half * 2] * weight[0]);
        pair.item[1] = narrow<T>(warp.sum[m][n][half * 2 + 1] * weight[1]);
        *reinterpret_cast<Vector<T, 2>*>(tile + ResultTile::chunk_at(row, column / kChunk) +
                                         column % kChunk * 2) = pair;
      }
  }
  __syncthreads();
  constexpr int kChunks = ResultTile::kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 4
  for (int row = static_cast<int>(threadIdx.x) / kChunks; row < kOutputs; row += Warp::kThreads / kChunks) {
    if (output + row >= outputs) break;
    const auto values = *reinterpret_cast<const Vector<T, kChunk>*>(tile + ResultTile::chunk_at(row, chunk));
    store_octet(dw + (output + row) * features, feature + chunk * kChunk, features, vectors, values.item);
  }
  __syncthreads();
}

}  // namespace rad::cuda::gemm

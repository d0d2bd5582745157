#include "core/norm_draw.h"

#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr int kScanThreads = 1024, kScanItems = 8;  // of the one block that sums, and of a thread of it
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// A warp per row, summed in a fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads) row_norms_kernel(MatrixView x, float* norm) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  for (int64_t r = first; r < x.rows; r += static_cast<int64_t>(gridDim.x) * kWarps) {
    const T* row = static_cast<const T*>(x.data) + offset_of_row(x, r);
    double sum = 0;
    for (int64_t c = lane; c < x.cols; c += 32) {
      const double value = widen(row[c * x.col_stride]);
      sum += product(value, value);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    if (lane == 0) norm[r] = static_cast<float>(sqrt(sum));
  }
}

// The block's largest pattern of bits: of norms the largest norm, and above all numbers if one is NaN.
RAD_DEVICE uint32_t block_max(uint32_t bits, uint32_t (&of_warp)[kScanThreads / 32]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) bits = max(bits, __shfl_xor_sync(kFullWarp, bits, step));
  if (lane == 0) of_warp[threadIdx.x / 32] = bits;
  __syncthreads();
  bits = of_warp[lane];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) bits = max(bits, __shfl_xor_sync(kFullWarp, bits, step));
  return bits;
}

// Sum over the threads before this one; `total` is the block's. Called with the shared array free.
RAD_DEVICE uint64_t sum_before(uint64_t own, uint64_t (&of_warp)[kScanThreads / 32], uint64_t& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint64_t sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t before = __shfl_up_sync(kFullWarp, sum, step);
    sum += lane >= step ? before : 0;
  }
  if (lane == 31) of_warp[warp] = sum;
  __syncthreads();
  uint64_t before_warp = 0;
  total = 0;
  for (int w = 0; w < kScanThreads / 32; ++w) {
    before_warp += w < warp ? of_warp[w] : 0;
    total += of_warp[w];
  }
  __syncthreads();
  return before_warp + sum - own;
}

// prefix[n] = a_0 + ... + a_n of the norms in fixed point, by one block.
__global__ void __launch_bounds__(kScanThreads)
    prefix_kernel(const float* norm, int64_t rows, uint64_t* prefix) {
  CUDA_SHARED(uint32_t[kScanThreads / 32], maxima);
  CUDA_SHARED(uint64_t[kScanThreads / 32], sums);
  uint32_t bits = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kScanThreads) bits = max(bits, float_bits(norm[r]));
  const float largest = bits_float(block_max(bits, maxima));
  uint64_t done = 0;
  for (int64_t base = 0; base < rows; base += kScanThreads * kScanItems) {
    const int64_t first = base + static_cast<int64_t>(threadIdx.x) * kScanItems;
    uint64_t upto[kScanItems], own = 0;
#pragma unroll
    for (int i = 0; i < kScanItems; ++i) {
      if (first + i < rows) own += fixed_norm(norm[first + i], largest);
      upto[i] = own;
    }
    uint64_t total;
    const uint64_t before = done + sum_before(own, sums, total);
#pragma unroll
    for (int i = 0; i < kScanItems; ++i)
      if (first + i < rows) prefix[first + i] = before + upto[i];
    done += total;
  }
}

__global__ void __launch_bounds__(kThreads)
    norm_draw_kernel(Sampler plan, KeySource source, const uint64_t* prefix, int64_t* index, float* weight) {
  const Sampler sampler = keyed(plan, source);
  const int64_t rows = sampler.strata.n, k = sampler.k(), step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < k; i += step) {
    const int64_t row = norm_index(sampler.call(0, i), prefix, rows);
    index[i] = row;
    weight[i] = norm_weight(prefix, rows, k, row);
  }
}

}  // namespace

int64_t norm_sample_workspace(const NormSampleArgs& args) { return args.x.rows * 12; }

int norm_sample(const NormSampleArgs& args) {
  const int64_t rows = args.x.rows;
  if (rows == 0) return 0;
  const SavedView saved(args.spec, args.dtype, rows, args.x.cols, args.saved);
  auto* prefix = static_cast<uint64_t*>(args.workspace);
  auto* norm = reinterpret_cast<float*>(prefix + rows);
  int status = visit_dtype(args.dtype, [&](auto tag) {
    return launch(row_norms_kernel<typename decltype(tag)::type>,
                  {dim3(blocks_for(rows, kWarps)), dim3(kThreads), 0, args.exec.stream}, args.x, norm);
  });
  if (status != 0) return status;
  status = launch(prefix_kernel, {dim3(1), dim3(kScanThreads), 0, args.exec.stream}, norm, rows, prefix);
  if (status != 0) return status;
  const KeySource source{saved.trailer(), static_cast<int64_t>(args.salt)};
  return launch(norm_draw_kernel, over_items(saved.layout.lines, args.exec.stream),
                plan_sample(args.spec, rows), source, prefix, saved.plane<int64_t>(saved.layout.index),
                saved.plane<float>(saved.layout.weight));
}

}  // namespace rad::cuda

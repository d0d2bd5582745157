// Codes of normalised values on the device.
#pragma once
#include "core/norm.h"
#include "cuda/saved.cuh"

namespace rad::cuda {

inline SavedView norm_view(const NormShape& shape, int32_t bits, const void* saved) {
  return SavedView(norm_spec(bits), kNormLo, norm_lines(shape), norm_width(shape), saved);
}

// Whether the lines of a matrix of T at p begin at whole vectors.
template <class T>
bool lines_aligned(const NormShape& shape, const T* p) {
  return aligned(p, kVectorBytes) && (shape.by_channel || shape.set % kPerVector<T> == 0);
}

// Values [first, first + 8) of a line as numbers, zeros from `width` on.
template <class T, class Real>
RAD_DEVICE void load_numbers(const T* line, int64_t first, int64_t width, bool vectors,
                             Real (&value)[kOctet]) {
  T item[kOctet];
  load_octet(line, first, width, vectors, item);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
}

// The sum of every thread's value: lanes added in halves, as the CPU adds them. All threads of the block
// call.
template <class Real>
RAD_DEVICE Real block_sum(Real* lanes, Real value) {
  static_assert(kThreads == kNormLanes);
  __syncthreads();  // of the sum before
  lanes[threadIdx.x] = value;
  for (unsigned half = kThreads / 2; half >= 32; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
  }
  if (threadIdx.x < 32) {
    Real sum = lanes[threadIdx.x];
#pragma unroll
    for (int half = 16; half > 0; half /= 2) sum += __shfl_down_sync(~0u, sum, half);
    if (threadIdx.x == 0) lanes[0] = sum;
  }
  __syncthreads();
  return lanes[0];
}

}  // namespace rad::cuda

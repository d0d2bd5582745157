// Codes of normalised values on the device.
#pragma once
#include "core/norm.h"
#include "cuda/saved.cuh"

namespace rad::cuda {

inline SavedView norm_view(const NormShape& shape, int32_t bits, const void* saved) {
  return SavedView(norm_spec(bits), kNormLo, norm_lines(shape), norm_width(shape), saved);
}

// The sum of every thread's value: lanes added in halves, as the CPU adds them. All threads of the block
// call.
template <class Real>
RAD_DEVICE Real block_sum(Real* lanes, Real value) {
  static_assert(kThreads == kNormLanes);
  __syncthreads();  // of the sum before
  lanes[threadIdx.x] = value;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) lanes[threadIdx.x] += lanes[threadIdx.x + half];
  }
  __syncthreads();
  return lanes[0];
}

}  // namespace rad::cuda

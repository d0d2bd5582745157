// One spelling for functions that the CPU, the GPU and the host-run tests share.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define RAD_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Forced, because loops compiled for a newer CPU than the rest only vectorise what they can inline.
#define RAD_HD inline __attribute__((always_inline))
#else
#define RAD_HD inline
#endif

namespace rad {

RAD_HD uint64_t mulhi64(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
}

// A plain a * b + c may compile to one fused rounding on a GPU; with these two it never does (host code is
// built without contraction).
RAD_HD float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
RAD_HD double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

}  // namespace rad

// Force-included in front of a .cu file that g++ compiles: the CUDA names that kernels use.
// The bf16 and fp16 types are the toolkit's own headers, so their roundings are NVIDIA's.
#pragma once
#if defined(__CUDACC__)
#error "cuda_names.h is for the host compiler"
#endif
#define SIMT_HOST 1
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>

#include "simt.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __shared__
#define __shared__ SIMT_ERROR_use_CUDA_SHARED_or_dyn_smem

#define threadIdx (::simt::current->thread)
#define blockIdx (::simt::current->block)
#define blockDim (::simt::current->block_dim)
#define gridDim (::simt::current->grid_dim)
#define warpSize 32

// Every call knows its source line: a barrier or collective is one line of the kernel.
#define SIMT_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define SIMT_HERE \
  ::simt::Site { file_, line_ }

// ---- barriers, votes, shuffles ---------------------------------------------------------------------------

inline void __syncthreads(SIMT_SITE) { simt::barrier_sync(0, 0, 0, SIMT_HERE); }
inline int __syncthreads_count(int p, SIMT_SITE) { return simt::barrier_sync(0, 0, p, SIMT_HERE); }
inline int __syncthreads_or(int p, SIMT_SITE) { return simt::barrier_sync(0, 0, p, SIMT_HERE) > 0; }
inline void __syncwarp(unsigned m = ~0u, SIMT_SITE) { simt::vote(simt::kSyncWarp, m, 0, SIMT_HERE); }
inline unsigned __ballot_sync(unsigned m, int p, SIMT_SITE) {
  return static_cast<unsigned>(simt::vote(simt::kBallot, m, p != 0, SIMT_HERE));
}
inline int __any_sync(unsigned m, int p, SIMT_SITE) {
  return static_cast<int>(simt::vote(simt::kAny, m, p != 0, SIMT_HERE));
}
inline int __all_sync(unsigned m, int p, SIMT_SITE) {
  return static_cast<int>(simt::vote(simt::kAll, m, p != 0, SIMT_HERE));
}
template <class T>
unsigned __match_any_sync(unsigned m, T value, SIMT_SITE) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return static_cast<unsigned>(simt::vote(simt::kMatch, m, bits, SIMT_HERE));
}
template <class T>
T __shfl_sync(unsigned m, T v, int lane, int width = 32, SIMT_SITE) {
  return simt::shuffle_value(m, v, simt::ShuffleArg::kIndex, lane, width, SIMT_HERE);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, int delta, int width = 32, SIMT_SITE) {
  return simt::shuffle_value(m, v, simt::ShuffleArg::kUp, delta, width, SIMT_HERE);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, int delta, int width = 32, SIMT_SITE) {
  return simt::shuffle_value(m, v, simt::ShuffleArg::kDown, delta, width, SIMT_HERE);
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int lanes, int width = 32, SIMT_SITE) {
  return simt::shuffle_value(m, v, simt::ShuffleArg::kXor, lanes, width, SIMT_HERE);
}
template <class T>
T __reduce_add_sync(unsigned m, T v, SIMT_SITE) {
  T sum = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (m >> lane & 1) sum += simt::shuffle_value(m, v, simt::ShuffleArg::kIndex, lane, 32, SIMT_HERE);
  return sum;
}
inline void __threadfence() { simt::memory_fence(); }
inline void __threadfence_block() { simt::memory_fence(); }

// ---- atomics ----------------------------------------------------------------------------------------------

template <class T, class V>
T atomicAdd(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(p, [&](T old) { return static_cast<T>(old + static_cast<T>(v)); }, SIMT_HERE);
}
template <class T, class V>
T atomicMax(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(
      p, [&](T old) { return old > static_cast<T>(v) ? old : static_cast<T>(v); }, SIMT_HERE);
}
template <class T, class V>
T atomicMin(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(
      p, [&](T old) { return old < static_cast<T>(v) ? old : static_cast<T>(v); }, SIMT_HERE);
}
template <class T, class V>
T atomicOr(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(p, [&](T old) { return old | static_cast<T>(v); }, SIMT_HERE);
}
template <class T, class V>
T atomicAnd(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(p, [&](T old) { return old & static_cast<T>(v); }, SIMT_HERE);
}
template <class T, class V>
T atomicExch(T* p, V v, SIMT_SITE) {
  return simt::atomic_update(p, [&](T) { return static_cast<T>(v); }, SIMT_HERE);
}
template <class T, class V>
T atomicCAS(T* p, V expected, V v, SIMT_SITE) {
  return simt::atomic_update(
      p, [&](T old) { return old == static_cast<T>(expected) ? static_cast<T>(v) : old; }, SIMT_HERE);
}

// ---- arithmetic -------------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
inline float __uint_as_float(unsigned x) {
  float f;
  std::memcpy(&f, &x, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned x;
  std::memcpy(&x, &f, 4);
  return x;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}

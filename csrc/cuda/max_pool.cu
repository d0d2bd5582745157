#include "core/pool.h"
#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

// A warp makes the words of 32 elements of y, a lane an element.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    max_pool_kernel(PoolShape s, const T* x, T* y, uint32_t* codes, int64_t n, int bits) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t g = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32; g * 32 < n; g += warps) {
    const int64_t i = g * 32 + lane;
    uint32_t code = 0;
    if (i < n) {
      const PoolPlace place(s, i);
      const Window w0(s, 0, place.o[0]), w1(s, 1, place.o[1]), w2(s, 2, place.o[2]);
      T best = narrow<T>(-static_cast<Accumulate<T>>(INFINITY));
      code = static_cast<uint32_t>((w0.first * s.window[1] + w1.first) * s.window[2] + w2.first);
      for (int64_t a = w0.first; a < w0.last; ++a)
        for (int64_t b = w1.first; b < w1.last; ++b)
          for (int64_t c = w2.first; c < w2.last; ++c) {
            const int64_t row = (place.plane * s.in[0] + w0.start + a * s.dilation[0]) * s.in[1] + w1.start +
                                b * s.dilation[1];
            const T v = x[(row * s.in[2] + w2.start + c * s.dilation[2]) * s.lanes + place.lane];
            if (widen(v) > widen(best) || widen(v) != widen(v)) {
              best = v;
              code = static_cast<uint32_t>((a * s.window[1] + b) * s.window[2] + c);
            }
          }
      y[i] = best;
    }
    for (int b = 0; b < bits; ++b) {
      const uint32_t word = __ballot_sync(0xFFFFFFFFu, static_cast<int>(code >> b & 1u));
      if (lane == 0) codes[g * bits + b] = word;
    }
  }
}

RAD_DEVICE uint32_t code_of(const uint32_t* codes, int64_t i, int bits) {
  uint32_t code = 0;
  for (int b = 0; b < bits; ++b) code |= (codes[i / 32 * bits + b] >> (i % 32) & 1u) << b;
  return code;
}

// The outputs whose windows reach input position i of dimension d: [first, last).
RAD_DEVICE void covering(const PoolShape& s, int d, int64_t i, int64_t& first, int64_t& last) {
  const int64_t reach = i + s.pad[d] - (s.window[d] - 1) * s.dilation[d];
  first = reach <= 0 ? 0 : (reach + s.stride[d] - 1) / s.stride[d];
  last = min((i + s.pad[d]) / s.stride[d] + 1, s.out[d]);
}

// Gathered, so that sums are made in the order of outputs: no atomics.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    max_pool_backward_kernel(PoolShape s, const T* dy, const uint32_t* codes, T* dx, int64_t n, int bits) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; at < n; at += step) {
    int64_t i[3], rest = at / s.lanes, first[3], last[3];
    const int64_t lane = at % s.lanes;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      i[d] = rest % s.in[d];
      rest /= s.in[d];
      covering(s, d, i[d], first[d], last[d]);
    }
    T sum = narrow<T>(0);
    for (int64_t a = first[0]; a < last[0]; ++a)
      for (int64_t b = first[1]; b < last[1]; ++b)
        for (int64_t c = first[2]; c < last[2]; ++c) {
          const int64_t o = (((rest * s.out[0] + a) * s.out[1] + b) * s.out[2] + c) * s.lanes + lane;
          const int64_t code = code_of(codes, o, bits), k0 = code / (s.window[1] * s.window[2]),
                        k1 = code / s.window[2] % s.window[1], k2 = code % s.window[2];
          const bool own = a * s.stride[0] - s.pad[0] + k0 * s.dilation[0] == i[0] &&
                           b * s.stride[1] - s.pad[1] + k1 * s.dilation[1] == i[1] &&
                           c * s.stride[2] - s.pad[2] + k2 * s.dilation[2] == i[2];
          if (own) sum = narrow<T>(widen(sum) + widen(dy[o]));
        }
    dx[at] = sum;
  }
}

}  // namespace

int max_pool(const MaxPoolArgs& args) {
  const int64_t n = pool_outputs(args.shape);
  if (n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(max_pool_kernel<T>, over_items(n, args.exec.stream), args.shape,
                  static_cast<const T*>(args.x), static_cast<T*>(args.y), args.codes, n,
                  pool_bits(args.shape));
  });
}

int max_pool_backward(const MaxPoolBackwardArgs& args) {
  const int64_t n = pool_inputs(args.shape);
  if (n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(max_pool_backward_kernel<T>, over_items(n, args.exec.stream), args.shape,
                  static_cast<const T*>(args.dy), args.codes, static_cast<T*>(args.dx), n,
                  pool_bits(args.shape));
  });
}

}  // namespace rad::cuda

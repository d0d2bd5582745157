#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

template <class Real>
RAD_DEVICE bool passes(Rule rule, Real x, Real lo, Real hi) {
  switch (rule) {
    case Rule::kAbove:
      return x > lo;
    case Rule::kNotBelow:
      return !(x <= lo);
    case Rule::kBetween:
      return !(x <= lo || x >= hi);
    case Rule::kWithin:
      return x > lo && x < hi;
    case Rule::kOutside:
      return !(x >= lo && x <= hi);
  }
  return false;
}

// A warp makes a word, a lane a bit.
template <class T>
__global__ void __launch_bounds__(kThreads)
    kink_kernel(Rule rule, const T* x, Accumulate<T> lo, Accumulate<T> hi, uint32_t* mask, int64_t n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t w = warp; w * 32 < n; w += warps) {
    const int64_t i = w * 32 + lane;
    const bool bit = i < n && passes(rule, widen(x[i]), lo, hi);
    const uint32_t word = __ballot_sync(0xFFFFFFFFu, static_cast<int>(bit));
    if (lane == 0) mask[w] = word;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    sloped_kernel(const T* dy, const uint32_t* mask, Accumulate<T> on, Accumulate<T> off, T* dx, int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    const Accumulate<T> value = widen(dy[i]), outside = off == 0 ? 0 : value * off;
    dx[i] = narrow<T>(mask[i / 32] >> (i % 32) & 1u ? value * on : outside);
  }
}

}  // namespace

int kink(const KinkArgs& args) {
  if (args.n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const bool own = args.rule == Rule::kOutside;
    const auto lo = static_cast<Real>(args.lo), hi = static_cast<Real>(args.hi);
    return launch(kink_kernel<T>, over_items(args.n, args.exec.stream), args.rule,
                  static_cast<const T*>(args.x), own ? widen(narrow<T>(lo)) : lo,
                  own ? widen(narrow<T>(hi)) : hi, args.mask, args.n);
  });
}

int sloped(const SlopedArgs& args) {
  if (args.n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    return launch(sloped_kernel<T>, over_items(args.n, args.exec.stream), static_cast<const T*>(args.dy),
                  args.mask, static_cast<Real>(args.on), static_cast<Real>(args.off),
                  static_cast<T*>(args.dx), args.n);
  });
}

}  // namespace rad::cuda

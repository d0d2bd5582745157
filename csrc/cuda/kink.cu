#include "cuda/mask.cuh"
#include "cuda/octets.cuh"

namespace rad::cuda {
namespace {

template <Rule R, class Real>
RAD_DEVICE bool passes(Real x, Real lo, Real hi) {
  if constexpr (R == Rule::kAbove) return x > lo;
  if constexpr (R == Rule::kNotBelow) return !(x <= lo);
  if constexpr (R == Rule::kBetween) return !(x <= lo || x >= hi);
  if constexpr (R == Rule::kWithin) return x > lo && x < hi;
  if constexpr (R == Rule::kOutside) return !(x >= lo && x <= hi);
}

template <Rule R, class T>
__global__ void __launch_bounds__(kThreads)
    kink_kernel(const T* x, Accumulate<T> lo, Accumulate<T> hi, uint32_t* mask, int64_t n, int64_t tiles) {
  make_mask(
      x, mask, n, tiles, [lo, hi](T v) { return passes<R>(widen(v), lo, hi); },
      [](int64_t) { return [](int, const auto&) {}; }, [](int64_t, T) {});
}

template <class T>
struct Slopes {
  Accumulate<T> on, off;
  const uint32_t* mask;
  T* dx;
};

// The mask's bytes are octets.
template <class T>
__global__ void __launch_bounds__(kThreads) sloped_kernel(const T* dy, Slopes<T> p, int64_t n, bool vectors) {
  using Real = Accumulate<T>;
  each_octet(dy, n, vectors, [&](int64_t o, int64_t, const T(&item)[kOctet], const auto& store) {
    const unsigned bits = reinterpret_cast<const uint8_t*>(p.mask)[o];
    T dx[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const bool on = bits >> e & 1u;
      const Real value = widen(item[e]) * (on ? p.on : p.off);
      dx[e] = narrow<T>(on || p.off != 0 ? value : Real(0));
    }
    store(p.dx, dx);
  });
}

// f(tag of the rule)
template <Rule R>
struct RuleTag {
  static constexpr Rule value = R;
};
template <class F>
int visit_rule(Rule rule, const F& f) {
  switch (rule) {
    case Rule::kAbove:
      return f(RuleTag<Rule::kAbove>{});
    case Rule::kNotBelow:
      return f(RuleTag<Rule::kNotBelow>{});
    case Rule::kBetween:
      return f(RuleTag<Rule::kBetween>{});
    case Rule::kWithin:
      return f(RuleTag<Rule::kWithin>{});
    case Rule::kOutside:
      return f(RuleTag<Rule::kOutside>{});
  }
  return kInvalidValue;
}

}  // namespace

int kink(const KinkArgs& args) {
  if (args.n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const bool own = args.rule == Rule::kOutside;
    const auto lo = static_cast<Real>(args.lo), hi = static_cast<Real>(args.hi);
    const auto* x = static_cast<const T*>(args.x);
    const int64_t tiles = aligned(x, kVectorBytes) ? args.n / kMaskTile : 0;
    return visit_rule(args.rule, [&](auto rule) {
      return launch(kink_kernel<decltype(rule)::value, T>, over_mask(args.n, tiles, args.exec.stream), x,
                    own ? widen(narrow<T>(lo)) : lo, own ? widen(narrow<T>(hi)) : hi, args.mask, args.n,
                    tiles);
    });
  });
}

int sloped(const SlopedArgs& args) {
  if (args.n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const auto* dy = static_cast<const T*>(args.dy);
    const Slopes<T> slopes{static_cast<Real>(args.on), static_cast<Real>(args.off), args.mask,
                           static_cast<T*>(args.dx)};
    return launch(sloped_kernel<T>, over_octets(args.n, args.exec.stream), dy, slopes, args.n,
                  aligned(dy, kVectorBytes) && aligned(args.dx, kVectorBytes));
  });
}

}  // namespace rad::cuda

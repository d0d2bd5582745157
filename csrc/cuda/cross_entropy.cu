#include "core/probability.h"
#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    probabilities_kernel(const T* log_p, char* codes, uint16_t* steps, int64_t n, int64_t octets, int bits,
                         bool vectors, KeySource source, TrailerWriter trailer) {
  using Real = Accumulate<T>;
  trailer.write();
  const Seed seed = source.seed();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const unsigned team = 0xFFu << (static_cast<int>(threadIdx.x) % 32 / kTeam * kTeam);
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o < octets; o += step) {
    const int64_t first = o * kOctet;
    T item[kOctet];
    load_octet(log_p, first, n, vectors, item);
    Real p[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) p[e] = first + e < n ? probability(widen(item[e])) : Real(0);
    Real lo, hi;
    const bool finite = team_range(team, p, lo, hi);
    const float size = finite ? Dither<Real>::step_for(0, hi, bits) : bits_float(0x7FC00000u);
    const Words noise = random_words(seed, Role::kProbability, 0, o);
    if (first < n) store_octet_codes(codes, o, bits, OctetDither<Real>(0, size).encode(p, noise, bits));
    if (first < n && first % kGroup == 0)
      steps[first / kGroup] = static_cast<uint16_t>(float_bits(size) >> 16);
  }
}

template <class T>
struct BackwardParams {
  const char* codes;
  const uint16_t* steps;
  const Accumulate<T>*scale, *hit, *level, *class_weight;
  const int64_t* target;
  T* dx;
  int64_t n, classes, inner;
  int bits;
  bool vectors;

  // What all classes of a place share; no class is its target where there is none.
  struct Place {
    Accumulate<T> scale, level, hit;
    int64_t target;
  };
  RAD_DEVICE Place at(int64_t place) const {
    return {scale[place], level ? level[place] : Accumulate<T>(0), target ? hit[place] : Accumulate<T>(0),
            target ? target[place] : -1};
  }
  // scale p - level weight - hit of class c at that place.
  RAD_DEVICE Accumulate<T> gradient(const Place& place, int64_t c, Accumulate<T> p) const {
    Accumulate<T> dx = product(place.scale, p);
    if (level) dx -= class_weight ? product(place.level, class_weight[c]) : place.level;
    if (place.target == c) dx -= place.hit;
    return dx;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    cross_entropy_kernel(BackwardParams<T> m, KeySource source) {
  using Real = Accumulate<T>;
  const Seed seed = source.seed();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o * kOctet < m.n; o += step) {
    const int64_t first = o * kOctet;
    const auto size = static_cast<uint32_t>(m.steps[first / kGroup]) << 16;
    const Words noise = random_words(seed, Role::kProbability, 0, o);
    Real p[kOctet];
    OctetDither<Real>(0, bits_float(size)).decode(load_octet_codes(m.codes, o, m.bits), noise, m.bits, p);
    T item[kOctet];
    AxisPlace at(first, m.classes, m.inner);
    auto place = m.at(at.outer * m.inner + at.within);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (first + e >= m.n) break;
      if (e > 0 && (m.inner > 1 || at.at == 0)) place = m.at(at.outer * m.inner + at.within);
      item[e] = narrow<T>(m.gradient(place, at.at, p[e]));
      at.next();
    }
    store_octet(m.dx, first, m.n, m.vectors, item);
  }
}

}  // namespace

int probabilities(const ProbabilitiesArgs& args) {
  const ProbabilityLayout layout(args.n, args.bits);
  char* data = static_cast<char*>(args.saved);
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  const auto salt = static_cast<int64_t>(args.salt);
  TrailerWriter writer{trailer, salt, data, {}};
  writer.gaps.begin[0] = layout.codes, writer.gaps.end[0] = layout.step;
  writer.gaps.begin[1] = layout.steps_end, writer.gaps.end[1] = layout.trailer;
  const int64_t octets = octets_of(args.n);  // whole teams
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* log_p = static_cast<const T*>(args.log_p);
    return launch(probabilities_kernel<T>, over_items(octets, args.exec.stream), log_p, data,
                  reinterpret_cast<uint16_t*>(data + layout.step), args.n, octets,
                  static_cast<int>(args.bits), aligned(log_p, kVectorBytes), KeySource{trailer, salt},
                  writer);
  });
}

int cross_entropy_backward(const CrossEntropyBackwardArgs& args) {
  const int64_t n = args.outer * args.classes * args.inner;
  if (n == 0) return 0;
  const ProbabilityLayout layout(n, args.bits);
  const auto* data = static_cast<const char*>(args.saved);
  const auto* trailer = reinterpret_cast<const Trailer*>(data + layout.trailer);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    auto* dx = static_cast<T*>(args.dx);
    const BackwardParams<T> params{data,
                                   reinterpret_cast<const uint16_t*>(data + layout.step),
                                   static_cast<const Real*>(args.scale),
                                   static_cast<const Real*>(args.hit),
                                   static_cast<const Real*>(args.level),
                                   static_cast<const Real*>(args.class_weight),
                                   args.target,
                                   dx,
                                   n,
                                   args.classes,
                                   args.inner,
                                   static_cast<int>(args.bits),
                                   aligned(dx, kVectorBytes)};
    return launch(cross_entropy_kernel<T>, over_items((n + kOctet - 1) / kOctet, args.exec.stream), params,
                  KeySource{trailer, -1});
  });
}

}  // namespace rad::cuda

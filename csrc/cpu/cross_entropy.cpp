#include <algorithm>
#include <cstring>

#include "core/probability.h"
#include "cpu/codes.h"
#include "cpu/derivative.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kGrain = 1 << 7;
constexpr int kGroups = kBlock / kGroup;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Function multiversioning takes no templates, so one overload a type.
template <class Real>
inline __attribute__((always_inline)) void exponentiate(Real* v) {
  for (int i = 0; i < kBlock; ++i) v[i] = probability(v[i]);
}
RAD_VECTOR_CLONES void to_probabilities(float* v) { exponentiate(v); }
RAD_VECTOR_CLONES void to_probabilities(double* v) { exponentiate(v); }

// v = scale v - level weight; a run of one row has one scale and, unless null, a weight for each class.
template <class Real>
inline __attribute__((always_inline)) void combine(Real* v, int64_t count, Real scale, Real level,
                                                   const Real* weight) {
  if (level == 0) {
    for (int64_t i = 0; i < count; ++i) v[i] = product(scale, v[i]);
  } else if (weight) {
    for (int64_t i = 0; i < count; ++i) v[i] = product(scale, v[i]) - product(level, weight[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) v[i] = product(scale, v[i]) - level;
  }
}
RAD_VECTOR_CLONES void combine_run(float* v, int64_t count, float scale, float level, const float* weight) {
  combine(v, count, scale, level, weight);
}
RAD_VECTOR_CLONES void combine_run(double* v, int64_t count, double scale, double level,
                                   const double* weight) {
  combine(v, count, scale, level, weight);
}

#define RAD_STORE(T)                                                                  \
  RAD_VECTOR_CLONES void store_run(const Accumulate<T>* from, int64_t count, T* to) { \
    for (int64_t i = 0; i < count; ++i) to[i] = narrow<T>(from[i]);                   \
  }
RAD_STORE(float)
RAD_STORE(double)
RAD_STORE(BFloat16)
RAD_STORE(Half)

template <class T>
void encode_blocks(const ProbabilitiesArgs& args, const Trailer& trailer, int64_t first, int64_t last) {
  using Real = Accumulate<T>;
  const ProbabilityLayout layout(args.n, args.bits);
  auto* codes = static_cast<uint8_t*>(args.saved);
  auto* steps = reinterpret_cast<uint16_t*>(codes + layout.step);
  Block<Real> p;
  uint16_t noise[kBlock];
  alignas(64) uint8_t bytes[kBlock];
  for (int64_t block = first; block < last; ++block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, args.n - begin);
    load_block(static_cast<const T*>(args.log_p) + begin, count, p);
    to_probabilities(p.value);
    std::fill(p.value + count, p.value + kBlock, Real(0));
    dither_block(trailer.key, trailer.salt, 0, begin, noise, Role::kProbability);
    for (int g = 0; g < kGroups; ++g) {
      const int at = g * kGroup;
      Real lo, hi;
      range_of(p.value + at, &lo, &hi);
      const float step = Dither<Real>::step_for(0, hi, args.bits);
      encode_group(Dither<Real>(0, step, args.bits), p.value + at, noise + at, args.bits,
                   bytes + at * args.bits / 8);
      if (at < count) steps[begin / kGroup + g] = bf16_bits(step);
    }
    const int64_t at = begin * args.bits / 8;
    std::memcpy(codes + at, bytes, std::min<int64_t>(kBlock * args.bits / 8, layout.codes - at));
  }
}

// The elements from `begin` on, in runs: of one row's classes, or (inner > 1) of one class's places.
template <class Real>
void combine_block(const CrossEntropyBackwardArgs& args, int64_t begin, int64_t count, Real* value) {
  const auto* scale = static_cast<const Real*>(args.scale);
  const auto* hit = static_cast<const Real*>(args.hit);
  const auto* level = static_cast<const Real*>(args.level);
  const auto* weight = static_cast<const Real*>(args.class_weight);
  for (int64_t i = 0, run; i < count; i += run) {
    const int64_t line = (begin + i) / args.inner, position = (begin + i) % args.inner;
    const int64_t c = line % args.classes, place = line / args.classes * args.inner + position;
    Real* v = value + i;
    if (args.inner == 1) {
      run = std::min(count - i, args.classes - c);
      combine_run(v, run, scale[place], level ? level[place] : Real(0), weight ? weight + c : nullptr);
      const int64_t ahead = args.target ? args.target[place] - c : -1;
      if (0 <= ahead && ahead < run) v[ahead] -= hit[place];
      continue;
    }
    run = std::min(count - i, args.inner - position);
    for (int64_t k = 0; k < run; ++k) {
      v[k] = product(scale[place + k], v[k]);
      if (level) v[k] -= weight ? product(level[place + k], weight[c]) : level[place + k];
      if (args.target && args.target[place + k] == c) v[k] -= hit[place + k];
    }
  }
}

template <class T>
void decode_blocks(const CrossEntropyBackwardArgs& args, const Trailer& trailer, int64_t first,
                   int64_t last) {
  using Real = Accumulate<T>;
  const int64_t n = args.outer * args.classes * args.inner;
  const ProbabilityLayout layout(n, args.bits);
  const auto* codes = static_cast<const uint8_t*>(args.saved);
  const auto* steps = reinterpret_cast<const uint16_t*>(codes + layout.step);
  Block<Real> p;
  uint16_t noise[kBlock];
  alignas(64) uint8_t bytes[kBlock] = {};
  for (int64_t block = first; block < last; ++block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, n - begin);
    const int64_t at = begin * args.bits / 8;
    std::memcpy(bytes, codes + at, std::min<int64_t>(kBlock * args.bits / 8, layout.codes - at));
    dither_block(trailer.key, trailer.salt, 0, begin, noise, Role::kProbability);
    for (int g = 0; g * kGroup < count; ++g) {
      const Dither<Real> dither(0, bf16_value(steps[begin / kGroup + g]), args.bits);
      decode_group(dither, bytes + g * kGroup * args.bits / 8, noise + g * kGroup, args.bits,
                   p.value + g * kGroup);
    }
    combine_block(args, begin, count, p.value);
    store_run(p.value, count, static_cast<T*>(args.dx) + begin);
  }
}

}  // namespace

int probabilities(const ProbabilitiesArgs& args) {
  const ProbabilityLayout layout(args.n, args.bits);
  auto* data = static_cast<char*>(args.saved);
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  std::fill(data + layout.codes, data + layout.step, 0);
  std::fill(data + layout.steps_end, data + layout.trailer, 0);
  *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.exec, blocks_of(args.n), kGrain,
                 [&](int64_t begin, int64_t end) { encode_blocks<T>(args, *trailer, begin, end); });
    return 0;
  });
}

int cross_entropy_backward(const CrossEntropyBackwardArgs& args) {
  const int64_t n = args.outer * args.classes * args.inner;
  const ProbabilityLayout layout(n, args.bits);
  const auto* trailer =
      reinterpret_cast<const Trailer*>(static_cast<const char*>(args.saved) + layout.trailer);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.exec, blocks_of(n), kGrain,
                 [&](int64_t begin, int64_t end) { decode_blocks<T>(args, *trailer, begin, end); });
    return 0;
  });
}

}  // namespace rad::cpu

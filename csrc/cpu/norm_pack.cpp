#include <cmath>
#include <cstring>

#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/norm_params.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class Real>
[[gnu::always_inline]] inline void add_squares_of(const Real* v, Real mean, int64_t count, Real* lanes) {
  for (int64_t i = 0; i < count; ++i) lanes[i] += (v[i] - mean) * (v[i] - mean);
}
template <class Real>
[[gnu::always_inline]] inline void normalise_of(const Real* v, const Real* mean, const Real* rstd,
                                                Real* out) {
  for (int64_t i = 0; i < kBlock; ++i) out[i] = (v[i] - mean[i]) * rstd[i];
}
RAD_VECTOR_CLONES void add_squares(const float* v, float mean, int64_t count, float* lanes) {
  add_squares_of(v, mean, count, lanes);
}
RAD_VECTOR_CLONES void add_squares(const double* v, double mean, int64_t count, double* lanes) {
  add_squares_of(v, mean, count, lanes);
}
RAD_VECTOR_CLONES void normalise(const float* v, const float* mean, const float* rstd, float* out) {
  normalise_of(v, mean, rstd, out);
}
RAD_VECTOR_CLONES void normalise(const double* v, const double* mean, const double* rstd, double* out) {
  normalise_of(v, mean, rstd, out);
}

// Values of 16-bit types widened into `buffer`; others where they lie.
template <class T>
const Accumulate<T>* widened(const T* v, int64_t count, Accumulate<T>* buffer) {
  if constexpr (std::is_same_v<T, Accumulate<T>>) {
    return v;
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = widen(v[i]);
    return buffer;
  }
}

template <class Real>
Real sum_of(Real* lanes) {
  for (int half = kNormLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Statistics of one set of consecutive elements.
template <class T>
void statistics(const NormPackArgs& args, const T* x, Accumulate<T>* mean, Accumulate<T>* rstd) {
  using Real = Accumulate<T>;
  const int64_t set = args.shape.set;
  Real buffer[kNormLanes], lanes[kNormLanes];
  *mean = 0;
  if (args.centred) {
    std::fill(lanes, lanes + kNormLanes, Real(0));
    for (int64_t at = 0; at < set; at += kNormLanes) {
      const int64_t count = std::min<int64_t>(kNormLanes, set - at);
      const Real* values = widened(x + at, count, buffer);
      for (int64_t i = 0; i < count; ++i) lanes[i] += values[i];
    }
    *mean = sum_of(lanes) / static_cast<Real>(set);
  }
  std::fill(lanes, lanes + kNormLanes, Real(0));
  for (int64_t at = 0; at < set; at += kNormLanes) {
    const int64_t count = std::min<int64_t>(kNormLanes, set - at);
    add_squares(widened(x + at, count, buffer), *mean, count, lanes);
  }
  *rstd = Real(1) / std::sqrt(sum_of(lanes) / static_cast<Real>(set) + static_cast<Real>(args.eps));
}

// Codes of elements [at, at + count) of a line from statistics of each.
template <class T>
void encode_piece(const SavedView& saved, int64_t line, int64_t at, int64_t count, const T* x,
                  const Accumulate<T>* mean, const Accumulate<T>* rstd) {
  Accumulate<T> values[kBlock] = {}, out[kBlock];
  for (int64_t i = 0; i < count; ++i) values[i] = widen(x[i]);
  normalise(values, mean, rstd, out);
  encode_block<Accumulate<T>, BFloat16>(saved, 0, line, at, count, out);
}

template <class T>
void pack_sets(const NormPackArgs& args, const SavedView& saved) {
  using Real = Accumulate<T>;
  const int64_t set = args.shape.set;
  parallel_for(args.exec, saved.layout.lines, grain_for(set * sizeof(T)), [&](int64_t begin, int64_t end) {
    Real mean[kBlock], rstd[kBlock];
    for (int64_t line = begin; line < end; ++line) {
      const T* x = static_cast<const T*>(args.x) + line * set;
      Real m, r;
      statistics(args, x, &m, &r);
      static_cast<Real*>(args.rstd)[line] = r;
      std::fill(mean, mean + kBlock, m);
      std::fill(rstd, rstd + kBlock, r);
      for_each_block(
          set, [&](int64_t at, int64_t count) { encode_piece(saved, line, at, count, x + at, mean, rstd); });
    }
  });
}

template <class T>
void pack_channels(const NormPackArgs& args, const SavedView& saved) {
  using Real = Accumulate<T>;
  const int64_t n = args.shape.n;
  parallel_for(args.exec, (n + kBlock - 1) / kBlock, grain_for(kBlock * sizeof(T)),
               [&](int64_t begin, int64_t end) {
                 Real mean[kBlock] = {}, rstd[kBlock] = {};
                 for (int64_t at = begin * kBlock; at < std::min(n, end * kBlock); at += kBlock) {
                   const int64_t count = std::min(kBlock, n - at);
                   spread_params(args.shape, static_cast<const Real*>(args.mean), at, count, mean);
                   spread_params(args.shape, static_cast<const Real*>(args.rstd), at, count, rstd);
                   encode_piece(saved, 0, at, count, static_cast<const T*>(args.x) + at, mean, rstd);
                 }
               });
}

}  // namespace

int norm_pack(const NormPackArgs& args) {
  const SavedLayout layout = norm_layout(args.shape, args.bits);
  char* data = static_cast<char*>(args.saved);
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
  for (int plane = 0; plane < Gaps::kCount; ++plane)
    std::memset(data + layout.gaps.begin[plane], 0, layout.gaps.end[plane] - layout.gaps.begin[plane]);
  const SavedView saved(norm_spec(args.bits), kNormLo, norm_lines(args.shape), norm_width(args.shape),
                        args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    args.shape.by_channel ? pack_channels<T>(args, saved) : pack_sets<T>(args, saved);
    return 0;
  });
}

}  // namespace rad::cpu

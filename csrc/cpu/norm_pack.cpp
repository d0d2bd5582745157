#include <cmath>
#include <cstring>

#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/norm_params.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

// The loops, of fixed length where they can be, so that they vectorise.
template <class Real>
struct Loops {
  RAD_INLINE static void add(const Real* v, int64_t count, Real* lanes) {
    if (count == kNormLanes)
      for (int64_t i = 0; i < kNormLanes; ++i) lanes[i] += v[i];
    else
      for (int64_t i = 0; i < count; ++i) lanes[i] += v[i];
  }
  RAD_INLINE static void add_squares(const Real* v, Real mean, int64_t count, Real* lanes) {
    if (count == kNormLanes)
      for (int64_t i = 0; i < kNormLanes; ++i) lanes[i] += (v[i] - mean) * (v[i] - mean);
    else
      for (int64_t i = 0; i < count; ++i) lanes[i] += (v[i] - mean) * (v[i] - mean);
  }
  RAD_INLINE static Real sum(Real* lanes) {
    for (int half = kNormLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }
  RAD_INLINE static void normalise(const Real* v, const Real* mean, const Real* rstd, Real* out) {
    for (int64_t i = 0; i < kBlock; ++i) out[i] = (v[i] - mean[i]) * rstd[i];
  }
};

// Function multiversioning takes no templates, so one overload a type.
#define RAD_LOOPS(Real)                                                                            \
  RAD_VECTOR_CLONES void add(const Real* v, int64_t count, Real* lanes) {                          \
    Loops<Real>::add(v, count, lanes);                                                             \
  }                                                                                                \
  RAD_VECTOR_CLONES void add_squares(const Real* v, Real mean, int64_t count, Real* lanes) {       \
    Loops<Real>::add_squares(v, mean, count, lanes);                                               \
  }                                                                                                \
  RAD_VECTOR_CLONES Real sum_of(Real* lanes) { return Loops<Real>::sum(lanes); }                   \
  RAD_VECTOR_CLONES void normalise(const Real* v, const Real* mean, const Real* rstd, Real* out) { \
    Loops<Real>::normalise(v, mean, rstd, out);                                                    \
  }
RAD_LOOPS(float)
RAD_LOOPS(double)
#undef RAD_LOOPS

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
      add(widened(x + at, count, buffer), count, lanes);
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
struct Piece {
  using Real = Accumulate<T>;
  Block<Real> mean, rstd, values, out;

  void encode(const SavedView& saved, int64_t line, int64_t at, int64_t count, const T* x) {
    load_block(x, count, values);
    normalise(values.value, mean.value, rstd.value, out.value);
    encode_block<Real, BFloat16>(saved, 0, line, at, count, out.value);
  }
};

template <class T>
void pack_sets(const NormPackArgs& args, const SavedView& saved) {
  using Real = Accumulate<T>;
  const int64_t set = args.shape.set;
  parallel_for(args.exec, saved.layout.lines, grain_for(set * sizeof(T)), [&](int64_t begin, int64_t end) {
    Piece<T> piece;
    for (int64_t line = begin; line < end; ++line) {
      const T* x = static_cast<const T*>(args.x) + line * set;
      Real m, r;
      statistics(args, x, &m, &r);
      static_cast<Real*>(args.rstd)[line] = r;
      piece.mean.fill(m);
      piece.rstd.fill(r);
      for_each_block(set, [&](int64_t at, int64_t count) { piece.encode(saved, line, at, count, x + at); });
    }
  });
}

template <class T>
void pack_channels(const NormPackArgs& args, const SavedView& saved) {
  using Real = Accumulate<T>;
  const int64_t n = args.shape.n;
  parallel_for(
      args.exec, (n + kBlock - 1) / kBlock, grain_for(kBlock * sizeof(T)), [&](int64_t begin, int64_t end) {
        Piece<T> piece;
        for (int64_t at = begin * kBlock; at < std::min(n, end * kBlock); at += kBlock) {
          const int64_t count = std::min(kBlock, n - at);
          spread_params(args.shape, static_cast<const Real*>(args.mean), at, count, piece.mean.value);
          spread_params(args.shape, static_cast<const Real*>(args.rstd), at, count, piece.rstd.value);
          piece.encode(saved, 0, at, count, static_cast<const T*>(args.x) + at);
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

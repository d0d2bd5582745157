#include <algorithm>
#include <cstring>

#include "core/dither.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/norm_params.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

// Slices of the data whose parameter sums are made apart and then added in order, however many threads work.
constexpr int64_t kSlices = 32;
// Sets up to this many values are decoded once; longer ones twice, so that no dense copy appears.
constexpr int64_t kCached = 1 << 15;

int64_t slices_of(const NormShape& s) {
  return std::min(kSlices, s.by_channel ? (s.n + kBlock - 1) / kBlock : s.n / s.set);
}

// The loops of a block, of fixed length, so that they vectorise. dy ends with zeros where the block does.
template <class Real>
struct Loops {
  // products = dy q; the sums of a = weight dy, and of a q.
  RAD_INLINE static void sums(const Real* dy, const Real* weight, const Real* q, Real* products, Real* sum,
                              Real* sum_q) {
    using W = Wide<Real>;
    typename W::Vector part = {}, part_q = {};
    for (int64_t i = 0; i < kBlock; i += W::kCount) {
      typename W::Vector a = W(dy + i).v;
      const typename W::Vector values = W(q + i).v, product = a * values;
      a *= W(weight + i).v;
      part += a;
      part_q += a * values;
      std::memcpy(products + i, &product, sizeof product);
    }
    const auto add = [](auto& x, const auto& y) __attribute__((always_inline)) { x += y; };
    *sum += W::joined(part, add);
    *sum_q += W::joined(part_q, add);
  }

  // rstd (a - mean(a) - q mean(a q) + a step^2 / (12 d)) of a = weight dy, the last factor in `noise`.
  RAD_INLINE static void input_grad(const Real* dy, const Real* weight, const Real* q, const Real* noise,
                                    const Real* mean, const Real* mean_q, const Real* rstd, Real* out) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const Real a = dy[i] * weight[i];
      out[i] = rstd[i] * (a - mean[i] - q[i] * mean_q[i] + a * noise[i]);
    }
  }
};

// Function multiversioning takes no templates, so one overload a type.
#define RAD_LOOPS(Real)                                                                                     \
  RAD_VECTOR_CLONES void sums(const Real* dy, const Real* weight, const Real* q, Real* products, Real* sum, \
                              Real* sum_q) {                                                                \
    Loops<Real>::sums(dy, weight, q, products, sum, sum_q);                                                 \
  }                                                                                                         \
  RAD_VECTOR_CLONES void input_grad(const Real* dy, const Real* weight, const Real* q, const Real* noise,   \
                                    const Real* mean, const Real* mean_q, const Real* rstd, Real* out) {    \
    Loops<Real>::input_grad(dy, weight, q, noise, mean, mean_q, rstd, out);                                 \
  }
RAD_LOOPS(float)
RAD_LOOPS(double)
#undef RAD_LOOPS

template <class T>
struct Backward {
  using Real = Accumulate<T>;
  const NormBackwardArgs& args;
  const NormShape& shape;
  SavedView saved;
  const Real *rstd, *weight;

  explicit Backward(const NormBackwardArgs& a)
      : args(a),
        shape(a.shape),
        saved(norm_spec(a.bits), kNormLo, norm_lines(a.shape), norm_width(a.shape), a.saved),
        rstd(static_cast<const Real*>(a.rstd)),
        weight(static_cast<const Real*>(a.weight)) {}

  // dy of `count` elements, zeros up to a block.
  void load(int64_t first, int64_t count, Block<Real>& dy) const {
    load_block(static_cast<const T*>(args.dy) + first, count, dy);
    std::fill(dy.value + count, dy.value + kBlock, Real(0));
  }
  void store(int64_t first, int64_t count, const Block<Real>& values) const {
    store_block(values, count, static_cast<T*>(args.dx) + first);
  }
  // step^2 / (12 d) of each position of a block.
  void noise_of(int64_t line, int64_t at, int64_t count, Real* out) const {
    const auto* steps = reinterpret_cast<const uint16_t*>(saved.data + saved.layout.step);
    for (int64_t i = 0; i < count; i += kGroup) {
      const int64_t place = saved.layout.group_place(0, (at + i) / kGroup, line);
      const Real step = bits_float(static_cast<uint32_t>(steps[place]) << 16);
      std::fill(out + i, out + i + kGroup, step * step / (12 * static_cast<Real>(shape.set)));
    }
  }
  // d(weight) and d(bias) of a block into the sums of its slice, from dy and its products with q.
  void add_params(int64_t first, int64_t count, const Block<Real>& dy, const Block<Real>& products,
                  Real* part) const {
    add_to_params(shape, products.value, first, count, part);
    add_to_params(shape, dy.value, first, count, part + shape.params);
  }

  struct Scratch {
    Block<Real> dy, local, products, factor, mean, mean_q, scale, noise, dx;
    Scratch() { factor.fill(1); }
  };

  void one_set(int64_t line, Scratch& scratch, Real* cache, Real* part) const {
    auto& [dy, local, products, factor, mean, mean_q, scale, noise, dx] = scratch;
    const int64_t set = shape.set, first = line * set;
    const bool cached = set <= kCached;
    Real sum = 0, sum_q = 0;
    const auto begin = [&](int64_t at, int64_t count) {
      load(first + at, count, dy);
      if (weight) spread_params(shape, weight, first + at, count, factor.value);
      return cached ? cache + at : local.value;
    };
    for_each_block(set, [&](int64_t at, int64_t count) {
      Real* q = begin(at, count);
      decode_block<BFloat16>(saved, 0, line, at, count, q);
      std::fill(q + count, q + kBlock, Real(0));
      sums(dy.value, factor.value, q, products.value, &sum, &sum_q);
      if (part) add_params(first + at, count, dy, products, part);
    });
    if (!args.dx) return;
    mean.fill(args.centred ? sum / static_cast<Real>(set) : Real(0));
    mean_q.fill(sum_q / static_cast<Real>(set));
    scale.fill(rstd[line]);
    for_each_block(set, [&](int64_t at, int64_t count) {
      Real* q = begin(at, count);
      if (!cached) decode_block<BFloat16>(saved, 0, line, at, count, q);
      noise_of(line, at, count, noise.value);
      input_grad(dy.value, factor.value, q, noise.value, mean.value, mean_q.value, scale.value, dx.value);
      store(first + at, count, dx);
    });
  }

  // Sums over the elements of each channel: d(weight), then d(bias).
  void channel_sums(int64_t begin, int64_t end, Real* part) const {
    Block<Real> dy, q, products, ones;
    Real sum = 0, sum_q = 0;
    ones.fill(1);
    for (int64_t at = begin * kBlock; at < std::min(shape.n, end * kBlock); at += kBlock) {
      const int64_t count = std::min(kBlock, shape.n - at);
      load(at, count, dy);
      decode_block<BFloat16>(saved, 0, 0, at, count, q.value);
      sums(dy.value, ones.value, q.value, products.value, &sum, &sum_q);
      add_params(at, count, dy, products, part);
    }
  }

  // `means` of each channel: of dy q, then of dy, then rstd weight.
  void channel_input_grad(int64_t begin, int64_t end, const Real* means) const {
    Block<Real> dy, q, noise, mean, mean_q, scale, ones, dx;
    ones.fill(1);
    for (int64_t at = begin * kBlock; at < std::min(shape.n, end * kBlock); at += kBlock) {
      const int64_t count = std::min(kBlock, shape.n - at);
      load(at, count, dy);
      decode_block<BFloat16>(saved, 0, 0, at, count, q.value);
      noise_of(0, at, count, noise.value);
      spread_params(shape, means, at, count, mean_q.value);
      spread_params(shape, means + shape.params, at, count, mean.value);
      spread_params(shape, means + 2 * shape.params, at, count, scale.value);
      input_grad(dy.value, ones.value, q.value, noise.value, mean.value, mean_q.value, scale.value, dx.value);
      store(at, count, dx);
    }
  }

  int run() const {
    const int64_t params = shape.params, slices = slices_of(shape);
    const int64_t items = shape.by_channel ? (shape.n + kBlock - 1) / kBlock : shape.n / shape.set;
    const bool wanted = args.weight_grad != nullptr || shape.by_channel;
    Real* parts = static_cast<Real*>(args.workspace);
    Real* cache = parts + (wanted ? params * (2 * slices + 1) : 0);
    if (wanted) std::memset(parts, 0, 2 * params * slices * sizeof(Real));
    const int64_t cached = cache_size();
    parallel_for(args.exec, slices, 1, [&](int64_t first, int64_t last) {
      for (int64_t slice = first; slice < last; ++slice) {
        const int64_t begin = items * slice / slices, end = items * (slice + 1) / slices;
        Real* part = wanted ? parts + 2 * params * slice : nullptr;
        if (shape.by_channel) {
          channel_sums(begin, end, part);
        } else {
          Scratch scratch;
          for (int64_t line = begin; line < end; ++line) one_set(line, scratch, cache + cached * slice, part);
        }
      }
    });
    if (!wanted) return 0;
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = 0; i < 2 * params; ++i) parts[i] += parts[2 * params * slice + i];
    if (args.weight_grad) {
      std::copy(parts, parts + params, static_cast<Real*>(args.weight_grad));
      std::copy(parts + params, parts + 2 * params, static_cast<Real*>(args.bias_grad));
    }
    if (!shape.by_channel || !args.dx) return 0;
    const Real each = 1 / static_cast<Real>(shape.set);
    for (int64_t i = 0; i < 2 * params; ++i) parts[i] *= each;
    for (int64_t c = 0; c < params; ++c) parts[2 * params + c] = rstd[c] * (weight ? weight[c] : Real(1));
    parallel_for(args.exec, items, grain_for(kBlock * sizeof(T)),
                 [&](int64_t begin, int64_t end) { channel_input_grad(begin, end, parts); });
    return 0;
  }

  int64_t cache_size() const { return cache_of(shape); }
  static int64_t cache_of(const NormShape& s) {
    return s.by_channel || s.set > kCached ? 0 : (s.set + kBlock - 1) / kBlock * kBlock;
  }
};

}  // namespace

int64_t norm_backward_workspace(const NormBackwardArgs& args) {
  const int64_t item = args.dtype == DType::kF64 ? 8 : 4, slices = slices_of(args.shape);
  return item * (args.shape.params * (2 * slices + 1) + Backward<float>::cache_of(args.shape) * slices);
}

int norm_backward(const NormBackwardArgs& args) {
  if (args.shape.n == 0) return 0;
  return visit_dtype(args.dtype,
                     [&](auto tag) { return Backward<typename decltype(tag)::type>(args).run(); });
}

}  // namespace rad::cpu

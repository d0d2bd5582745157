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

template <class Real>
[[gnu::always_inline]] inline void sums_of(const Real* a, const Real* q, Real* sum, Real* sum_q) {
  constexpr int kParts = 16;
  Real part[kParts] = {}, part_q[kParts] = {};
  for (int64_t i = 0; i < kBlock; i += kParts) {
    for (int j = 0; j < kParts; ++j) {
      part[j] += a[i + j];
      part_q[j] += a[i + j] * q[i + j];
    }
  }
  for (int j = 0; j < kParts; ++j) *sum += part[j], *sum_q += part_q[j];
}
RAD_VECTOR_CLONES void sums(const float* a, const float* q, float* sum, float* sum_q) {
  sums_of(a, q, sum, sum_q);
}
RAD_VECTOR_CLONES void sums(const double* a, const double* q, double* sum, double* sum_q) {
  sums_of(a, q, sum, sum_q);
}

// rstd (a - mean(a) - q mean(a q) + a step^2 / (12 d)), the last factor in `noise`.
template <class Real>
[[gnu::always_inline]] inline void input_grad_of(const Real* a, const Real* q, const Real* noise,
                                                 const Real* mean, const Real* mean_q, const Real* rstd,
                                                 Real* out) {
  for (int64_t i = 0; i < kBlock; ++i)
    out[i] = rstd[i] * (a[i] - mean[i] - q[i] * mean_q[i] + a[i] * noise[i]);
}
RAD_VECTOR_CLONES void input_grad(const float* a, const float* q, const float* noise, const float* mean,
                                  const float* mean_q, const float* rstd, float* out) {
  input_grad_of(a, q, noise, mean, mean_q, rstd, out);
}
RAD_VECTOR_CLONES void input_grad(const double* a, const double* q, const double* noise, const double* mean,
                                  const double* mean_q, const double* rstd, double* out) {
  input_grad_of(a, q, noise, mean, mean_q, rstd, out);
}

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
  void load(int64_t first, int64_t count, Real* dy) const {
    const T* from = static_cast<const T*>(args.dy) + first;
    for (int64_t i = 0; i < count; ++i) dy[i] = widen(from[i]);
    std::fill(dy + count, dy + kBlock, Real(0));
  }
  void store(int64_t first, int64_t count, const Real* values) const {
    T* to = static_cast<T*>(args.dx) + first;
    for (int64_t i = 0; i < count; ++i) to[i] = narrow<T>(values[i]);
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
  // d(weight) and d(bias) of a block into the sums of its slice.
  void add_params(int64_t first, int64_t count, const Real* dy, const Real* q, Real* part) const {
    Real products[kBlock];
    for (int64_t i = 0; i < count; ++i) products[i] = dy[i] * q[i];
    add_to_params(shape, products, first, count, part);
    add_to_params(shape, dy, first, count, part + shape.params);
  }

  void one_set(int64_t line, Real* cache, Real* part) const {
    const int64_t set = shape.set, first = line * set;
    const bool cached = set <= kCached;
    Real dy[kBlock], local[kBlock], factor[kBlock], noise[kBlock] = {}, out[kBlock], sum = 0, sum_q = 0;
    const auto scaled = [&](int64_t at, int64_t count) {
      load(first + at, count, dy);
      if (!weight) return;
      spread_params(shape, weight, first + at, count, factor);
      std::fill(factor + count, factor + kBlock, Real(0));
    };
    const auto values = [&](int64_t at) { return cached ? cache + at : local; };
    for_each_block(set, [&](int64_t at, int64_t count) {
      scaled(at, count);
      Real* q = values(at);
      decode_block<BFloat16>(saved, 0, line, at, count, q);
      std::fill(q + count, q + kBlock, Real(0));
      if (part) add_params(first + at, count, dy, q, part);
      for (int64_t i = 0; weight && i < kBlock; ++i) dy[i] *= factor[i];
      sums(dy, q, &sum, &sum_q);
    });
    if (!args.dx) return;
    Real mean[kBlock], mean_q[kBlock], scale[kBlock];
    std::fill(mean, mean + kBlock, args.centred ? sum / static_cast<Real>(set) : Real(0));
    std::fill(mean_q, mean_q + kBlock, sum_q / static_cast<Real>(set));
    std::fill(scale, scale + kBlock, rstd[line]);
    for_each_block(set, [&](int64_t at, int64_t count) {
      scaled(at, count);
      for (int64_t i = 0; weight && i < kBlock; ++i) dy[i] *= factor[i];
      Real* q = values(at);
      if (!cached) decode_block<BFloat16>(saved, 0, line, at, count, q);
      noise_of(line, at, count, noise);
      input_grad(dy, q, noise, mean, mean_q, scale, out);
      store(first + at, count, out);
    });
  }

  // Sums over the elements of each channel: d(weight), then d(bias).
  void channel_sums(int64_t begin, int64_t end, Real* part) const {
    Real dy[kBlock], q[kBlock];
    for (int64_t at = begin * kBlock; at < std::min(shape.n, end * kBlock); at += kBlock) {
      const int64_t count = std::min(kBlock, shape.n - at);
      load(at, count, dy);
      decode_block<BFloat16>(saved, 0, 0, at, count, q);
      add_params(at, count, dy, q, part);
    }
  }

  // `sums` as channel_sums made them: with a = weight dy they are `set` means over the weight.
  void channel_input_grad(int64_t begin, int64_t end, const Real* sums, const Real* scale) const {
    Real dy[kBlock], q[kBlock] = {}, noise[kBlock] = {}, mean[kBlock] = {}, mean_q[kBlock] = {},
                     factor[kBlock] = {}, out[kBlock];
    const Real each = 1 / static_cast<Real>(shape.set);
    for (int64_t at = begin * kBlock; at < std::min(shape.n, end * kBlock); at += kBlock) {
      const int64_t count = std::min(kBlock, shape.n - at);
      load(at, count, dy);
      decode_block<BFloat16>(saved, 0, 0, at, count, q);
      noise_of(0, at, count, noise);
      spread_params(shape, sums, at, count, mean_q);
      spread_params(shape, sums + shape.params, at, count, mean);
      spread_params(shape, scale, at, count, factor);
      for (int64_t i = 0; i < kBlock; ++i) mean_q[i] *= each, mean[i] *= each;
      input_grad(dy, q, noise, mean, mean_q, factor, out);
      store(at, count, out);
    }
  }

  int run() const {
    const int64_t params = shape.params, slices = slices_of(shape);
    const int64_t items = shape.by_channel ? (shape.n + kBlock - 1) / kBlock : shape.n / shape.set;
    const bool wanted = args.weight_grad != nullptr || shape.by_channel;
    Real* parts = static_cast<Real*>(args.workspace);
    Real* cache = parts + (wanted ? 2 * params * (slices + 2) : 0);
    if (wanted) std::memset(parts, 0, 2 * params * slices * sizeof(Real));
    const int64_t cached = cache_size();
    parallel_for(args.exec, slices, 1, [&](int64_t first, int64_t last) {
      for (int64_t slice = first; slice < last; ++slice) {
        const int64_t begin = items * slice / slices, end = items * (slice + 1) / slices;
        Real* part = wanted ? parts + 2 * params * slice : nullptr;
        if (shape.by_channel) {
          channel_sums(begin, end, part);
        } else {
          for (int64_t line = begin; line < end; ++line) one_set(line, cache + cached * slice, part);
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
    Real* scale = parts + 2 * params * slices;
    for (int64_t c = 0; c < params; ++c) scale[c] = rstd[c] * (weight ? weight[c] : Real(1));
    parallel_for(args.exec, items, grain_for(kBlock * sizeof(T)),
                 [&](int64_t begin, int64_t end) { channel_input_grad(begin, end, parts, scale); });
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
  return item * (2 * args.shape.params * (slices + 2) + Backward<float>::cache_of(args.shape) * slices);
}

int norm_backward(const NormBackwardArgs& args) {
  if (args.shape.n == 0) return 0;
  return visit_dtype(args.dtype,
                     [&](auto tag) { return Backward<typename decltype(tag)::type>(args).run(); });
}

}  // namespace rad::cpu

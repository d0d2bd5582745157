#include "core/hadamard.h"

#include <algorithm>
#include <utility>

#include "core/dtype.h"
#include "core/matrix_view.h"
#include "core/sampler.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

// A step takes the top bit of the index, which becomes the lowest: log2(order) of them transform every bit
// and bring each back to its place. Loads stay consecutive, so that all steps vectorise alike.
template <class Sum>
[[gnu::always_inline]] inline void one_bit(const Sum* __restrict from, Sum* __restrict to, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const Sum a = from[i], b = from[i + half];
    to[2 * i] = a + b;
    to[2 * i + 1] = a - b;
  }
}

// Two steps at once.
template <class Sum>
[[gnu::always_inline]] inline void two_bits(const Sum* __restrict from, Sum* __restrict to, int64_t quarter) {
  for (int64_t i = 0; i < quarter; ++i) {
    const Sum a = from[i], b = from[i + quarter], c = from[i + 2 * quarter], d = from[i + 3 * quarter];
    const Sum even = a + c, odd = b + d, even_difference = a - c, odd_difference = b - d;
    to[4 * i] = even + odd;
    to[4 * i + 1] = even - odd;
    to[4 * i + 2] = even_difference + odd_difference;
    to[4 * i + 3] = even_difference - odd_difference;
  }
}

RAD_VECTOR_CLONES void step(const float* from, float* to, int64_t half) { one_bit(from, to, half); }
RAD_VECTOR_CLONES void step(const double* from, double* to, int64_t half) { one_bit(from, to, half); }
RAD_VECTOR_CLONES void two_steps(const float* from, float* to, int64_t q) { two_bits(from, to, q); }
RAD_VECTOR_CLONES void two_steps(const double* from, double* to, int64_t q) { two_bits(from, to, q); }

// values <- H values, with `other` of the same length as scratch; returns where the result lies.
template <class Sum>
Sum* transform(Sum* values, Sum* other, int64_t order) {
  int64_t width = order;
  for (; width > 2; width /= 4) {
    two_steps(values, other, order / 4);
    std::swap(values, other);
  }
  if (width == 1) return values;
  step(values, other, order / 2);
  return other;
}

// What all rows share, at the start of the workspace; then two lines a thread.
template <class Sum>
struct Plan {
  int64_t k, order;
  int64_t* column;  // [k]
  Sum* sign;        // [features]
  Sum* lines;

  explicit Plan(const HadamardArgs& args)
      : k(kept(args.features, args.spec.num, args.spec.den)),
        order(hadamard_order(args.features)),
        column(static_cast<int64_t*>(args.workspace)),
        sign(reinterpret_cast<Sum*>(column + k)),
        lines(sign + args.features) {
    const Permutation permutation = hadamard_columns(args.trailer->key, args.trailer->salt, order);
    for (int64_t j = 0; j < k; ++j) column[j] = permutation(j);
    for (int64_t f = 0; f < args.features; ++f)
      sign[f] = hadamard_sign(args.trailer->key, args.trailer->salt, f) ? Sum(1) : Sum(-1);
  }
};

template <class T>
void forward_row(const HadamardArgs& args, const Plan<Accumulate<T>>& plan, int64_t r, Accumulate<T>* line) {
  using Sum = Accumulate<T>;
  const T* x = static_cast<const T*>(args.x.data) + row_offset(args.x, r);
  for (int64_t f = 0; f < args.features; ++f) line[f] = widen(x[f * args.x.col_stride]) * plan.sign[f];
  std::fill(line + args.features, line + plan.order, Sum(0));
  const Sum* sums = transform(line, line + plan.order, plan.order);
  T* out = static_cast<T*>(args.out) + r * plan.k;
  for (int64_t j = 0; j < plan.k; ++j)
    out[j] = narrow<T>(sums[plan.column[j]] * static_cast<Sum>(args.scale));
}

template <class T>
void transposed_row(const HadamardArgs& args, const Plan<Accumulate<T>>& plan, int64_t r,
                    Accumulate<T>* line) {
  using Sum = Accumulate<T>;
  const T* x = static_cast<const T*>(args.x.data) + row_offset(args.x, r);
  std::fill(line, line + plan.order, Sum(0));
  for (int64_t j = 0; j < plan.k; ++j) line[plan.column[j]] = widen(x[j * args.x.col_stride]);
  const Sum* sums = transform(line, line + plan.order, plan.order);
  T* out = static_cast<T*>(args.out) + r * args.features;
  for (int64_t f = 0; f < args.features; ++f)
    out[f] = narrow<T>(sums[f] * plan.sign[f] * static_cast<Sum>(args.scale));
}

}  // namespace

int64_t hadamard_workspace(const HadamardArgs& args) {
  const int64_t item = args.dtype == DType::kF64 ? 8 : 4, order = hadamard_order(args.features);
  return 8 * kept(args.features, args.spec.num, args.spec.den) +
         item * (args.features + 2 * order * std::max(args.exec.threads, 1));
}

int hadamard(const HadamardArgs& args) {
  const int64_t rows = args.x.rows, threads = std::max(args.exec.threads, 1);
  if (rows == 0 || args.features == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const Plan<Accumulate<T>> plan(args);
    parallel_for(args.exec, threads, 1, [&](int64_t first, int64_t last) {
      for (int64_t thread = first; thread < last; ++thread) {
        Accumulate<T>* line = plan.lines + 2 * plan.order * thread;
        for (int64_t r = rows * thread / threads; r < rows * (thread + 1) / threads; ++r)
          args.transposed ? transposed_row<T>(args, plan, r, line) : forward_row<T>(args, plan, r, line);
      }
    });
    return 0;
  });
}

}  // namespace rad::cpu

#include "core/norm_draw.h"

#include <algorithm>
#include <cmath>

#include "core/matrix_view.h"
#include "cpu/codes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void row_norms(const NormSampleArgs& args, float* norm) {
  const MatrixView& x = args.x;
  parallel_for(args.exec, x.rows, grain_for(x.cols * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* row = static_cast<const T*>(x.data) + row_offset(x, r);
      double sum = 0;
      for (int64_t c = 0; c < x.cols; ++c) {
        const double value = widen(row[c * x.col_stride]);
        sum += value * value;
      }
      norm[r] = static_cast<float>(std::sqrt(sum));
    }
  });
}

}  // namespace

int64_t norm_sample_workspace(const NormSampleArgs& args) { return args.x.rows * 12; }

int norm_sample(const NormSampleArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.x.rows, args.x.cols, args.saved);
  const int64_t rows = args.x.rows, k = saved.layout.lines;
  auto* prefix = static_cast<uint64_t*>(args.workspace);
  auto* norm = reinterpret_cast<float*>(prefix + rows);
  visit_dtype(args.dtype, [&](auto tag) {
    row_norms<typename decltype(tag)::type>(args, norm);
    return 0;
  });
  float largest = 0;
  for (int64_t r = 0; r < rows; ++r)
    largest = norm[r] <= largest || largest != largest ? largest : norm[r];  // a NaN stays
  uint64_t sum = 0;
  for (int64_t r = 0; r < rows; ++r) prefix[r] = sum += fixed_norm(norm[r], largest);
  const Sampler sampler(saved.key, args.salt, args.spec, rows);
  auto* index = const_cast<int64_t*>(saved.index());
  auto* weight = const_cast<float*>(saved.weight());
  for (int64_t i = 0; i < k; ++i) {
    index[i] = norm_index(sampler.call(0, i), prefix, rows);
    weight[i] = norm_weight(prefix, rows, k, index[i]);
  }
  return 0;
}

}  // namespace rad::cpu

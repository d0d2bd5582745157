#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct UnpackParams {
  int64_t rows, features;
  bool by_row;
  const T* values;
  const int64_t* index;  // null for `different`
  T* out;
};

// Element (r, c) of the estimate: its entries in stored order, the result rounded after each as it would be
// in memory.
template <class T>
RAD_DEVICE T estimate(const UnpackParams<T>& p, const Sampler& sampler, int64_t r, int64_t c) {
  const int64_t place = p.by_row ? r : c, k = sampler.k();
  const bool stratified = sampler.draw == Draw::kStratified;
  const int64_t first = stratified ? sampler.strata.find(place) : 0, last = stratified ? first + 1 : k;
  T total = narrow<T>(0);
  for (int64_t i = first; i < last; ++i) {
    if ((p.index ? p.index[i] : sampler.index(r, i)) != place) continue;
    const T value = p.values[p.by_row ? i * p.features + c : r * k + i];
    total = narrow<T>(widen(total) + widen(value) * sampler.template weight<Accumulate<T>>(i));
  }
  return total;
}

template <class T>
__global__ void unpack_kernel(UnpackParams<T> p, Sampler plan, KeySource source) {
  const Sampler sampler = keyed(plan, source);
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += row_step)
    for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < p.features;
         c += col_step)
      p.out[r * p.features + c] = estimate(p, sampler, r, c);
}

}  // namespace

int64_t unpack_workspace(const UnpackArgs& args) {
  if (args.spec.sampling == Sampling::kDifferent) return 0;
  const int64_t n = args.spec.sampling == Sampling::kRows ? args.rows : args.features;
  return kept(n, args.spec.num, args.spec.den) * 8;
}

int unpack(const UnpackArgs& args) {
  if (args.rows == 0 || args.features == 0) return 0;
  const bool by_row = args.spec.sampling == Sampling::kRows;
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.rows, args.features);
  const KeySource source{trailer_of(args.saved, layout.trailer), -1};
  const int64_t n = by_row ? args.rows : args.features;
  int64_t* index = nullptr;
  if (args.spec.sampling != Sampling::kDifferent) {
    index = static_cast<int64_t*>(args.workspace);
    const int status = draw_indices(args.exec, args.spec, source, n, index);
    if (status != 0) return status;
  }
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const UnpackParams<T> params{args.rows, args.features,
                                 by_row,    static_cast<const T*>(args.saved),
                                 index,     static_cast<T*>(args.out)};
    return launch(unpack_kernel<T>, over_matrix(args.rows, args.features, args.exec.stream), params,
                  plan_sample(args.spec, n), source);
  });
}

}  // namespace rad::cuda

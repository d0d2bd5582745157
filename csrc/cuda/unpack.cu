#include "core/signs.h"

#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct UnpackParams {
  int64_t rows, features;
  SavedView saved;
  const int64_t* index;  // lists of a tile each; null for `different` and `project`
  const float* weight;   // of the norm draw, else null
  T* out;
};

template <class T>
RAD_DEVICE void add_to(T& total, Accumulate<T> value) {
  total = narrow<T>(widen(total) + value);
}

// Element (r, c) of the estimate: its entries in stored order, the result rounded after each as it would be
// in memory.
template <class T>
RAD_DEVICE T sampled_element(const UnpackParams<T>& p, const Sampler& sampler, int64_t r, int64_t c) {
  const SavedLayout& m = p.saved.layout;
  const bool by_row = sampler.role == Role::kRowSample;
  const int64_t tile = m.tiles > 1 ? c / kTileWidth : 0, column = c - tile * kTileWidth;
  const int64_t place = by_row ? r : c, k = sampler.k();
  const bool stratified = sampler.draw == Draw::kStratified;
  const int64_t first = stratified ? sampler.strata.find(place) : 0, last = stratified ? first + 1 : k;
  const Seed seed{sampler.key, sampler.salt};
  T total = narrow<T>(0);
  for (int64_t i = first; i < last; ++i) {
    if ((p.index ? p.index[tile * k + i] : sampler.index(r, i)) != place) continue;
    const Accumulate<T> value =
        by_row ? stored_value<T>(p.saved, seed, tile, i, column) : stored_value<T>(p.saved, seed, 0, r, i);
    add_to(total, product(value, p.weight ? static_cast<Accumulate<T>>(p.weight[i])
                                          : sampler.template weight<Accumulate<T>>(i)));
  }
  return total;
}

// Element (r, c) of x R R^T / k from the stored scale * x R, rounded after every 128 terms as the CPU does.
template <class T>
RAD_DEVICE T projected_element(const UnpackParams<T>& p, const Seed& seed, int64_t r, int64_t c) {
  using Sum = Accumulate<T>;
  constexpr int64_t kTerms = 128;
  const int64_t k = p.saved.layout.width;
  const Sum factor = static_cast<Sum>(1 / (static_cast<double>(k) * project_scale(k)));
  T total = narrow<T>(0);
  for (int64_t first = 0; first < k; first += kTerms) {
    const Words call = sign_call(seed.key, seed.salt, c, first);
    Sum sum = 0;
    for (int64_t j = first; j < min(k, first + kTerms); ++j) {
      const Sum value = stored_value<T>(p.saved, seed, 0, r, j);
      sum += sign_bit(call, j) ? value : -value;
    }
    add_to(total, product(sum, factor));
  }
  return total;
}

template <class T, class Element>
RAD_DEVICE void each_element(const UnpackParams<T>& p, const Element& element) {
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += row_step)
    for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < p.features;
         c += col_step)
      p.out[r * p.features + c] = element(r, c);
}

template <class T>
__global__ void __launch_bounds__(kThreads) unpack_kernel(UnpackParams<T> p, Sampler plan) {
  const Sampler sampler = keyed(plan, p.saved.key());
  each_element(p, [&](int64_t r, int64_t c) { return sampled_element(p, sampler, r, c); });
}

template <class T>
__global__ void __launch_bounds__(kThreads) unpack_projected_kernel(UnpackParams<T> p) {
  const Seed seed = p.saved.key().seed();
  each_element(p, [&](int64_t r, int64_t c) { return projected_element(p, seed, r, c); });
}

}  // namespace

int64_t unpack_workspace(const UnpackArgs& args) {
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.rows, args.features);
  const int64_t n = samples_rows(args.spec.sampling) ? args.rows : args.features;
  return listed_lines(args.spec, layout) * kept(n, args.spec.num, args.spec.den) * 8;
}

int unpack(const UnpackArgs& args) {
  if (args.rows == 0 || args.features == 0) return 0;
  const SavedView saved(args.spec, args.dtype, args.rows, args.features, args.saved);
  const int64_t n = samples_rows(args.spec.sampling) ? args.rows : args.features;
  const bool by_norm = args.spec.draw == Draw::kNorm;
  const int64_t lists = listed_lines(args.spec, saved.layout);
  const int64_t* index = by_norm ? saved.plane<const int64_t>(saved.layout.index) : nullptr;
  if (lists > 0) {
    auto* list = static_cast<int64_t*>(args.workspace);
    const int status = draw_indices(args.exec, args.spec, saved.key(), n, 0, lists, list);
    if (status != 0) return status;
    index = list;
  }
  const float* weight = by_norm ? saved.plane<const float>(saved.layout.weight) : nullptr;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const UnpackParams<T> params{args.rows, args.features, saved, index, weight, static_cast<T*>(args.out)};
    const LaunchConfig config = over_matrix(args.rows, args.features, args.exec.stream);
    if (args.spec.sampling == Sampling::kProject) return launch(unpack_projected_kernel<T>, config, params);
    return launch(unpack_kernel<T>, config, params, plan_sample(args.spec, n));
  });
}

}  // namespace rad::cuda

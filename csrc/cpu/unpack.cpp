#include <cstring>

#include "core/dtype.h"
#include "core/layout.h"
#include "cpu/different_row.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void add_to(T& target, Accumulate<T> value) {
  target = narrow<T>(widen(target) + value);
}

// Every sampling stores line by line; entry (i, j) of the planes goes to place(i, j) of the estimate.
template <class T>
void unpack_as(const UnpackArgs& args, const Sampler& sampler, const int64_t* index) {
  const auto* values = static_cast<const T*>(args.saved);
  auto* out = static_cast<T*>(args.out);
  const int64_t k = sampler.k(), cols = args.features;
  std::memset(args.out, 0, args.rows * cols * sizeof(T));
  if (args.spec.sampling == Sampling::kRows) {
    for (int64_t i = 0; i < k; ++i) {
      const auto weight = sampler.template weight<Accumulate<T>>(i);
      for (int64_t c = 0; c < cols; ++c) add_to(out[index[i] * cols + c], widen(values[i * cols + c]) * weight);
    }
    return;
  }
  parallel_for(args.exec, args.rows, grain_for(cols * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t j = 0; j < k; ++j) {
        const int64_t column = index ? index[j] : sampler.index(r, j);
        add_to(out[r * cols + column], widen(values[r * k + j]) * sampler.template weight<Accumulate<T>>(j));
      }
    }
  });
}

}  // namespace

int64_t unpack_workspace(const UnpackArgs& args) {
  if (args.spec.sampling == Sampling::kDifferent) return 0;
  const int64_t n = args.spec.sampling == Sampling::kRows ? args.rows : args.features;
  return kept(n, args.spec.num, args.spec.den) * 8;
}

int unpack(const UnpackArgs& args) {
  const auto layout = saved_layout(args.spec, args.dtype, args.rows, args.features);
  const auto* trailer =
      reinterpret_cast<const Trailer*>(static_cast<const char*>(args.saved) + layout.trailer);
  const int64_t n = args.spec.sampling == Sampling::kRows ? args.rows : args.features;
  int64_t* index = nullptr;
  if (args.spec.sampling != Sampling::kDifferent) {
    index = static_cast<int64_t*>(args.workspace);
    sample({args.exec, args.spec, trailer, n, index, nullptr});
  }
  const Sampler sampler(trailer->key, trailer->salt, args.spec, n);
  return visit_dtype(args.dtype, [&](auto tag) {
    unpack_as<typename decltype(tag)::type>(args, sampler, index);
    return 0;
  });
}

}  // namespace rad::cpu

#include "core/signs.h"

#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

// out [rows, k]: a vector of one feature's entries per thread.
template <class T>
struct SignParams {
  int64_t first_feature, rows, k;
  T* out;
  bool vector_store;
};

template <class T>
__global__ void __launch_bounds__(kThreads) signs_kernel(SignParams<T> p, KeySource source) {
  constexpr int kCount = kPerVector<T>;
  const Seed seed = source.seed();
  const T plus = narrow<T>(1), minus = narrow<T>(-1);
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kCount;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < p.rows; i += row_step) {
    for (int64_t j = first; j < p.k; j += step) {
      const Words call = sign_call(seed.key, seed.salt, p.first_feature + i, j);
      Vector<T, kCount> values;
#pragma unroll
      for (int e = 0; e < kCount; ++e) values.item[e] = sign_bit(call, j + e) ? plus : minus;
      T* to = p.out + i * p.k + j;
      if (p.vector_store) {
        *reinterpret_cast<Vector<T, kCount>*>(to) = values;
      } else {
#pragma unroll
        for (int e = 0; e < kCount; ++e)
          if (j + e < p.k) to[e] = values.item[e];
      }
    }
  }
}

}  // namespace

int signs(const SignsArgs& args) {
  const int64_t k = kept(args.features, args.spec.num, args.spec.den), rows = args.end - args.begin;
  if (rows <= 0 || k == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SignParams<T> params{args.begin, rows, k, static_cast<T*>(args.out),
                               aligned(args.out, kVectorBytes) && k % kPerVector<T> == 0};
    const int64_t vectors = (k + kPerVector<T> - 1) / kPerVector<T>;
    return launch(signs_kernel<T>, over_matrix(rows, vectors, args.exec.stream), params,
                  KeySource{args.trailer, -1});
  });
}

}  // namespace rad::cuda

#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

constexpr int kQuad = 4;  // elements of one Philox call

template <class T>
struct DropoutParams {
  uint32_t threshold;
  Accumulate<T> scale;
  const T* x;
  T* y;
  int64_t n;
  bool vectors;
};

template <class T>
RAD_DEVICE T dropped(T value, uint32_t word, const DropoutParams<T>& p) {
  return word >= p.threshold ? narrow<T>(widen(value) * p.scale) : narrow<T>(0);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(DropoutParams<T> p, KeySource source, TrailerWriter trailer) {
  using Quad = Vector<T, kQuad>;
  trailer.write();
  const Seed seed = source.seed();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kQuad;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kQuad; i < p.n; i += step) {
    const Words words = random_words(seed.key, seed.salt, Role::kDropout, 0, i / kQuad);
    if (p.vectors && i + kQuad <= p.n) {
      Quad values = *reinterpret_cast<const Quad*>(p.x + i);
#pragma unroll
      for (int e = 0; e < kQuad; ++e) values.item[e] = dropped(values.item[e], words.w[e], p);
      *reinterpret_cast<Quad*>(p.y + i) = values;
    } else {
#pragma unroll
      for (int e = 0; e < kQuad; ++e)
        if (i + e < p.n) p.y[i + e] = dropped(p.x[i + e], words.w[e], p);
    }
  }
}

}  // namespace

int dropout(const DropoutArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const DropoutParams<T> params{args.threshold,
                                  static_cast<Accumulate<T>>(args.scale),
                                  static_cast<const T*>(args.x),
                                  static_cast<T*>(args.y),
                                  args.n,
                                  aligned(args.x, sizeof(T) * kQuad) && aligned(args.y, sizeof(T) * kQuad)};
    return launch(dropout_kernel<T>, over_items((args.n + kQuad - 1) / kQuad, args.exec.stream), params,
                  KeySource{args.trailer, args.salt}, TrailerWriter{args.trailer, args.salt});
  });
}

}  // namespace rad::cuda

#include "cuda/octets.cuh"

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
  trailer.write();
  const Seed seed = source.seed();
  each_octet(p.x, p.n, p.vectors, [&](int64_t o, int64_t, const T(&x)[kOctet], const auto& store) {
    T y[kOctet];
#pragma unroll
    for (int quad = 0; quad < kOctet / kQuad; ++quad) {
      const Words words = random_words(seed, Role::kDropout, 0, o * (kOctet / kQuad) + quad);
#pragma unroll
      for (int e = 0; e < kQuad; ++e) y[quad * kQuad + e] = dropped(x[quad * kQuad + e], words.w[e], p);
    }
    store(p.y, y);
  });
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
                                  aligned(args.x, kVectorBytes) && aligned(args.y, kVectorBytes)};
    return launch(dropout_kernel<T>, over_octets(args.n, args.exec.stream), params,
                  KeySource{args.trailer, args.salt}, TrailerWriter{args.trailer, args.salt});
  });
}

}  // namespace rad::cuda

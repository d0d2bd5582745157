#include "core/derivative.h"
#include "cuda/common.cuh"
#include "cuda/octets.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct CodedParams {
  Dither<Accumulate<T>> dither;
  int bits;
  const T* from;
  T* to;  // of backward
  char* codes;
  Trailer* trailer;
  int64_t n;
  bool vectors;  // `from` and `to` are aligned to a vector
};

template <Function F, class T>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(CodedParams<T> p, Accumulate<T> a, Accumulate<T> b, Accumulate<T> c, KeySource source) {
  using Real = Accumulate<T>;
  const Seed seed = source.seed();
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o * kOctet < p.n; o += step) {
    const int64_t first = o * kOctet;
    T item[kOctet];
    load_octet(p.from, first, p.n, p.vectors, item);
    const Words noise = dither_call(seed.key, seed.salt, 0, first, Role::kDerivative);
    uint64_t codes = 0;
    bool nan = false;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const Real d = derivative<F>(widen(item[e]), a, b, c);
      const auto code =
          static_cast<uint64_t>(p.dither.encode(d == d ? d : p.dither.lo, dither_noise(noise, e)));
      const bool inside = first + e < p.n;
      codes |= inside ? code << (p.bits * e) : 0;
      nan = nan || (inside && d != d);
    }
    store_octet_codes(p.codes, o, p.bits, codes);
    if (nan) atomicExch(reinterpret_cast<unsigned*>(&p.trailer->reserved[kSpoiled]), 1u);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(CodedParams<T> p, KeySource source) {
  using Real = Accumulate<T>;
  const Seed seed = source.seed();
  Dither<Real> dither = p.dither;
  if (p.trailer->reserved[kSpoiled] != 0) dither.step = static_cast<Real>(bits_float(0x7FC00000u));
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; o * kOctet < p.n; o += step) {
    const int64_t first = o * kOctet;
    T item[kOctet];
    load_octet(p.from, first, p.n, p.vectors, item);
    const Words noise = dither_call(seed.key, seed.salt, 0, first, Role::kDerivative);
    const uint64_t codes = load_octet_codes(p.codes, o, p.bits);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const int code = static_cast<int>(codes >> (p.bits * e) & ((1u << p.bits) - 1));
      item[e] = narrow<T>(product(widen(item[e]), dither.decode(code, dither_noise(noise, e))));
    }
    store_octet(p.to, first, p.n, p.vectors, item);
  }
}

// A kernel of its own: blocks of the next one may set the trailer's mark of NaN at any time.
__global__ void __launch_bounds__(kThreads) activation_trailer_kernel(TrailerWriter trailer) {
  trailer.write();
}

}  // namespace

int activation(const ActivationArgs& args) {
  const DerivativeLayout layout(args.n, args.bits);
  char* data = static_cast<char*>(args.saved);
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  const auto salt = static_cast<int64_t>(args.salt);
  TrailerWriter writer{trailer, salt, data, {}};
  writer.gaps.begin[0] = layout.codes;
  writer.gaps.end[0] = layout.trailer;
  const int status = launch(activation_trailer_kernel, over_items(1, args.exec.stream), writer);
  if (status != 0 || args.n == 0) return status;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const auto* x = static_cast<const T*>(args.x);
    const Activation& f = args.activation;
    const CodedParams<T> params{derivative_dither<Real>(f, args.bits),
                                args.bits,
                                x,
                                nullptr,
                                data,
                                trailer,
                                args.n,
                                aligned(x, kVectorBytes)};
    int launched = kInvalidValue;
    visit_function(f.function, [&](auto function) {
      launched =
          launch(activation_kernel<decltype(function)::value, T>,
                 over_items((args.n + kOctet - 1) / kOctet, args.exec.stream), params, static_cast<Real>(f.a),
                 static_cast<Real>(f.b), static_cast<Real>(f.c), KeySource{trailer, salt});
    });
    return launched;
  });
}

int activation_backward(const ActivationBackwardArgs& args) {
  if (args.n == 0) return 0;
  const DerivativeLayout layout(args.n, args.bits);
  char* data = static_cast<char*>(const_cast<void*>(args.saved));
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* dy = static_cast<const T*>(args.dy);
    auto* dx = static_cast<T*>(args.dx);
    const CodedParams<T> params{derivative_dither<Accumulate<T>>(args.activation, args.bits),
                                args.bits,
                                dy,
                                dx,
                                data,
                                trailer,
                                args.n,
                                aligned(dy, kVectorBytes) && aligned(dx, kVectorBytes)};
    return launch(activation_backward_kernel<T>, over_items((args.n + kOctet - 1) / kOctet, args.exec.stream),
                  params, KeySource{trailer, -1});
  });
}

}  // namespace rad::cuda

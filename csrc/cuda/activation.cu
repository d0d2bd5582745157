#include "core/derivative.h"
#include "cuda/common.cuh"
#include "cuda/octets.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct CodedParams {
  RangeCode<Accumulate<T>> code;
  int bits;
  const T* from;
  T* to;  // of backward
  char* codes;
  Trailer* trailer;
  int64_t n;
  bool vectors;  // `from` and `to` are aligned to a vector
};

template <Function F, class T>
__global__ void __launch_bounds__(kThreads, kResident)
    activation_kernel(CodedParams<T> p, Accumulate<T> a, Accumulate<T> b, Accumulate<T> c, KeySource source) {
  using Real = Accumulate<T>;
  const Seed seed = source.seed();
  bool nan = false;
  each_octet(p.from, p.n, p.vectors, [&](int64_t o, int64_t count, const T(&item)[kOctet], auto) {
    const Words noise = random_words(seed, Role::kDerivative, 0, o);
    Real d[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const Real x = widen(item[e]);
      nan = nan || (spoilt_by_nan(F) && x != x && e < count);
      d[e] = derivative<F>(x, a, b, c);
    }
    store_octet_codes(p.codes, o, p.bits, first_codes(encode_octet(p.code, d, noise, p.bits), count, p.bits));
  });
  if (nan) atomicExch(reinterpret_cast<unsigned*>(&p.trailer->reserved[kSpoiled]), 1u);
}

template <class T>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(CodedParams<T> p, KeySource source) {
  using Real = Accumulate<T>;
  const Seed seed = source.seed();
  OctetDither<Real> dither(p.code.dither.lo, p.code.dither.step);
  if (p.trailer->reserved[kSpoiled] != 0) dither.step = static_cast<Real>(bits_float(0x7FC00000u));
  each_octet(p.from, p.n, p.vectors, [&](int64_t o, int64_t, const T(&dy)[kOctet], const auto& store) {
    const Words noise = random_words(seed, Role::kDerivative, 0, o);
    Real d[kOctet];
    dither.decode(load_octet_codes(p.codes, o, p.bits), noise, p.bits, d);
    T dx[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) dx[e] = narrow<T>(product(widen(dy[e]), d[e]));
    store(p.to, dx);
  });
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
    const CodedParams<T> params{derivative_code<Real>(f, args.bits),
                                args.bits,
                                x,
                                nullptr,
                                data,
                                trailer,
                                args.n,
                                aligned(x, kVectorBytes)};
    int launched = kInvalidValue;
    visit_function(f.function, [&](auto function) {
      launched = launch(activation_kernel<decltype(function)::value, T>,
                        over_octets(args.n, args.exec.stream), params, static_cast<Real>(f.a),
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
    const CodedParams<T> params{
        derivative_code<Accumulate<T>>(args.activation, args.bits), args.bits, dy, dx, data, trailer, args.n,
        aligned(dy, kVectorBytes) && aligned(dx, kVectorBytes)};
    return launch(activation_backward_kernel<T>, over_octets(args.n, args.exec.stream), params,
                  KeySource{trailer, -1});
  });
}

}  // namespace rad::cuda

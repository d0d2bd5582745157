#include "cuda/norm.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct NormPackParams {
  using Real = Accumulate<T>;
  NormShape shape;
  bool centred;
  Real eps;
  const T* x;
  const Real* mean;
  Real* rstd;
  SavedView saved;
  bool vectors;
};

RAD_DEVICE float root(float v) { return sqrtf(v); }
RAD_DEVICE double root(double v) { return sqrt(v); }

// A block for each set: its statistics, then its codes.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    norm_sets_kernel(NormPackParams<T> p, KeySource source, TrailerWriter trailer) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[kThreads], lanes);
  trailer.write();
  const Seed seed = source.seed();
  const int64_t set = p.shape.set, lines = p.shape.n / set;
  for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
    const T* x = p.x + line * set;
    Real mean = 0, part = 0;
    if (p.centred) {
      for (int64_t i = threadIdx.x; i < set; i += kThreads) part += widen(x[i]);
      mean = block_sum(lanes, part) / static_cast<Real>(set);
    }
    part = 0;
    for (int64_t i = threadIdx.x; i < set; i += kThreads) {
      const Real off = widen(x[i]) - mean;
      part += product(off, off);
    }
    const Real rstd = Real(1) / root(block_sum(lanes, part) / static_cast<Real>(set) + p.eps);
    if (threadIdx.x == 0) p.rstd[line] = rstd;
    const int64_t end = octets_of(set) * kOctet;
    for (int64_t first = threadIdx.x * kOctet; first < end; first += kThreads * kOctet) {
      Real value[kOctet];
      load_numbers(x, first, set, p.vectors, value);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = product(value[e] - mean, rstd);
      encode_octet<bf16>(p.saved, seed, 0, line, first, value);
    }
  }
}

// All elements are one line; an octet per thread.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    norm_channels_kernel(NormPackParams<T> p, KeySource source, TrailerWriter trailer) {
  using Real = Accumulate<T>;
  trailer.write();
  const Seed seed = source.seed();
  const int64_t n = p.shape.n, end = octets_of(n) * kOctet;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kOctet;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kOctet; first < end;
       first += step) {
    Real value[kOctet], mean = 0, rstd = 0;
    load_numbers(p.x, first, n, p.vectors, value);
    AxisPlace channel(first, p.shape.params, p.shape.inner);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e == 0 || channel.within == 0) mean = p.mean[channel.at], rstd = p.rstd[channel.at];
      value[e] = product(value[e] - mean, rstd);
      channel.next();
    }
    encode_octet<bf16>(p.saved, seed, 0, 0, first, value);
  }
}

}  // namespace

int norm_pack(const NormPackArgs& args) {
  if (args.shape.n == 0) return 0;
  const SavedView saved = norm_view(args.shape, args.bits, args.saved);
  const TrailerWriter trailer{saved.trailer(), static_cast<int64_t>(args.salt), saved.data,
                              saved.layout.gaps};
  const KeySource source{saved.trailer(), static_cast<int64_t>(args.salt)};
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const NormPackParams<T> params{args.shape,
                                   args.centred,
                                   static_cast<Real>(args.eps),
                                   static_cast<const T*>(args.x),
                                   static_cast<const Real*>(args.mean),
                                   static_cast<Real*>(args.rstd),
                                   saved,
                                   lines_aligned(args.shape, static_cast<const T*>(args.x))};
    if (args.shape.by_channel)
      return launch(norm_channels_kernel<T>, over_items(octets_of(args.shape.n), args.exec.stream), params,
                    source, trailer);
    const LaunchConfig config{dim3(blocks_for(args.shape.n / args.shape.set, 1)), dim3(kThreads), 0,
                              args.exec.stream};
    return launch(norm_sets_kernel<T>, config, params, source, trailer);
  });
}

}  // namespace rad::cuda

#include <algorithm>

#include "cuda/norm.cuh"

namespace rad::cuda {
namespace {

constexpr int kOctets = 8, kColumns = kOctets * kOctet, kRows = kThreads / kOctets;  // that sum columns
constexpr int64_t kBlocks = 132 * 4, kSlices = 128;  // blocks that sum parameters, slices at most

template <class T>
struct NormBackwardParams {
  using Real = Accumulate<T>;
  NormShape shape;
  bool centred;
  const T* dy;
  SavedView saved;
  const Real *rstd, *weight;
  T* dx;
  Real* parts;  // [slices, 2, params]: sums of dy x_hat, then of dy
  bool vectors;

  // dy of a line, from `first` on.
  RAD_DEVICE void load(int64_t line, int64_t first, Real (&value)[kOctet]) const {
    const int64_t width = norm_width(shape);
    load_numbers(dy + line * width, first, width, vectors, value);
  }
  // The same of a set, times the weights.
  RAD_DEVICE void load_weighted(int64_t line, int64_t first, Real (&value)[kOctet]) const {
    load(line, first, value);
    if (!weight) return;
    const bool from_start = shape.set == shape.params * shape.inner;  // each set has all parameters
    AxisPlace param(from_start ? first : line * shape.set + first, shape.params, shape.inner);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      value[e] *= weight[param.at];
      param.next();
    }
  }
};

// step^2 / (12 d): the variance that the square of a dithered value has too much, over the set's length.
template <class Real>
RAD_DEVICE Real excess(const SavedView& saved, int64_t line, int64_t first, int64_t set) {
  const Real step = group_dither<bf16, Real>(saved, 0, line, first).step;
  return step * step / (12 * static_cast<Real>(set));
}

// A block for each set of consecutive elements.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_sets_grad_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[kThreads], lanes);
  const Seed seed = p.saved.key().seed();
  const int64_t set = p.shape.set, lines = p.shape.n / set;
  for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
    Real sum = 0, sum_q = 0;
    for (int64_t first = threadIdx.x * kOctet; first < set; first += kThreads * kOctet) {
      Real q[kOctet], a[kOctet];
      decode_octet<bf16>(p.saved, seed, 0, line, first, q);
      p.load_weighted(line, first, a);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        if (first + e >= set) continue;
        sum += a[e];
        sum_q += a[e] * q[e];
      }
    }
    const Real mean = p.centred ? block_sum(lanes, sum) / static_cast<Real>(set) : Real(0);
    const Real mean_q = block_sum(lanes, sum_q) / static_cast<Real>(set), rstd = p.rstd[line];
    for (int64_t first = threadIdx.x * kOctet; first < set; first += kThreads * kOctet) {
      Real q[kOctet], a[kOctet];
      decode_octet<bf16>(p.saved, seed, 0, line, first, q);
      p.load_weighted(line, first, a);
      const Real noise = excess<Real>(p.saved, line, first, set);
      T item[kOctet];
#pragma unroll
      for (int e = 0; e < kOctet; ++e)
        item[e] = narrow<T>(rstd * (a[e] - mean - q[e] * mean_q + a[e] * noise));
      store_octet(p.dx + line * set, first, set, p.vectors, item);
    }
  }
}

// All elements are one line; the sums of each channel are in p.parts.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_channels_grad_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  const Seed seed = p.saved.key().seed();
  const int64_t n = p.shape.n, step = static_cast<int64_t>(gridDim.x) * kThreads * kOctet;
  const Real each = 1 / static_cast<Real>(p.shape.set);
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kOctet; first < n;
       first += step) {
    Real q[kOctet], dy[kOctet];
    decode_octet<bf16>(p.saved, seed, 0, 0, first, q);
    p.load(0, first, dy);
    const Real noise = excess<Real>(p.saved, 0, first, p.shape.set);
    AxisPlace channel(first, p.shape.params, p.shape.inner);
    Real scale = 0, mean_q = 0, mean = 0;
    T item[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e == 0 || channel.within == 0) {
        const int64_t c = channel.at;
        scale = p.rstd[c] * (p.weight ? p.weight[c] : Real(1));
        mean_q = p.parts[c] * each, mean = p.parts[p.shape.params + c] * each;
      }
      item[e] = narrow<T>(scale * (dy[e] - mean - q[e] * mean_q + dy[e] * noise));
      channel.next();
    }
    store_octet(p.dx, first, n, p.vectors, item);
  }
}

// Whether elements are a matrix [n / params, params] of whole octets, a parameter a column.
RAD_HD bool in_columns(const NormShape& s) {
  return s.inner == 1 && (s.by_channel ? s.params % kOctet == 0 : s.set == s.params);
}

// A block sums kColumns columns over a slice of the rows, a thread an octet of them.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_columns_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[2][kRows][kColumns], sums);
  const Seed seed = p.saved.key().seed();
  const int64_t params = p.shape.params, rows = p.shape.n / params;
  const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kOctets + threadIdx.x) * kOctet;
  Real sum[kOctet] = {}, sum_q[kOctet] = {};
  for (int64_t r = begin + threadIdx.y; first < params && r < end; r += kRows) {
    const int64_t line = p.shape.by_channel ? 0 : r, at = p.shape.by_channel ? r * params + first : first;
    Real q[kOctet], dy[kOctet];
    decode_octet<bf16>(p.saved, seed, 0, line, at, q);
    p.load(line, at, dy);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      sum[e] += dy[e];
      sum_q[e] += dy[e] * q[e];
    }
  }
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    sums[0][threadIdx.y][threadIdx.x * kOctet + e] = sum_q[e];
    sums[1][threadIdx.y][threadIdx.x * kOctet + e] = sum[e];
  }
  __syncthreads();
  const unsigned thread = threadIdx.y * kOctets + threadIdx.x, kind = thread / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + thread % kColumns;
  if (kind >= 2 || column >= params) return;
  Real total = 0;
  for (int r = 0; r < kRows; ++r) total += sums[kind][r][thread % kColumns];
  p.parts[(static_cast<int64_t>(blockIdx.y) * 2 + kind) * params + column] = total;
}

// Octets that a plane of `inner` values can meet.
RAD_HD int64_t octets_met(int64_t inner) {
  return inner % kOctet == 0 ? inner / kOctet : (inner + 2 * (kOctet - 1)) / kOctet;
}

// Any order of elements: a block for each parameter, and each slice of its planes.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_planes_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[kThreads], lanes);
  const Seed seed = p.saved.key().seed();
  const int64_t params = p.shape.params, inner = p.shape.inner, width = norm_width(p.shape);
  const int64_t octets = octets_met(inner), all = p.shape.n / (params * inner) * octets;
  const int64_t begin = all * blockIdx.y / gridDim.y, end = all * (blockIdx.y + 1) / gridDim.y;
  for (int64_t c = blockIdx.x; c < params; c += gridDim.x) {
    Real sum = 0, sum_q = 0;
    int64_t j = begin + threadIdx.x, plane = quotient(j, octets), octet = j - plane * octets;
    const int64_t planes_on = kThreads / octets, octets_on = kThreads - planes_on * octets;
    for (; j < end; j += kThreads) {
      const int64_t from = (plane * params + c) * inner;
      const int64_t line = p.shape.by_channel ? 0 : quotient(from, width);
      const int64_t begins = from - line * width, first = (begins / kOctet + octet) * kOctet;
      if (first < begins + inner) {
        Real q[kOctet], dy[kOctet];
        decode_octet<bf16>(p.saved, seed, 0, line, first, q);
        p.load(line, first, dy);
#pragma unroll
        for (int e = 0; e < kOctet; ++e) {
          if (first + e < begins || first + e >= begins + inner) continue;
          sum += dy[e];
          sum_q += dy[e] * q[e];
        }
      }
      plane += planes_on;
      octet += octets_on;
      if (octet >= octets) octet -= octets, ++plane;
    }
    const Real total_q = block_sum(lanes, sum_q), total = block_sum(lanes, sum);
    if (threadIdx.x > 0) continue;
    Real* part = p.parts + static_cast<int64_t>(blockIdx.y) * 2 * params;
    part[c] = total_q;
    part[params + c] = total;
  }
}

// Slices in order, into the first one and to where the caller wants them.
template <class Real>
__global__ void __launch_bounds__(kThreads, kResident)
    norm_slices_kernel(Real* parts, int64_t params, int64_t slices, Real* weight_grad, Real* bias_grad) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < 2 * params; i += step) {
    Real total = parts[i];
    for (int64_t slice = 1; slice < slices; ++slice) total += parts[2 * params * slice + i];
    parts[i] = total;
    if (weight_grad) (i < params ? weight_grad[i] : bias_grad[i - params]) = total;
  }
}

// So many that the GPU has work, whatever GPU it is: results do not depend on it.
int64_t slices_of(const NormShape& s) {
  const bool columns = in_columns(s);
  const int64_t planes = s.n / (s.params * s.inner);
  const int64_t blocks = columns ? (s.params + kColumns - 1) / kColumns : s.params;
  const int64_t steps = columns ? planes / kRows : planes * octets_met(s.inner) / kThreads;
  const int64_t wanted = std::min(kBlocks / blocks, kSlices);
  return std::max<int64_t>(1, std::min(steps, wanted));
}

template <class T>
int sum_params(const NormBackwardArgs& args, const NormBackwardParams<T>& p) {
  using Real = Accumulate<T>;
  const int64_t params = args.shape.params, slices = slices_of(args.shape);
  void* stream = args.exec.stream;
  const auto tall = static_cast<unsigned>(slices);
  const LaunchConfig columns{dim3(blocks_for(params, kColumns), tall), dim3(kOctets, kRows), 0, stream};
  const LaunchConfig planes{dim3(blocks_for(params, 1), tall), dim3(kThreads), 0, stream};
  const int status = in_columns(args.shape) ? launch(norm_columns_kernel<T>, columns, p)
                                            : launch(norm_planes_kernel<T>, planes, p);
  if (status != 0) return status;
  return launch(norm_slices_kernel<Real>, over_items(2 * params, stream), p.parts, params, slices,
                static_cast<Real*>(args.weight_grad), static_cast<Real*>(args.bias_grad));
}

}  // namespace

int64_t norm_backward_workspace(const NormBackwardArgs& args) {
  if (args.shape.n == 0) return 0;
  return (args.dtype == DType::kF64 ? 8 : 4) * 2 * args.shape.params * slices_of(args.shape);
}

int norm_backward(const NormBackwardArgs& args) {
  if (args.shape.n == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Real = Accumulate<T>;
    const NormBackwardParams<T> params{args.shape,
                                       args.centred,
                                       static_cast<const T*>(args.dy),
                                       norm_view(args.shape, args.bits, args.saved),
                                       static_cast<const Real*>(args.rstd),
                                       static_cast<const Real*>(args.weight),
                                       static_cast<T*>(args.dx),
                                       static_cast<Real*>(args.workspace),
                                       lines_aligned(args.shape, static_cast<const T*>(args.dy)) &&
                                           lines_aligned(args.shape, static_cast<const T*>(args.dx))};
    if (args.weight_grad || args.shape.by_channel) {
      const int status = sum_params(args, params);
      if (status != 0) return status;
    }
    if (!args.dx) return 0;
    if (args.shape.by_channel)
      return launch(norm_channels_grad_kernel<T>, over_items(octets_of(args.shape.n), args.exec.stream),
                    params);
    const LaunchConfig config{dim3(blocks_for(args.shape.n / args.shape.set, 1)), dim3(kThreads), 0,
                              args.exec.stream};
    return launch(norm_sets_grad_kernel<T>, config, params);
  });
}

}  // namespace rad::cuda

#include "cuda/norm.cuh"

namespace rad::cuda {
namespace {

constexpr int kColumns = 32, kRows = kThreads / kColumns;  // of a block that sums columns
constexpr int64_t kSlices = 32;                            // of rows, summed apart

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

  RAD_DEVICE Real weighted(int64_t i) const {
    const Real dy_i = widen(dy[i]);
    return weight ? dy_i * weight[norm_param(shape, i)] : dy_i;
  }
  // The normalised value of element i.
  RAD_DEVICE Real value(const Seed& seed, int64_t i) const {
    const int64_t line = shape.by_channel ? 0 : i / shape.set;
    return stored_value<bf16, Real>(saved, seed, 0, line, i - line * shape.set);
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
      Real q[kOctet];
      decode_octet<bf16>(p.saved, seed, 0, line, first, q);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        if (first + e >= set) continue;
        const Real a = p.weighted(line * set + first + e);
        sum += a;
        sum_q += a * q[e];
      }
    }
    const Real mean = p.centred ? block_sum(lanes, sum) / static_cast<Real>(set) : Real(0);
    const Real mean_q = block_sum(lanes, sum_q) / static_cast<Real>(set), rstd = p.rstd[line];
    for (int64_t first = threadIdx.x * kOctet; first < set; first += kThreads * kOctet) {
      Real q[kOctet];
      decode_octet<bf16>(p.saved, seed, 0, line, first, q);
      const Real noise = excess<Real>(p.saved, line, first, set);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) {
        const int64_t i = line * set + first + e;
        if (first + e >= set) continue;
        const Real a = p.weighted(i);
        p.dx[i] = narrow<T>(rstd * (a - mean - q[e] * mean_q + a * noise));
      }
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
    Real q[kOctet];
    decode_octet<bf16>(p.saved, seed, 0, 0, first, q);
    const Real noise = excess<Real>(p.saved, 0, first, p.shape.set);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const int64_t i = first + e;
      if (i >= n) continue;
      const int64_t c = norm_param(p.shape, i);
      const Real dy = widen(p.dy[i]), scale = p.rstd[c] * (p.weight ? p.weight[c] : Real(1));
      const Real mean_q = p.parts[c] * each, mean = p.parts[p.shape.params + c] * each;
      p.dx[i] = narrow<T>(scale * (dy - mean - q[e] * mean_q + dy * noise));
    }
  }
}

// inner = 1: elements are a matrix [n / params, params] and a parameter is a column. A block sums kColumns
// of them over a slice of the rows.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_columns_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[2][kRows][kColumns], sums);
  const Seed seed = p.saved.key().seed();
  const int64_t params = p.shape.params, rows = p.shape.n / params;
  const int64_t begin = rows * blockIdx.y / gridDim.y, end = rows * (blockIdx.y + 1) / gridDim.y;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  Real sum = 0, sum_q = 0;
  for (int64_t r = begin + threadIdx.y; c < params && r < end; r += kRows) {
    const Real dy = widen(p.dy[r * params + c]);
    sum += dy;
    sum_q += dy * p.value(seed, r * params + c);
  }
  sums[0][threadIdx.y][threadIdx.x] = sum_q;
  sums[1][threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y >= 2 || c >= params) return;
  Real total = 0;
  for (int r = 0; r < kRows; ++r) total += sums[threadIdx.y][r][threadIdx.x];
  p.parts[(blockIdx.y * 2 + threadIdx.y) * params + c] = total;
}

// inner > 1: a block for each parameter.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) norm_planes_kernel(NormBackwardParams<T> p) {
  using Real = Accumulate<T>;
  CUDA_SHARED(Real[kThreads], lanes);
  const Seed seed = p.saved.key().seed();
  const int64_t params = p.shape.params, inner = p.shape.inner, count = p.shape.n / params;
  for (int64_t c = blockIdx.x; c < params; c += gridDim.x) {
    Real sum = 0, sum_q = 0;
    for (int64_t j = threadIdx.x; j < count; j += kThreads) {
      const int64_t i = (j / inner * params + c) * inner + j % inner;
      const Real dy = widen(p.dy[i]);
      sum += dy;
      sum_q += dy * p.value(seed, i);
    }
    const Real total_q = block_sum(lanes, sum_q), total = block_sum(lanes, sum);
    if (threadIdx.x > 0) continue;
    p.parts[c] = total_q;
    p.parts[params + c] = total;
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

int64_t slices_of(const NormShape& s) {
  const int64_t rows = s.n / s.params;
  return s.inner > 1 ? 1 : rows < kSlices ? rows : kSlices;
}

template <class T>
int sum_params(const NormBackwardArgs& args, const NormBackwardParams<T>& p) {
  using Real = Accumulate<T>;
  const int64_t params = args.shape.params, slices = slices_of(args.shape);
  void* stream = args.exec.stream;
  const int status =
      args.shape.inner > 1
          ? launch(norm_planes_kernel<T>,
                   LaunchConfig{dim3(blocks_for(params, 1)), dim3(kThreads), 0, stream}, p)
          : launch(norm_columns_kernel<T>,
                   LaunchConfig{dim3(blocks_for(params, kColumns), static_cast<unsigned>(slices)),
                                dim3(kColumns, kRows), 0, stream},
                   p);
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
                                       static_cast<Real*>(args.workspace)};
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

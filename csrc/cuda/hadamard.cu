#include "core/hadamard.h"

#include "core/sampler.h"
#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

constexpr int64_t kSharedBytes = 48 << 10;    // of a block, without asking for more
constexpr int64_t kScratchBytes = 256 << 20;  // of lines that do not fit there

template <class T>
struct HadamardParams {
  MatrixView x;
  int64_t features, k, order;
  Accumulate<T> scale;
  T* out;
  Accumulate<T>* lines;  // [gridDim.x, order], or null: in shared memory
};

// H in place, top bit first: the order in which the CPU adds.
template <class Sum>
RAD_DEVICE void transform(Sum* line, int64_t order) {
  for (int64_t half = order / 2; half > 0; half /= 2) {
    for (int64_t pair = threadIdx.x; pair < order / 2; pair += kThreads) {
      const int64_t i = pair / half * 2 * half + pair % half;
      const Sum a = line[i], b = line[i + half];
      line[i] = a + b;
      line[i + half] = a - b;
    }
    __syncthreads();
  }
}

template <class T, bool Transposed>
__global__ void __launch_bounds__(kThreads) hadamard_kernel(HadamardParams<T> p, KeySource source) {
  using Sum = Accumulate<T>;
  Sum* line = p.lines ? p.lines + blockIdx.x * p.order : dyn_smem<Sum>();
  const Seed seed = source.seed();
  const Permutation column = hadamard_columns(seed.key, seed.salt, p.order);
  const auto signed_value = [&](int64_t f, Sum value) {
    return hadamard_sign(seed.key, seed.salt, f) ? value : -value;
  };
  for (int64_t r = blockIdx.x; r < p.x.rows; r += gridDim.x) {
    const T* x = static_cast<const T*>(p.x.data) + offset_of_row(p.x, r);
    for (int64_t f = threadIdx.x; f < p.order; f += kThreads)
      line[f] = !Transposed && f < p.features ? signed_value(f, widen(x[f * p.x.col_stride])) : Sum(0);
    __syncthreads();
    if constexpr (Transposed) {
      for (int64_t j = threadIdx.x; j < p.k; j += kThreads) line[column(j)] = widen(x[j * p.x.col_stride]);
      __syncthreads();
    }
    transform(line, p.order);
    if constexpr (Transposed) {
      for (int64_t f = threadIdx.x; f < p.features; f += kThreads)
        p.out[r * p.features + f] = narrow<T>(product(signed_value(f, line[f]), p.scale));
    } else {
      for (int64_t j = threadIdx.x; j < p.k; j += kThreads)
        p.out[r * p.k + j] = narrow<T>(product(line[column(j)], p.scale));
    }
    __syncthreads();
  }
}

int64_t line_bytes(const HadamardArgs& args) {
  return hadamard_order(args.features) * (args.dtype == DType::kF64 ? 8 : 4);
}

// A block for each row, or as many as have a line of scratch.
unsigned blocks_of(const HadamardArgs& args) {
  const int64_t bytes = line_bytes(args);
  return blocks_for(args.x.rows, 1,
                    bytes <= kSharedBytes ? kMaxBlocksX : (kScratchBytes + bytes - 1) / bytes);
}

}  // namespace

int64_t hadamard_workspace(const HadamardArgs& args) {
  return line_bytes(args) <= kSharedBytes ? 0 : blocks_of(args) * line_bytes(args);
}

int hadamard(const HadamardArgs& args) {
  if (args.x.rows == 0 || args.features == 0) return 0;
  const int64_t bytes = line_bytes(args);
  const bool shared = bytes <= kSharedBytes;
  const LaunchConfig config{dim3(blocks_of(args)), dim3(kThreads), shared ? static_cast<size_t>(bytes) : 0,
                            args.exec.stream};
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = Accumulate<T>;
    const HadamardParams<T> params{args.x,
                                   args.features,
                                   kept(args.features, args.spec.num, args.spec.den),
                                   hadamard_order(args.features),
                                   static_cast<Sum>(args.scale),
                                   static_cast<T*>(args.out),
                                   shared ? nullptr : static_cast<Sum*>(args.workspace)};
    const KeySource source{args.trailer, -1};
    return args.transposed ? launch(hadamard_kernel<T, true>, config, params, source)
                           : launch(hadamard_kernel<T, false>, config, params, source);
  });
}

}  // namespace rad::cuda

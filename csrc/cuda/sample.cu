#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

// Number i of a line, drawn on its own, or as a place in the line's permutation.
struct IndependentDraws {
  Sampler sampler;
  int64_t outer;
  RAD_DEVICE IndependentDraws(const Sampler& sampler_, int64_t outer_) : sampler(sampler_), outer(outer_) {}
  RAD_DEVICE int64_t operator()(int64_t i) const { return sampler.index(outer, i); }
};
struct PermutedDraws {
  Permutation permutation;
  RAD_DEVICE PermutedDraws(const Sampler& sampler, int64_t outer)
      : permutation(sampler.key, sampler.salt, outer, sampler.strata.n) {}
  RAD_DEVICE int64_t operator()(int64_t i) const { return permutation(i); }
};

// Lines [first, first + lines) of k indices each.
struct Lines {
  int64_t first, count;
  int64_t* index;
};

template <class Draws>
__global__ void __launch_bounds__(kThreads) sample_kernel(Sampler plan, KeySource source, Lines lines) {
  const Sampler sampler = keyed(plan, source);
  const int64_t k = sampler.k(), step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t line = blockIdx.y; line < lines.count; line += gridDim.y) {
    const Draws draws(sampler, lines.first + line);
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < k; i += step)
      lines.index[line * k + i] = draws(i);
  }
}

// One line in ascending order: an index goes to its rank, the number of draws before it. Every block
// regenerates all draws, which is cheaper than a sort's passes and scratch memory.
template <class Draws>
__global__ void __launch_bounds__(kThreads)
    sorted_sample_kernel(Sampler plan, KeySource source, Lines lines) {
  CUDA_SHARED(int64_t[kThreads], tile);
  const Sampler sampler = keyed(plan, source);
  const Draws draws(sampler, lines.first);
  const int64_t k = sampler.k();
  const int t = static_cast<int>(threadIdx.x);
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < k;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t own = base + t;
    const int64_t mine = own < k ? draws(own) : 0;
    int64_t rank = 0;
    for (int64_t first = 0; first < k; first += kThreads) {
      __syncthreads();
      tile[t] = first + t < k ? draws(first + t) : INT64_MAX;
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kThreads; ++i) rank += tile[i] < mine || (tile[i] == mine && first + i < own);
    }
    if (own < k) lines.index[rank] = mine;
  }
}

}  // namespace

int draw_indices(const Exec& exec, const SketchSpec& spec, const KeySource& source, int64_t n, int64_t first,
                 int64_t lines, int64_t* index) {
  const Sampler plan = plan_sample(spec, n);
  if (plan.k() == 0 || lines == 0) return 0;
  const bool permuted = spec.draw == Draw::kWithoutReplacement;
  const Lines out{first, lines, index};
  LaunchConfig config = over_items(plan.k(), exec.stream);
  if (spec.sampling == Sampling::kSame && spec.draw != Draw::kStratified) {
    const auto kernel =
        permuted ? sorted_sample_kernel<PermutedDraws> : sorted_sample_kernel<IndependentDraws>;
    return launch(kernel, config, plan, source, out);
  }
  config.grid.y = blocks_for(lines, 1, kMaxBlocksY);
  const auto kernel = permuted ? sample_kernel<PermutedDraws> : sample_kernel<IndependentDraws>;
  return launch(kernel, config, plan, source, out);
}

int64_t sample_workspace(const SampleArgs&) { return 0; }

int sample(const SampleArgs& args) {
  return draw_indices(args.exec, args.spec, {args.trailer, -1}, args.n, args.outer, args.lines, args.index);
}

const char* error_string(int status) {
#ifdef __CUDACC__
  return cudaGetErrorString(static_cast<cudaError_t>(status));
#else
  return status == 0 ? "no error" : "invalid value";
#endif
}

}  // namespace rad::cuda

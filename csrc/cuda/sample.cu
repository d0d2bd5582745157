#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

// One Philox call serves two indices.
__global__ void sample_kernel(Sampler plan, KeySource source, int64_t* index) {
  const Sampler sampler = keyed(plan, source);
  const int64_t k = sampler.k(), step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pair = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pair * 2 < k;
       pair += step) {
    const Words words = sampler.call(0, pair);
    index[pair * 2] = sampler.index(words, pair * 2);
    if (pair * 2 + 1 < k) index[pair * 2 + 1] = sampler.index(words, pair * 2 + 1);
  }
}

// Draws with replacement in ascending order: an index goes to its rank, the number of draws before it. Every
// block regenerates all draws, which is cheaper than a sort's passes and scratch memory.
__global__ void __launch_bounds__(kThreads)
    sorted_sample_kernel(Sampler plan, KeySource source, int64_t* index) {
  CUDA_SHARED(int64_t[kThreads], tile);
  const Sampler sampler = keyed(plan, source);
  const int64_t k = sampler.k();
  const int t = static_cast<int>(threadIdx.x);
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < k;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t own = base + t;
    const int64_t mine = own < k ? sampler.index(0, own) : 0;
    int64_t rank = 0;
    for (int64_t first = 0; first < k; first += kThreads) {
      __syncthreads();
      tile[t] = first + t < k ? sampler.index(0, first + t) : INT64_MAX;
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kThreads; ++i) rank += tile[i] < mine || (tile[i] == mine && first + i < own);
    }
    if (own < k) index[rank] = mine;
  }
}

}  // namespace

int draw_indices(const Exec& exec, const SketchSpec& spec, const KeySource& source, int64_t n,
                 int64_t* index) {
  const Sampler plan = plan_sample(spec, n);
  if (plan.k() == 0) return 0;
  if (spec.sampling == Sampling::kSame && spec.draw == Draw::kWithReplacement) {
    return launch(sorted_sample_kernel,
                  {dim3(blocks_for(plan.k(), kThreads)), dim3(kThreads), 0, exec.stream}, plan, source,
                  index);
  }
  return launch(sample_kernel,
                {dim3(blocks_for((plan.k() + 1) / 2, kThreads)), dim3(kThreads), 0, exec.stream}, plan,
                source, index);
}

int64_t sample_workspace(const SampleArgs&) { return 0; }

int sample(const SampleArgs& args) {
  return draw_indices(args.exec, args.spec, {args.trailer, -1}, args.n, args.index);
}

const char* error_string(int status) {
#ifdef __CUDACC__
  return cudaGetErrorString(static_cast<cudaError_t>(status));
#else
  return status == 0 ? "no error" : "invalid value";
#endif
}

}  // namespace rad::cuda

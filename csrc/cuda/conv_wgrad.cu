// dW of a convolution: a block owns one tap, one channel and some outputs. Its threads share the kept entries
// of that channel out, and look dy up where each of them meets the tap. Neighbouring entries are neighbouring
// positions, so that dy is read nearly in order; sums are joined in a fixed order.
#include "core/conv.h"
#include "cuda/conv_product.cuh"
#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

constexpr int kOutputs = 8;  // of a block
constexpr int kWarps = kThreads / 32;

template <class T>
struct ConvParams {
  ConvWgradArgs args;
  SavedView saved;
  int64_t group_channels, group_outputs, taps;
};

// A kept entry of one channel.
template <class Sum>
struct Entry {
  int64_t image, position;
  Sum value;
};

template <class T>
RAD_DEVICE Entry<Accumulate<T>> entry_of(const ConvParams<T>& p, const Sampler& sampler, int64_t channel,
                                         int64_t i) {
  const ConvWgradArgs& a = p.args;
  const int64_t positions = input_positions(a.axis);
  const Seed seed{sampler.key, sampler.salt};
  if (!a.by_channel) {
    const int64_t row = a.index ? a.index[i] : i;
    return {row / positions, row % positions,
            stored_value<T>(p.saved, seed, 0, i, channel) * sampler.template weight<Accumulate<T>>(i)};
  }
  const int64_t k = p.saved.layout.width, image = i / k, j = i % k, line = image * a.channels + channel;
  const int64_t position = a.spec.sampling == Sampling::kDifferent ? sampler.index(line, j)
                           : a.index                               ? a.index[j]
                                                                   : j;
  return {image, position,
          stored_value<T>(p.saved, seed, 0, line, j) * sampler.template weight<Accumulate<T>>(j)};
}

// Where in dy an input position and a tap meet, as an offset within an image's output; -1 for nowhere.
RAD_DEVICE int64_t meeting(const ConvAxis (&axis)[3], int64_t position, int64_t tap) {
  int64_t offset = 0;
  bool inside = true;
#pragma unroll
  for (int d = 2; d >= 0; --d) {
    const ConvAxis& a = axis[d];
    const int64_t q = output_position(a, position % a.input, tap % a.taps);
    inside = inside && q >= 0;
    offset += q * a.dy_stride;
    position /= a.input;
    tap /= a.taps;
  }
  return inside ? offset : -1;
}

// Thread 0 has the sum over the block, added in the same order whatever runs first.
template <class Sum>
RAD_DEVICE Sum block_sum(Sum value, Sum (&parts)[kWarps]) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 1; warp < kWarps; ++warp) value += threadIdx.x == 0 ? parts[warp] : Sum(0);
  return value;
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident) conv_wgrad_kernel(ConvParams<T> p, Sampler plan) {
  using Sum = Accumulate<T>;
  CUDA_SHARED(Sum[kWarps], parts);
  const ConvWgradArgs& a = p.args;
  const Sampler sampler = keyed(plan, p.saved.key());
  const int64_t tap = blockIdx.x % p.taps, channel = blockIdx.x / p.taps, group = channel / p.group_channels;
  const int64_t entries = a.by_channel ? a.images * p.saved.layout.width : p.saved.layout.lines;
  for (int64_t output = blockIdx.y * kOutputs; output < p.group_outputs; output += gridDim.y * kOutputs) {
    const T* dy = static_cast<const T*>(a.dy) + (group * p.group_outputs + output) * a.dy_output;
    Sum sums[kOutputs] = {};
    for (int64_t i = threadIdx.x; i < entries; i += kThreads) {
      const Entry<Sum> entry = entry_of(p, sampler, channel, i);
      const int64_t at = meeting(a.axis, entry.position, tap);
      if (at < 0) continue;
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        if (output + o < p.group_outputs)
          sums[o] += entry.value * widen(dy[entry.image * a.dy_image + at + o * a.dy_output]);
      }
    }
    T* dw = static_cast<T*>(a.dw) + group * a.dw_group + channel % p.group_channels * a.dw_channel + tap;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const Sum sum = block_sum(sums[o], parts);
      if (threadIdx.x == 0 && output + o < p.group_outputs) dw[(output + o) * a.dw_output] = narrow<T>(sum);
    }
  }
}

}  // namespace

int64_t conv_wgrad_workspace(const ConvWgradArgs& args) {
  return conv_product_pays(args) ? conv_product_workspace(args) : 0;
}

int conv_wgrad(const ConvWgradArgs& args) {
  if (conv_product_pays(args)) return conv_product(args);
  const SavedView saved(args.spec, args.dtype, packed_rows(args), packed_cols(args), args.saved);
  const int64_t taps = tap_count(args.axis), group_outputs = args.outputs / args.groups;
  const LaunchConfig config{
      dim3(static_cast<unsigned>(taps * args.channels), blocks_for(group_outputs, kOutputs, kMaxBlocksY)),
      dim3(kThreads), 0, args.exec.stream};
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ConvParams<T> params{args, saved, args.channels / args.groups, group_outputs, taps};
    return launch(conv_wgrad_kernel<T>, config, params,
                  plan_sample(args.spec, args.by_channel ? packed_cols(args) : packed_rows(args)));
  });
}

}  // namespace rad::cuda

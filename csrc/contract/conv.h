// The weight gradient of a convolution from the sketch of its input.
#pragma once
#include "contract/types.h"

namespace rad {

// One spatial dimension, both directions of convolution alike: input position p and tap t meet at output
// position (p * scale + offset + t * step) / divisor, where that is whole and inside.
struct ConvAxis {
  int64_t input, output, taps;
  int64_t scale, offset, step, divisor;  // conv: 1, padding, -dilation, stride
                                         // transposed: stride, -padding, dilation, 1
  int64_t dy_stride;
};

// dW[o, c, t] = sum over kept (n, c, p) of weight * x[n, c, p] * dy[n, o, q(p, t)] for the channels c and
// outputs o of one group. What was packed is x as [images * positions, channels] or, `by_channel`, as
// [images * channels, positions]: the latter for `same`, `different`, and keep = 1 where it is smaller.
struct ConvWgradArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;  // of dy, the stored values and dw
  bool by_channel;
  int64_t images, channels, outputs, groups;
  ConvAxis axis[3];  // outermost first; unused ones have one position and one tap
  const void* dy;
  int64_t dy_image, dy_output;  // strides
  const void* saved;
  const int64_t* index;  // [kept] rows or positions as `sample` lists them; null for `different` and keep = 1
  void* dw;              // every element is written; accumulated in fp32 (fp64 for fp64), rounded once. A GPU
             // may round decoded 16-bit values to dtype first, and let one that is NaN or infinite
             // make dW NaN at all taps of its channel
  int64_t dw_output, dw_channel;  // strides of outputs and channels of a group; taps lie side by side
  int64_t dw_group;
  void* workspace;
  bool portable = false;  // by the kernel for every GPU, where a faster one is for this GPU alone
};

}  // namespace rad

#define RAD_CONV_CONTRACTIONS(F)                  \
  F(int64_t, conv_wgrad_workspace, ConvWgradArgs) \
  F(int, conv_wgrad, ConvWgradArgs)

// Normalisations that keep dithered normalised values (docs/maths.md, normalisation).
#pragma once
#include "contract/types.h"

namespace rad {

// How n elements, in memory order, form sets that share a mean and a deviation. Element e has parameter
// (e / inner) % params. Sets are runs of `set` consecutive elements, or, by_channel, all elements of one
// parameter (set = n / params).
struct NormShape {
  int64_t n, set, params, inner;
  bool by_channel;
};

// x -> codes of its normalised values x_hat = (x - mean) * rstd in `saved`, whose key is in place; writes
// salt and version. Values and statistics are fp32, or fp64 for fp64. Sets of consecutive elements: rstd is
// written here, 1 / sqrt(var + eps), and mean is null. by_channel: both are read.
struct NormPackArgs {
  Exec exec;
  NormShape shape;
  DType dtype;  // of x
  int32_t bits;
  bool centred;  // mean and var about it; else mean 0 and var the mean square
  double eps;
  uint64_t salt;     // below 2^32
  const void* x;     // [n]
  const void* mean;  // [params] or null
  void* rstd;        // [n / set]
  void* saved;       // norm_layout(...).bytes bytes
};

// dx, and where weight_grad is not null d(weight) = sum dy x_hat and d(bias) = sum dy over each parameter.
struct NormBackwardArgs {
  Exec exec;
  NormShape shape;
  DType dtype;  // of dy and dx
  int32_t bits;
  bool centred;
  const void* dy;  // [n]
  const void* saved;
  const void* rstd;    // [n / set], fp32 or, with dtype fp64, fp64; so are all below but dx
  const void* weight;  // [params] or null: ones
  void* dx;            // [n] or null
  void* weight_grad;   // [params] or null
  void* bias_grad;     // [params], with weight_grad
  void* workspace;
};

}  // namespace rad

#define RAD_NORM_CONTRACTIONS(F)                        \
  F(int, norm_pack, NormPackArgs)                       \
  F(int64_t, norm_backward_workspace, NormBackwardArgs) \
  F(int, norm_backward, NormBackwardArgs)

// Pooling that keeps which element of its window is the greatest, and nothing else.
#pragma once
#include "contract/types.h"

namespace rad {

// x [planes, in.., lanes] and y [planes, out.., lanes], contiguous: lanes is 1, or the channels where they
// lie innermost. Fewer than three spatial dimensions have leading ones of size, window, stride and
// dilation 1.
struct PoolShape {
  int64_t planes, lanes;
  int64_t in[3], out[3], window[3], stride[3], pad[3], dilation[3];
};

// y = greatest of its window, the last NaN if there is one. codes: the place in the window, counted in its
// own row-major order, in the fewest bits; word b of group g holds bit b of elements 32 g .. 32 g + 31 of y.
struct MaxPoolArgs {
  Exec exec;
  DType dtype;
  PoolShape shape;
  const void* x;
  void* y;
  uint32_t* codes;  // [groups, bits], bits past the last element are zero
};

// dx [planes, in.., lanes]: sums over the elements of y in ascending order, rounded after each.
struct MaxPoolBackwardArgs {
  Exec exec;
  DType dtype;
  PoolShape shape;
  const void* dy;
  const uint32_t* codes;
  void* dx;
};

}  // namespace rad

#define RAD_POOL_CONTRACTIONS(F) \
  F(int, max_pool, MaxPoolArgs)  \
  F(int, max_pool_backward, MaxPoolBackwardArgs)

// Elementwise operators that keep bits, or only a key, instead of an activation.
#pragma once
#include "contract/types.h"

namespace rad {

// y = x < 0 ? 0 : x with a one-bit mask. Bit i % 32 of word i / 32 is set where torch's backward lets the
// gradient pass (y > 0 or y is NaN). Elements are numbered in memory order. y == x is allowed.
struct ReluArgs {
  Exec exec;
  DType dtype;
  const void* x;   // [n]
  void* y;         // [n]
  uint32_t* mask;  // [(n + 31) / 32], bits past n are zero
  int64_t n;
};

// dx = mask ? dy : 0. dx == dy is allowed.
struct MaskedArgs {
  Exec exec;
  DType dtype;
  const void* dy;        // [n]
  const uint32_t* mask;  // [(n + 31) / 32]
  void* dx;              // [n]
  int64_t n;
};

// y = u >= p ? x * scale : 0 with u regenerated from (key, salt) element by element, in memory order; forward
// and backward are this one function. y == x is allowed.
struct DropoutArgs {
  Exec exec;
  DType dtype;
  Trailer* trailer;  // its key is in place
  int64_t salt;      // forward: below 2^32, written to the trailer with the version; backward: -1, read there
  uint32_t threshold;  // an element is dropped when its 32-bit word is below
  float scale;         // 2^32 / (2^32 - threshold)
  const void* x;       // [n]
  void* y;             // [n]
  int64_t n;
};

}  // namespace rad

#define RAD_ELEMENTWISE_CONTRACTIONS(F) \
  F(int, relu, ReluArgs)                \
  F(int, masked, MaskedArgs)            \
  F(int, dropout, DropoutArgs)

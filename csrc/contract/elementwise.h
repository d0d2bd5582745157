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

// A mask as above of where a piecewise linear function lets the gradient pass. Comparisons with NaN are
// false.
enum class Rule : int32_t {
  kAbove = 0,     // x > lo
  kNotBelow = 1,  // not x <= lo
  kBetween = 2,   // not (x <= lo or x >= hi)
  kWithin = 3,    // x > lo and x < hi
  kOutside = 4,   // not (x >= lo and x <= hi)
};
struct KinkArgs {
  Exec exec;
  DType dtype;
  Rule rule;
  double lo, hi;   // rounded to the accumulator's type; under kOutside to x's own, as torch does
  const void* x;   // [n]
  uint32_t* mask;  // [(n + 31) / 32], bits past n are zero
  int64_t n;
};

// dx = mask ? dy * on : dy * off, factors in the accumulator's type, rounded once. dx == dy is allowed.
struct SlopedArgs {
  Exec exec;
  DType dtype;
  double on, off;
  const void* dy;        // [n]
  const uint32_t* mask;  // [(n + 31) / 32]
  void* dx;              // [n]
  int64_t n;
};

// A smooth function. Softplus: a = beta, b = threshold. Elu (celu, selu): a = alpha, b = scale, c = input
// scale > 0, so that f' = a b c exp(c x) for x <= 0 and b above.
enum class Function : int32_t {
  kGelu = 0,
  kGeluTanh = 1,
  kSilu = 2,
  kMish = 3,
  kTanh = 4,
  kSigmoid = 5,
  kLogSigmoid = 6,
  kSoftplus = 7,
  kElu = 8,
  kHardswish = 9,
  kRelu = 10,
};
struct Activation {
  Function function;
  double a, b, c;
};

// x -> codes of f'(x) within its fixed range (core/derivative.h), in memory order, and the trailer, whose key
// is in place. One NaN among the derivatives spoils them all: reserved[kSpoiled] of the trailer is set, and
// all codes are read back as NaN.
constexpr int kSpoiled = 0;
struct ActivationArgs {
  Exec exec;
  DType dtype;
  Activation activation;
  int32_t bits;   // 8, 4, 2 or 1
  uint64_t salt;  // below 2^32
  const void* x;  // [n]
  void* saved;    // DerivativeLayout(n, bits).bytes bytes, 16-byte aligned
  int64_t n;
};

// dx = dy * f'(x)^, rounded once. dx == dy is allowed.
struct ActivationBackwardArgs {
  Exec exec;
  DType dtype;
  Activation activation;
  int32_t bits;
  const void* dy;     // [n]
  const void* saved;  // as above
  void* dx;           // [n]
  int64_t n;
};

}  // namespace rad

#define RAD_ELEMENTWISE_CONTRACTIONS(F) \
  F(int, relu, ReluArgs)                \
  F(int, masked, MaskedArgs)            \
  F(int, dropout, DropoutArgs)          \
  F(int, kink, KinkArgs)                \
  F(int, sloped, SlopedArgs)            \
  F(int, activation, ActivationArgs)    \
  F(int, activation_backward, ActivationBackwardArgs)

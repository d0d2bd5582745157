// Cross-entropy from dithered probabilities.
#pragma once
#include "contract/types.h"

namespace rad {

// Log-probabilities -> codes of the probabilities, each group of 64 with its own step, in memory order, and
// the trailer, whose key is in place.
struct ProbabilitiesArgs {
  Exec exec;
  DType dtype;
  int32_t bits;       // 8, 4, 2 or 1
  uint64_t salt;      // below 2^32
  const void* log_p;  // [n]
  void* saved;        // ProbabilityLayout(n, bits).bytes bytes, 16-byte aligned
  int64_t n;
};

// dx = scale p^ - level class_weight - [class == target] hit, rounded once. Coefficients are in the
// accumulator's type; null target, level or class_weight: no hit, no level, weights of 1.
struct CrossEntropyBackwardArgs {
  Exec exec;
  DType dtype;
  int32_t bits;
  const void* saved;         // as above, of n = outer * classes * inner
  const void* scale;         // [outer, inner]
  const void* hit;           // [outer, inner]
  const void* level;         // [outer, inner]
  const void* class_weight;  // [classes]
  const int64_t* target;     // [outer, inner]
  void* dx;                  // [outer, classes, inner]
  int64_t outer, classes, inner;
};

}  // namespace rad

#define RAD_LOSS_CONTRACTIONS(F)           \
  F(int, probabilities, ProbabilitiesArgs) \
  F(int, cross_entropy_backward, CrossEntropyBackwardArgs)

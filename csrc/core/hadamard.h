// The random matrix R of `project` with the hadamard draw (docs/maths.md, projection): R = diag(s) H[:, S]
// cut to the activation's features, with H of a power of two, s random signs, S a draw without replacement.
#pragma once
#include "core/permutation.h"
#include "core/signs.h"

namespace rad {

// The order of H: the least power of two that is at least `features`.
RAD_HD int64_t hadamard_order(int64_t features) {
  int64_t order = 1;
  while (order < features) order *= 2;
  return order;
}

// s: the first line of the sign matrix that the other draw uses whole.
RAD_HD bool hadamard_sign(uint64_t key, uint64_t salt, int64_t feature) {
  return sign_bit(sign_call(key, salt, 0, feature), feature);
}

// S: stored column j holds column permutation(j) of H.
RAD_HD Permutation hadamard_columns(uint64_t key, uint64_t salt, int64_t order) {
  return Permutation(key, salt, 0, order);
}

}  // namespace rad

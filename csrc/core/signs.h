#pragma once
#include "core/philox.h"

namespace rad {

// Entry (feature, column) of the Rademacher matrix of `project` is +1 where this bit is set, else -1: bit
// column % 128 of call column / 128 of line `feature`.
RAD_HD Words sign_call(uint64_t key, uint64_t salt, int64_t feature, int64_t column) {
  return random_words(key, salt, Role::kSigns, feature, column >> 7);
}
RAD_HD bool sign_bit(const Words& call, int64_t column) {
  const uint32_t low = column & 32 ? call.w[1] : call.w[0], high = column & 32 ? call.w[3] : call.w[2];
  return (column & 64 ? high : low) >> (column & 31) & 1u;
}

// The stored projection is x R times this power of two near 1 / sqrt(k), which keeps 16-bit values in range
// and rounds nothing.
RAD_HD double project_scale(int64_t k) {
  double scale = 1;
  for (int64_t rest = k; rest >= 4; rest /= 4) scale /= 2;
  return scale;
}

}  // namespace rad

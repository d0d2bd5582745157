// Rows drawn with replacement with probability p_n = 0.9 a_n / S + 0.1 / N, where a_n is row n's norm in
// fixed point and S their sum (docs/maths.md, norm draw). The uniform part bounds every weight by 10 N / k.
#pragma once
#include "core/sampler.h"

namespace rad {

constexpr int64_t kUniformShare = 10;  // one draw in ten ignores the norms

// `norm` relative to the largest one, in units of 2^-30; 0 when the norms say nothing.
RAD_HD uint64_t fixed_norm(float norm, float largest) {
  return largest > 0 && largest - largest == 0
             ? static_cast<uint64_t>(static_cast<double>(norm) / largest * (1 << 30))
             : 0;
}

// Draw i of N rows; prefix[n] = a_0 + ... + a_n.
RAD_HD int64_t norm_index(const Words& words, const uint64_t* prefix, int64_t rows) {
  const uint64_t total = prefix[rows - 1], choice = word64(words, 0), place = word64(words, 1);
  if (total == 0 || mulhi64(choice, kUniformShare) == 0) return static_cast<int64_t>(mulhi64(place, rows));
  const uint64_t target = mulhi64(place, total);
  int64_t low = 0, high = rows - 1;  // the first n with prefix[n] > target
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (prefix[middle] > target) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// 1 / (k p_n).
RAD_HD float norm_weight(const uint64_t* prefix, int64_t rows, int64_t k, int64_t n) {
  const uint64_t total = prefix[rows - 1], own = prefix[n] - (n ? prefix[n - 1] : 0);
  const double uniform = 1.0 / static_cast<double>(rows);
  const double share = static_cast<double>(own) / static_cast<double>(total);
  const double p = total == 0 ? uniform : product(0.9, share) + product(0.1, uniform);
  return static_cast<float>(1.0 / (static_cast<double>(k) * p));
}

}  // namespace rad

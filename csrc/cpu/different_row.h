// One row's sample under `different`, many Philox calls at a time.
#pragma once
#include "core/sampler.h"

namespace rad::cpu {

constexpr int kLanes = 16;  // Philox calls side by side: two vectors of 64-bit products

// out[i] = the index that sampler.index(row, i) names, for i in [begin, end).
void different_row(const Sampler& sampler, int64_t row, int64_t begin, int64_t end, int64_t* out);

}  // namespace rad::cpu

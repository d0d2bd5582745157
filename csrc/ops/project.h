#pragma once
#include "ops/saved.h"

namespace rad::ops {

// scale * x R: what `project` stores of x [..., features], in its dtype.
Tensor projected(const Tensor& x, const Saved& saved);

// sums R^T / (k scale) [m, features] of sums [m, k], in their dtype: of stored lines, the estimate of the
// activation; of dy^T @ stored, that of the weight gradient.
Tensor projected_back(const Tensor& sums, const Saved& saved);

}  // namespace rad::ops

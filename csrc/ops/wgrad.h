#pragma once
#include "ops/saved.h"

namespace rad::ops {

// dy [..., outputs] and what is saved of x -> the unbiased estimate of dy^T x [outputs, features] in dy's
// dtype. The one place that decides which path a sampled weight gradient takes.
Tensor sampled_wgrad(const Tensor& dy, const Saved& saved);

}  // namespace rad::ops

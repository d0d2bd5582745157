#pragma once
#include "ops/saved.h"

namespace rad::ops {

// How the gradient of `rows` and `tile_rows` is made: by the kernel that gathers on its way (16-bit types),
// by gathering and the BLAS, or by whichever of the two should be faster.
enum class RowsPath { kChosen, kFused, kGathered };

// dy [..., outputs] and what is saved of x -> the unbiased estimate of dy^T x [outputs, features] in dy's
// dtype. The one place that decides which path a sampled weight gradient takes.
Tensor sampled_wgrad(const Tensor& dy, const Saved& saved, RowsPath path = RowsPath::kChosen);

}  // namespace rad::ops

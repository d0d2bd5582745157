#pragma once
#include "ops/tensor.h"

namespace rad::ops {

// x [..., features] -> the buffer that keeps its sketch, with a key as given or drawn from torch's generator.
Tensor pack(const Tensor& x, const SketchSpec& spec, int64_t salt, const std::optional<Tensor>& key);

}  // namespace rad::ops

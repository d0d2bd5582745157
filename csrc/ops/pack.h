#pragma once
#include "ops/saved.h"

namespace rad::ops {

// x [..., features] -> the buffer that keeps its sketch, with a key as given or drawn from torch's generator.
Tensor pack(const Tensor& x, const SketchSpec& spec, int64_t salt, const std::optional<Tensor>& key);

// The same into planes of which only the key is in place.
void pack_into(const Saved& saved, Matrix x, int64_t salt);

}  // namespace rad::ops

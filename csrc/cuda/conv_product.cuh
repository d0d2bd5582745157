// The weight gradient of a convolution on tensor cores.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

// Whether it is for them: 16-bit values at positions that channels share, and enough of a tile in use.
bool conv_product_pays(const ConvWgradArgs& args);
int64_t conv_product_workspace(const ConvWgradArgs& args);
int conv_product(const ConvWgradArgs& args);

}  // namespace rad::cuda

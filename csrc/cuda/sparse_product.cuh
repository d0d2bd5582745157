// dW of `different` in 16-bit types on tensor cores.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

// Whether it is for them: 16-bit values, one of each stratum, features that 32 bits count.
bool sparse_product_possible(const LinearWgradArgs& args);
int sparse_product(const LinearWgradArgs& args);

}  // namespace rad::cuda

// Derivatives of a block of elements: the part of every function that keeps coded factors.
#pragma once
#include "core/derivative.h"
#include "cpu/block.h"

namespace rad::cpu {

// f'(x), some number for NaN; true where f' is NaN for one.
template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Block<Real>& out);

}  // namespace rad::cpu

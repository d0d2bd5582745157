// Derivatives of a block of elements: the part of every function that keeps coded factors.
#pragma once
#include "core/derivative.h"
#include "cpu/block.h"

namespace rad::cpu {

// f'(x), with `stand_in` for NaN; true where there is one.
template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Real stand_in, Block<Real>& out);

}  // namespace rad::cpu

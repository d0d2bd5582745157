// Blocks of elements as numbers, their derivatives, and products back: the parts of every function that keeps
// coded factors.
#pragma once
#include "core/derivative.h"
#include "core/dtype.h"

namespace rad::cpu {

// Numbers of 128 elements.
template <class Real>
struct alignas(64) Block {
  static constexpr int kCount = 128;
  Real value[kCount];
};

// The first `count` elements of x; the others repeat the first.
template <class T>
void load_block(const T* x, int64_t count, Block<Accumulate<T>>& out);

// f'(x), with `stand_in` for NaN; true where there is one.
template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Real stand_in, Block<Real>& out);

// out = dy * factor for the first `count` elements, rounded once. out == dy is allowed.
template <class T>
void multiply_block(const T* dy, const Block<Accumulate<T>>& factor, int64_t count, T* out);

}  // namespace rad::cpu

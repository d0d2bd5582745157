// Blocks of elements as numbers: the unit in which the CPU works on codes.
#pragma once
#include "core/dtype.h"

namespace rad::cpu {

// Blocks start at multiples of kBlock, a whole number of groups of codes.
constexpr int64_t kBlock = 128;

template <class Real>
struct alignas(64) Block {
  Real value[kBlock] = {};

  void fill(Real v) {
    for (Real& each : value) each = v;
  }
};

// body(begin, count) over the blocks of a line.
template <class Body>
void for_each_block(int64_t width, const Body& body) {
  for (int64_t begin = 0; begin < width; begin += kBlock)
    body(begin, width - begin < kBlock ? width - begin : kBlock);
}

// The first `count` elements of x; the others repeat the first.
template <class T>
void load_block(const T* x, int64_t count, Block<Accumulate<T>>& out);

// The first `count` values, rounded once.
template <class T>
void store_block(const Block<Accumulate<T>>& values, int64_t count, T* out);

// out = dy * factor for the first `count` elements, rounded once. out == dy is allowed.
template <class T>
void multiply_block(const T* dy, const Block<Accumulate<T>>& factor, int64_t count, T* out);

}  // namespace rad::cpu

#pragma once
#include <algorithm>
#include <cstdint>

namespace rad::ops {

// Transients on the CPU come in pieces of at most this many bytes, so that no dense copy of an activation
// appears; a GPU wants one piece.
constexpr int64_t kBlockBytes = 4 << 20;      // gathered dy rows, decoded lines, signs
constexpr int64_t kProductBytes = 256 << 10;  // packed columns of dW

inline int64_t block_of(int64_t budget, int64_t bytes_each) {
  return std::max<int64_t>(budget / std::max<int64_t>(bytes_each, 1), 1);
}

}  // namespace rad::ops

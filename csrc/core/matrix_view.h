#pragma once
#include "core/host_device.h"
#include "kernels.h"

namespace rad {

// Element offset of the first column of row r.
RAD_HD int64_t row_offset(const MatrixView& m, int64_t r) {
  const int64_t inner = r % m.size[2], rest = r / m.size[2];
  return rest / m.size[1] * m.stride[0] + rest % m.size[1] * m.stride[1] + inner * m.stride[2];
}

inline MatrixView contiguous_matrix(const void* data, int64_t rows, int64_t cols) {
  return {data, rows, cols, 1, {1, 1, rows}, {0, 0, cols}};
}

}  // namespace rad

// Copies chosen rows of a strided matrix to consecutive rows.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

constexpr int kRowsAhead = 4;  // rows of a thread in flight together

// out[i, :] = convert(i, m[rows(i), :]), i < count; out is contiguous, strides of m count items of In.
template <class In, class Out, class Rows, class Convert>
RAD_DEVICE void copy_rows(const MatrixView& m, int64_t count, const Rows& rows, Out* out,
                          const Convert& convert) {
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const int64_t first_col = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
#pragma unroll 1
  for (int64_t i = first_row; i < count; i += kRowsAhead * row_step) {
    const In* from[kRowsAhead];
#pragma unroll
    for (int a = 0; a < kRowsAhead; ++a) {  // past the last row, that row once more
      const int64_t row = i + a * row_step;
      from[a] = static_cast<const In*>(m.data) + offset_of_row(m, rows(row < count ? row : count - 1));
    }
#pragma unroll 1
    for (int64_t c = first_col; c < m.cols; c += col_step) {
      In value[kRowsAhead];
#pragma unroll
      for (int a = 0; a < kRowsAhead; ++a) value[a] = from[a][c * m.col_stride];
#pragma unroll
      for (int a = 0; a < kRowsAhead; ++a) {
        const int64_t row = i + a * row_step;
        if (row < count) out[row * m.cols + c] = convert(row, value[a]);
      }
    }
  }
}

// Bytes per unit of a plain copy: the widest that divides every row's start and length on both sides.
inline int64_t copy_unit(const MatrixView& m, int64_t item, const void* out) {
  for (int64_t unit = kVectorBytes; unit > item; unit /= 2) {
    if (rows_aligned(m, item, unit) && aligned(out, unit) && m.cols * item % unit == 0) return unit;
  }
  return item;
}

// The same matrix with columns and strides counted in units.
inline MatrixView in_units(MatrixView m, int64_t item, int64_t unit) {
  const int64_t ratio = unit / item;
  m.cols /= ratio;
  for (int64_t& stride : m.stride) stride /= ratio;
  return m;
}

// f(TypeTag<unit>) for what copy_unit found.
template <class F>
int visit_unit(int64_t unit, F&& f) {
  return unit == kVectorBytes ? f(TypeTag<uint4>{}) : visit_item(unit, f);
}

}  // namespace rad::cuda

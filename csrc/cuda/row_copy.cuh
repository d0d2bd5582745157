// Copies chosen rows of a strided matrix to consecutive rows.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

// out[i, :] = convert(i, m[rows(i), :]), i < count; out is contiguous, strides of m count items of In.
template <class In, class Out, class Rows, class Convert>
RAD_DEVICE void copy_rows(const MatrixView& m, int64_t count, const Rows& rows, Out* out,
                          const Convert& convert) {
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const int64_t first_col = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < count; i += row_step) {
    const In* from = static_cast<const In*>(m.data) + offset_of_row(m, rows(i));
    for (int64_t c = first_col; c < m.cols; c += col_step)
      out[i * m.cols + c] = convert(i, from[c * m.col_stride]);
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

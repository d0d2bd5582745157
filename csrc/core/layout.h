// The one place that knows how `saved` is laid out: planes at 128-byte offsets, then the trailer.
#pragma once
#include "core/sampler.h"
#include "kernels.h"

namespace rad {

constexpr int64_t kPlaneAlign = 128;

RAD_HD int64_t item_size(DType dtype) {
  return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
}

template <class Int>
RAD_HD Int align_plane(Int bytes) {
  return (bytes + (kPlaneAlign - 1)) / kPlaneAlign * kPlaneAlign;
}

// The stored values form a matrix [stored_rows, stored_cols] at offset 0. Int is int64_t, or a symbolic
// integer where shapes are traced.
template <class Int>
struct SavedLayout {
  Int stored_rows, stored_cols;
  Int trailer;  // byte offset
  Int bytes;    // of the whole buffer
};

template <class Int>
RAD_HD SavedLayout<Int> saved_layout(const SketchSpec& spec, DType dtype, Int rows, Int features) {
  const bool by_row = spec.sampling == Sampling::kRows;
  const Int stored_rows = by_row ? kept(rows, spec.num, spec.den) : rows;
  const Int stored_cols = by_row ? features : kept(features, spec.num, spec.den);
  const Int trailer = align_plane(stored_rows * stored_cols * item_size(dtype));
  return {stored_rows, stored_cols, trailer, trailer + static_cast<int64_t>(sizeof(Trailer))};
}

}  // namespace rad

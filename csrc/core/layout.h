// The one place that knows how `saved` is laid out: planes at 128-byte offsets, then the trailer.
#pragma once
#include "core/sampler.h"
#include "kernels.h"

namespace rad {

constexpr int64_t kPlaneAlign = 128;

RAD_HD int64_t item_size(DType dtype) {
  return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
}

RAD_HD int64_t align_plane(int64_t bytes) { return (bytes + kPlaneAlign - 1) / kPlaneAlign * kPlaneAlign; }

// The stored values form a matrix [stored_rows, stored_cols] at offset 0.
struct SavedLayout {
  int64_t stored_rows, stored_cols;
  int64_t trailer;  // byte offset
  int64_t bytes;    // of the whole buffer
};

// Where the values end. From there to the trailer is padding, written as zeros: equal samples, equal buffers.
RAD_HD int64_t values_bytes(const SavedLayout& layout, DType dtype) {
  return layout.stored_rows * layout.stored_cols * item_size(dtype);
}

// rad_kernels/sketch.py has the same rule for traced shapes; a test holds the two together.
RAD_HD SavedLayout saved_layout(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features) {
  const bool by_row = spec.sampling == Sampling::kRows;
  const int64_t stored_rows = by_row ? kept(rows, spec.num, spec.den) : rows;
  const int64_t stored_cols = by_row ? features : kept(features, spec.num, spec.den);
  const int64_t trailer = align_plane(stored_rows * stored_cols * item_size(dtype));
  return {stored_rows, stored_cols, trailer, trailer + static_cast<int64_t>(sizeof(Trailer))};
}

}  // namespace rad

// dy as rows of outputs, whatever its layout.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/dtype.h"

namespace rad::cpu {

constexpr int64_t kVectorBytes = 64;
typedef float FloatVector __attribute__((vector_size(64), may_alias));
typedef double DoubleVector __attribute__((vector_size(64), may_alias));

template <class Sum>
constexpr int64_t kVectorLanes = kVectorBytes / static_cast<int64_t>(sizeof(Sum));

// A square of `kVectorLanes` by as many: to[r * pitch + o] = from[o * stride + r].
void transpose_square(const float* from, int64_t stride, int64_t pitch, float* to);
void transpose_square(const double* from, int64_t stride, int64_t pitch, double* to);

// panel[r * strip + o] = dy[r * row_stride + o * output_stride] for o < width, and 0 up to the strip's end.
template <class T>
void load_rows(const T* dy, int64_t row_stride, int64_t output_stride, int64_t rows, int64_t width,
               int64_t strip, Accumulate<T>* panel) {
  using Sum = Accumulate<T>;
  constexpr int64_t kSquare = kVectorLanes<Sum>;
  for (int64_t r0 = 0; r0 < rows; r0 += kSquare) {
    const int64_t height = std::min(kSquare, rows - r0);
    const T* from = dy + r0 * row_stride;
    Sum* to = panel + r0 * strip;
    if (width < strip) std::fill(to, to + height * strip, Sum{0});
    int64_t o = 0;
    if (row_stride == 1 && height == kSquare) {
      for (; o + kSquare <= width; o += kSquare) {
        if constexpr (std::is_same_v<T, Sum>) {
          transpose_square(from + o * output_stride, output_stride, strip, to + o);
        } else {
          alignas(kVectorBytes) Sum square[kSquare * kSquare];
          for (int64_t i = 0; i < kSquare; ++i) {
            for (int64_t r = 0; r < kSquare; ++r)
              square[i * kSquare + r] = widen(from[(o + i) * output_stride + r]);
          }
          transpose_square(square, kSquare, strip, to + o);
        }
      }
    }
    if (output_stride == 1) {
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t i = o; i < width; ++i) to[r * strip + i] = widen(from[r * row_stride + i]);
      }
    } else {
      for (int64_t i = o; i < width; ++i) {
        for (int64_t r = 0; r < height; ++r)
          to[r * strip + i] = widen(from[r * row_stride + i * output_stride]);
      }
    }
  }
}

}  // namespace rad::cpu

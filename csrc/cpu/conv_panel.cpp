#include "cpu/conv_panel.h"

#include <cstring>
#include <utility>

#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

// Blocks of kStep lanes change places between two rows. (No vector is returned: that would be a matter of the
// caller's ABI.)
template <int kStep, class Vector, size_t... kLane>
inline __attribute__((always_inline)) void exchange_blocks(Vector& low, Vector& high,
                                                           std::index_sequence<kLane...>) {
  constexpr int kLanes = sizeof...(kLane);
  const Vector a = low, b = high;
  low = __builtin_shufflevector(a, b, static_cast<int>(kLane & kStep ? kLanes + kLane - kStep : kLane)...);
  high = __builtin_shufflevector(a, b, static_cast<int>(kLane & kStep ? kLanes + kLane : kLane + kStep)...);
}

template <int kStep, int kLanes, class Vector>
inline __attribute__((always_inline)) void exchange(Vector (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kStep)) exchange_blocks<kStep>(rows[i], rows[i + kStep], std::make_index_sequence<kLanes>{});
  }
  if constexpr (kStep > 1) exchange<kStep / 2>(rows);
}

template <class Vector, class Sum>
inline __attribute__((always_inline)) void transpose(const Sum* from, int64_t stride, int64_t pitch,
                                                     Sum* to) {
  constexpr int kLanes = static_cast<int>(kVectorLanes<Sum>);
  Vector rows[kLanes];
  for (int i = 0; i < kLanes; ++i) std::memcpy(&rows[i], from + i * stride, sizeof(Vector));
  exchange<kLanes / 2>(rows);
  for (int i = 0; i < kLanes; ++i) std::memcpy(to + i * pitch, &rows[i], sizeof(Vector));
}

}  // namespace

RAD_VECTOR_CLONES void transpose_square(const float* from, int64_t stride, int64_t pitch, float* to) {
  transpose<FloatVector>(from, stride, pitch, to);
}
RAD_VECTOR_CLONES void transpose_square(const double* from, int64_t stride, int64_t pitch, double* to) {
  transpose<DoubleVector>(from, stride, pitch, to);
}

}  // namespace rad::cpu

// 16-bit floating types as plain bits, for compilers that have none. Conversions round to nearest even.
#pragma once
#include <bit>
#include <cstdint>

#include "kernels.h"

namespace rad {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline float to_float(BFloat16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

inline float to_float(Half v) {
  const uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(v.bits & 0x7FFFu) << 13;
  // Exponents differ in bias by 112: one multiplication rescales normal and subnormal numbers alike.
  const float scaled = std::bit_cast<float>(magnitude) * std::bit_cast<float>(0x77800000u);
  const bool special = (v.bits & 0x7C00u) == 0x7C00u;
  const uint32_t value = special ? magnitude | 0x7F800000u : std::bit_cast<uint32_t>(scaled);
  return std::bit_cast<float>(sign | value);
}

inline BFloat16 to_bfloat16(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>(u >> 16 | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16)};
}

inline Half to_half(float f) {
  const uint32_t u = std::bit_cast<uint32_t>(f), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
  uint32_t h;
  if (a >= 0x7F800000u) {  // infinity, NaN
    h = 0x7C00u | (a > 0x7F800000u ? 0x200u | (a >> 13 & 0x3FFu) : 0u);
  } else if (a >= 0x477FF000u) {  // rounds above the largest half
    h = 0x7C00u;
  } else if (a < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded bits at the bottom
    h = std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0.5f) - 0x3F000000u;
  } else {
    h = (a - 0x38000000u + 0xFFFu + (a >> 13 & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | h)};
}

// The type in which sums of T are held.
template <class T>
struct AccumulateIn {
  using type = float;
};
template <>
struct AccumulateIn<double> {
  using type = double;
};
template <class T>
using Accumulate = typename AccumulateIn<T>::type;

inline float widen(float v) { return v; }
inline double widen(double v) { return v; }
inline float widen(BFloat16 v) { return to_float(v); }
inline float widen(Half v) { return to_float(v); }

template <class T>
T narrow(Accumulate<T> v) {
  return v;
}
template <>
inline BFloat16 narrow<BFloat16>(float v) {
  return to_bfloat16(v);
}
template <>
inline Half narrow<Half>(float v) {
  return to_half(v);
}

template <class T>
struct TypeTag {
  using type = T;
};

// f(TypeTag<T>) for the type that `dtype` names.
template <class F>
int visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(TypeTag<float>{});
    case DType::kF64:
      return f(TypeTag<double>{});
    case DType::kBF16:
      return f(TypeTag<BFloat16>{});
    case DType::kF16:
      return f(TypeTag<Half>{});
  }
  return 1;
}

// The same where only bits move.
template <class F>
int visit_item(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF64:
      return f(TypeTag<uint64_t>{});
    case DType::kF32:
      return f(TypeTag<uint32_t>{});
    case DType::kBF16:
    case DType::kF16:
      return f(TypeTag<uint16_t>{});
  }
  return 1;
}

}  // namespace rad

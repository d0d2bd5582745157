// Subtractive dither (docs/maths.md, dither): codes whose decoding is exactly unbiased with error variance
// step^2 / 12. Every operation is one IEEE rounding in a fixed order, so all devices write the same codes.
#pragma once
#include "core/philox.h"

#if !defined(__CUDA_ARCH__)
#include <cstring>
#endif

namespace rad {

constexpr int kGroup = 64;  // consecutive stored values that share (lo, step)

RAD_HD uint32_t float_bits(float f) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(f);
#else
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
#endif
}
RAD_HD float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(u);
#else
  float f;
  std::memcpy(&f, &u, 4);
  return f;
#endif
}

// The smallest bf16 that is at least f >= 0, as a float; NaN and infinity give NaN.
RAD_HD float step_up_to_bf16(float f) {
  const uint32_t u = float_bits(f);
  if (u >= 0x7F7F0001u) return bits_float(0x7FC00000u);
  return bits_float((u + 0xFFFFu) & 0xFFFF0000u);
}

// The greatest bf16 number that is at most v, which is finite and, rounded, no infinity.
template <class Real>
RAD_HD Real down_to_bf16(Real v) {
  const uint32_t u = float_bits(static_cast<float>(v)), negative = u >> 31;
  uint32_t floor = (u + (negative ? 0xFFFFu : 0u)) & 0xFFFF0000u;
  // A double that was rounded up to a bf16 number.
  if (static_cast<Real>(bits_float(floor)) > v) floor += negative ? 0x10000u : 0xFFFF0000u;
  return static_cast<Real>(bits_float(floor));
}

// The 16 random bits of stored value `column` of stored line `line`: eight to a Philox call.
RAD_HD Words dither_call(uint64_t key, uint64_t salt, int64_t line, int64_t column,
                         Role role = Role::kDither) {
  return random_words(key, salt, role, line, column >> 3);
}
RAD_HD uint32_t dither_noise(const Words& call, int64_t column) {
  // Selects, not an index: indexed, the words would live in the GPU's local memory.
  const uint32_t low = column & 2 ? call.w[1] : call.w[0], high = column & 2 ? call.w[3] : call.w[2];
  return (column & 4 ? high : low) >> (16 * (column & 1)) & 0xFFFFu;
}

// Real is float, or double for fp64 activations. `lo` is the group's least value, or below it.
template <class Real>
struct Dither {
  Real lo, step;
  int levels;  // 2^bits - 1

  RAD_HD Dither(Real lo_, Real step_, int bits) : lo(lo_), step(step_), levels((1 << bits) - 1) {}

  // The step of a group with range [lo, hi]: a bf16 value of at least (hi - lo) / levels.
  RAD_HD static float step_for(Real lo, Real hi, int bits) {
    const Real range = hi - lo;
    const int levels = (1 << bits) - 1;
    float step = step_up_to_bf16(static_cast<float>(range / static_cast<Real>(levels)));
    // A quotient that was rounded down to a bf16 value would put hi above the last level.
    if (range / static_cast<Real>(step) > static_cast<Real>(levels))
      step = bits_float(float_bits(step) + 0x10000u);
    return step;
  }

  // What is stored beside `step` as the least value. NaN has many bit patterns, so where the step says that
  // nothing can be decoded, zero stands for all of them.
  RAD_HD static Real stored_lo(Real lo, float step) { return step == step ? lo : Real(0); }

  // u + 1/2 with u = (noise + 1/2) / 2^16 - 1/2, the noise centred on zero.
  RAD_HD static Real fraction(uint32_t noise) {
    return product(static_cast<Real>(static_cast<int>(2 * noise + 1)), static_cast<Real>(1.0 / 131072));
  }

  // Selects rather than branches, so that loops over a group vectorise. Without a positive step all values
  // are equal, or one is not finite.
  RAD_HD int encode(Real value, uint32_t noise) const {
    const Real t = step > 0 ? (value - lo) / step : Real(0);
    const int whole = static_cast<int>(t);
    const int code = whole + (fraction(noise) >= Real(1) - (t - static_cast<Real>(whole)) ? 1 : 0);
    return step > 0 ? (code < levels ? code : levels) : 0;
  }

  RAD_HD Real decode(int code, uint32_t noise) const {
    return lo + product(step, static_cast<Real>(code) - (fraction(noise) - Real(0.5)));
  }
};

}  // namespace rad

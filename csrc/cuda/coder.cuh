// core/dither.h for the eight values of one Philox call: the same codes and numbers in fewer instructions,
// none of them of the slow conversion and division units (tools/sass_budget.json holds the counts).
#pragma once
#include "core/derivative.h"
#include "cuda/common.cuh"

namespace rad::cuda {

constexpr int kOctet = 8;

// Integers below 2^23 in the mantissa of 2^23: adding or removing these bits converts without an instruction.
constexpr float kMantissa = 8388608.0f;
constexpr uint32_t kMantissaBits = 0x4B000000u;

// Dither<float>::fraction of the noise of value e. Exact: (2^23 + noise) 2^-16 - (128 - 2^-17).
RAD_DEVICE float octet_fraction(const Words& call, int e) {
  const uint32_t noise = permute_bytes(call.w[e / 2], kMantissaBits >> 16, e % 2 ? 0x5432 : 0x5410);
  return fmaf(bits_float(noise), 1.0f / 65536, -16777215.0f / 131072);
}

// Eight codes of `bits` bits, the first lowest; of each the mantissa of code(e) has the number.
template <class Code>
RAD_DEVICE uint64_t join_octet(int bits, const Code& code) {
  uint32_t half[2] = {};
  const uint32_t first = 1, second = 1u << bits, third = 1u << (2 * bits), fourth = 1u << (3 * bits);
#pragma unroll
  for (int e = 0; e < kOctet; ++e)
    half[e / 4] += float_bits(code(e)) * (e % 4 == 0   ? first
                                          : e % 4 == 1 ? second
                                          : e % 4 == 2 ? third
                                                       : fourth);
  const uint32_t above = kMantissaBits * (first + second + third + fourth);
  return static_cast<uint64_t>(half[1] - above) << (4 * bits) | (half[0] - above);
}

// RangeCode::encode of eight values.
RAD_DEVICE uint64_t encode_octet(const RangeCode<float>& range, const float (&value)[kOctet],
                                 const Words& noise, int bits) {
  return join_octet(bits, [&](int e) {
    return add_toward_zero(range.place(value[e]) + octet_fraction(noise, e), kMantissa);
  });
}
RAD_DEVICE uint64_t encode_octet(const RangeCode<double>& range, const double (&value)[kOctet],
                                 const Words& noise, int bits) {
  uint64_t codes = 0;
#pragma unroll
  for (int e = 0; e < kOctet; ++e)
    codes |= static_cast<uint64_t>(range.encode(value[e], dither_noise(noise, e))) << (bits * e);
  return codes;
}

template <class Real>
struct OctetDither;

template <>
struct OctetDither<float> {
  float lo, step, scale, divisor, reciprocal, origin;

  // A power of two takes the divisor to where nothing over- or underflows; it rounds nothing. Of a step that
  // is not positive nothing is used but that.
  RAD_DEVICE OctetDither(float lo_, float step_)
      : lo(lo_),
        step(step_),
        scale(step < 0x1p-60f  ? 0x1p60f
              : step > 0x1p60f ? 0x1p-60f
                               : 1.0f),
        divisor(step * scale),
        reciprocal(normal_reciprocal(divisor)),
        origin(-lo * scale) {}

  // (value - lo) / step, rounded correctly: a step has 8 significant bits, and for all of those a quotient
  // corrected once by its exact remainder is the IEEE quotient (tests/cpp/test_coder.cpp, exhaustively).
  RAD_DEVICE float quotient(float value) const {
    const float n = fmaf(value, scale, origin), q = product(n, reciprocal);
    return fmaf(fmaf(-q, divisor, n), reciprocal, q);
  }

  // Values lie between lo and lo + step (2^bits - 1), so that no code needs a limit. Dither<float>::encode
  // adds one where the fraction is at least 1 - (t - whole); here `next` is whole + 1 already, and whatever
  // is below takes it back.
  RAD_DEVICE uint64_t encode(const float (&value)[kOctet], const Words& noise, int bits) const {
    const uint64_t codes = join_octet(bits, [&](int e) {
      const float t = quotient(value[e]), next = add_toward_zero(t, kMantissa + 1);
      const float least = (next - kMantissa) - t;
      return add_toward_zero(next, octet_fraction(noise, e) - least);
    });
    return step > 0 ? codes : 0;
  }

  // decode of four bits: 15 - code and the noise side by side in the mantissa of 2^23. Exact but for the last
  // two operations, which are those of decode.
  RAD_DEVICE void decode_nibbles(uint32_t codes, const Words& noise, float (&value)[kOctet]) const {
#pragma unroll
    for (int i = 0; i < kOctet / 2; ++i) {
      const uint32_t pair = (~(codes >> (4 * i)) & 0x000F000Fu) | kMantissaBits | kMantissaBits >> 16;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = i + half * kOctet / 2;
        const uint32_t selector = (half ? 0x7600 : 0x5400) | (e % 2 ? 0x32 : 0x10);
        const float joined = bits_float(permute_bytes(noise.w[e / 2], pair, selector));
        const float down = joined - (kMantissa + 15 * 65536);
        value[e] = lo + product(step, fmaf(down, -1.0f / 65536, 65535.0f / 131072));
      }
    }
  }

  RAD_DEVICE void decode(uint64_t codes, const Words& noise, int bits, float (&value)[kOctet]) const {
    const uint32_t half[2] = {static_cast<uint32_t>(codes), static_cast<uint32_t>(codes >> (4 * bits))};
    const uint32_t mask = (1u << bits) - 1;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const uint32_t code = (half[e / 4] >> (bits * (e % 4)) & mask) | kMantissaBits;
      const float centre = bits_float(code) - (kMantissa - 0.5f);
      value[e] = lo + product(step, centre - octet_fraction(noise, e));
    }
  }
};

template <>
struct OctetDither<double> {
  double lo, step;

  RAD_HD OctetDither(double lo_, double step_) : lo(lo_), step(step_) {}

  RAD_DEVICE uint64_t encode(const double (&value)[kOctet], const Words& noise, int bits) const {
    const Dither<double> dither(lo, step, bits);
    uint64_t codes = 0;
#pragma unroll
    for (int e = 0; e < kOctet; ++e)
      codes |= static_cast<uint64_t>(dither.encode(value[e], dither_noise(noise, e))) << (bits * e);
    return codes;
  }

  RAD_DEVICE void decode(uint64_t codes, const Words& noise, int bits, double (&value)[kOctet]) const {
    const Dither<double> dither(lo, step, bits);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const int code = static_cast<int>(codes >> (bits * e) & ((1u << bits) - 1));
      value[e] = dither.decode(code, dither_noise(noise, e));
    }
  }
};

// Codes of elements from `count` on cleared.
RAD_DEVICE uint64_t first_codes(uint64_t codes, int64_t count, int bits) {
  return count < kOctet ? codes & ((uint64_t{1} << (bits * count)) - 1) : codes;
}

}  // namespace rad::cuda

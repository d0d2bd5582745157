// Which row of dy a kept position of x meets under a tap, with nothing but additions where it is asked for:
// divisions are done once for each kept position and once for each tap.
#pragma once
#include "core/conv.h"
#include "cuda/common.cuh"

namespace rad::cuda {

// p * scale + offset = quotient * divisor + remainder, kept as quotient << shift | remainder. A tap's number
// takes away the remainder that it needs, so that a meeting leaves zeros in the low bits, and the output
// position above them.
struct AxisMeetings {
  ConvAxis axis;
  int shift;  // the divisor is at most 1 << shift

  RAD_HD AxisMeetings() : axis{1, 1, 1, 1, 0, 0, 1, 0}, shift(0) {}
  RAD_HD explicit AxisMeetings(const ConvAxis& a) : axis(a), shift(0) {
    while ((int64_t{1} << shift) < a.divisor) ++shift;
  }
  RAD_HD int64_t of_position(int64_t p) const {
    const int64_t at = p * axis.scale + axis.offset, quotient = floor_div(at, axis.divisor);
    return (quotient << shift) + (at - quotient * axis.divisor);
  }
  RAD_HD int64_t of_tap(int64_t t) const {
    const int64_t at = t * axis.step, quotient = floor_div(at, axis.divisor);
    const int64_t remainder = at - quotient * axis.divisor, needed = remainder ? axis.divisor - remainder : 0;
    return ((quotient + (remainder ? 1 : 0)) << shift) - needed;
  }
  // The output position, or a number that is not below axis.output: the low bits go to the top, where they
  // make one that is too large.
  RAD_HD uint32_t meet(int32_t position, int32_t tap) const {
    const auto at = static_cast<uint32_t>(position + tap);
#if defined(__CUDA_ARCH__)
    return __funnelshift_r(at, at, static_cast<uint32_t>(shift));
#else
    return at >> shift | at << (-shift & 31);
#endif
  }
  // Whether all of it fits 32 bits.
  bool fits() const {
    constexpr int64_t kLimit = int64_t{1} << 30;
    const auto small = [&](int64_t number) { return -kLimit < number && number < kLimit; };
    if (shift > 30 || axis.output >= kLimit >> shift) return false;
    for (const int64_t p : {int64_t{0}, axis.input - 1})
      for (const int64_t t : {int64_t{0}, axis.taps - 1})
        if (!small(of_position(p)) || !small(of_tap(t))) return false;
    return true;
  }

  // Whether some tap reads position p: of the taps whose outputs are inside, `divisor` in a row have every
  // remainder.
  RAD_HD bool reads(int64_t p) const {
    const int64_t at = p * axis.scale + axis.offset, end = axis.output * axis.divisor;
    const int64_t step = axis.step < 0 ? -axis.step : axis.step;
    const int64_t low = axis.step < 0 ? at - end + 1 : -at, high = axis.step < 0 ? at : end - 1 - at;
    if (step == 0) return output_position(axis, p, 0) >= 0;
    int64_t first = -floor_div(-low, step), last = floor_div(high, step);
    first = first < 0 ? 0 : first;
    last = last < axis.taps ? last : axis.taps - 1;
    for (int64_t t = first; t <= last && t < first + axis.divisor; ++t)
      if (output_position(axis, p, t) >= 0) return true;
    return false;
  }
  // Whether there is a position that no tap reads. Away from the ends, where taps have outputs outside,
  // positions repeat every `divisor`.
  bool skips() const {
    const int64_t reach = (axis.taps - 1) * axis.step, end = axis.output * axis.divisor;
    const int64_t low = floor_div(-axis.offset - (reach < 0 ? reach : 0), axis.scale) + 1;
    const int64_t inside = (low < 0 ? 0 : low) + axis.divisor;
    const int64_t beyond = floor_div(end - 1 - axis.offset - (reach > 0 ? reach : 0), axis.scale);
    for (int64_t p = 0; p < axis.input; p = p + 1 >= inside && p + 1 < beyond ? beyond : p + 1)
      if (!reads(p)) return true;
    return false;
  }
};

// Of a position or a tap that meets nothing: with any number that fits, the sum is negative.
constexpr int32_t kNowhere = -(1 << 30);

// A kept position. Rows of dy are counted in chunks modulo 2^32, in a spot as if tap 0 met it without a
// remainder, so that a tap adds what is its own.
struct alignas(16) Spot {
  uint32_t row;
  int32_t position[3];  // the last is kNowhere if no tap reads it

  RAD_HD bool read() const { return position[2] != kNowhere; }
};

// dy in channels-last order: a group's outputs side by side in chunks, strides in chunks.
struct ChunkRows {
  AxisMeetings axis[3];
  const uint16_t* dy;
  int64_t image, stride[3], group;
  int64_t outputs, taps;  // of a group

  RAD_HD uint32_t row_of(int d, int64_t number) const {
    return static_cast<uint32_t>(floor_div(number, int64_t{1} << axis[d].shift) * stride[d]);
  }
};

}  // namespace rad::cuda

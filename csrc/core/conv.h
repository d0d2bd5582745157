// The geometry of a convolution's weight gradient.
#pragma once
#include "core/host_device.h"
#include "kernels.h"

namespace rad {

RAD_HD int64_t input_positions(const ConvAxis (&axis)[3]) {
  return axis[0].input * axis[1].input * axis[2].input;
}
RAD_HD int64_t output_positions(const ConvAxis (&axis)[3]) {
  return axis[0].output * axis[1].output * axis[2].output;
}
RAD_HD int64_t tap_count(const ConvAxis (&axis)[3]) { return axis[0].taps * axis[1].taps * axis[2].taps; }

RAD_HD int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// Where input position p and tap t meet, or -1.
RAD_HD int64_t output_position(const ConvAxis& a, int64_t p, int64_t t) {
  const int64_t at = p * a.scale + a.offset + t * a.step;
  if (at < 0 || at >= a.output * a.divisor) return -1;
  return at % a.divisor == 0 ? at / a.divisor : -1;
}

// The matrix that was packed.
RAD_HD int64_t packed_rows(const ConvWgradArgs& a) {
  return a.images * (a.by_channel ? a.channels : input_positions(a.axis));
}
RAD_HD int64_t packed_cols(const ConvWgradArgs& a) {
  return a.by_channel ? input_positions(a.axis) : a.channels;
}

}  // namespace rad

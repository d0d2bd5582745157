// Places in pooling windows.
#pragma once
#include "core/host_device.h"
#include "kernels.h"

namespace rad {

// The fewest bits that tell the places of a window apart.
RAD_HD int pool_bits(const PoolShape& s) {
  const int64_t places = s.window[0] * s.window[1] * s.window[2];
  int bits = 0;
  while (int64_t{1} << bits < places) ++bits;
  return bits;
}

RAD_HD int64_t pool_outputs(const PoolShape& s) {
  return s.planes * s.out[0] * s.out[1] * s.out[2] * s.lanes;
}
RAD_HD int64_t pool_inputs(const PoolShape& s) { return s.planes * s.in[0] * s.in[1] * s.in[2] * s.lanes; }

// Where the windows of output `o` begin along dimension d, and which of its places lie inside the input.
struct Window {
  int64_t start, first, last;  // places [first, last)

  RAD_HD Window(const PoolShape& s, int d, int64_t o) : start(o * s.stride[d] - s.pad[d]) {
    const int64_t step = s.dilation[d], room = s.in[d] - start;
    first = start < 0 ? (-start + step - 1) / step : 0;
    const int64_t fit = room <= 0 ? 0 : (room + step - 1) / step;
    last = fit < s.window[d] ? fit : s.window[d];
  }
};

// Element i of y: which plane, position and lane.
struct PoolPlace {
  int64_t plane, o[3], lane;

  RAD_HD PoolPlace(const PoolShape& s, int64_t i) {
    lane = i % s.lanes;
    i /= s.lanes;
    for (int d = 2; d >= 0; --d) {
      o[d] = i % s.out[d];
      i /= s.out[d];
    }
    plane = i;
  }
};

}  // namespace rad

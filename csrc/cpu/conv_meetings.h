// Which entries of x meet which output positions of a convolution, tap by tap.
#pragma once
#include <algorithm>

#include "core/conv.h"
#include "cpu/conv_entries.h"

namespace rad::cpu {

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }

// The output positions that the entries of a chunk meet, found tap by tap without a division: quotient and
// remainder of p * scale + offset are kept per entry, those of t * step added.
class Meetings {
 public:
  Meetings(const ConvAxis (&axis)[3], int64_t count, const int64_t* position, int64_t first_output)
      : axis_(axis) {
    const int64_t inner = axis[1].input * axis[2].input, all = axis[0].input * inner;
    const int64_t outputs = output_positions(axis);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = position[i] / all, p = position[i] - image * all;
      const int64_t digit[3] = {p / inner, p % inner / axis[2].input, p % axis[2].input};
      for (int d = 0; d < 3; ++d) {
        const int64_t at = digit[d] * axis[d].scale + axis[d].offset;
        quotient_[d][i] = floor_div(at, axis[d].divisor);
        remainder_[d][i] = static_cast<int32_t>(at - quotient_[d][i] * axis[d].divisor);
      }
      start_.entry[i] = static_cast<int32_t>(i);
      start_.output[i] = image * outputs - first_output;
    }
    start_.count = count;
  }

  // visit(tap, entries, output positions relative to the first) for the taps [first, last).
  template <class Visit>
  void each_tap(int64_t first, int64_t last, const Visit& visit) const {
    const int64_t inner = axis_[1].taps * axis_[2].taps;
    List outer, middle, found;
    for (int64_t t0 = first / inner; t0 * inner < last; ++t0) {
      meet(0, t0, start_, axis_[1].output * axis_[2].output, outer);
      for (int64_t t1 = 0; t1 < axis_[1].taps; ++t1) {
        const int64_t row = (t0 * axis_[1].taps + t1) * axis_[2].taps;
        if (row >= last || row + axis_[2].taps <= first) continue;
        meet(1, t1, outer, axis_[2].output, middle);
        for (int64_t tap = std::max(row, first); tap < std::min(row + axis_[2].taps, last); ++tap) {
          meet(2, tap - row, middle, 1, found);
          if (found.count) visit(tap, found.count, found.entry, found.output);
        }
      }
    }
  }

 private:
  struct List {
    int64_t count;
    int32_t entry[kEntries];
    int64_t output[kEntries];
  };

  void meet(int d, int64_t tap, const List& from, int64_t stride, List& to) const {
    const ConvAxis& a = axis_[d];
    const int64_t quotient = floor_div(tap * a.step, a.divisor);
    const auto remainder = static_cast<int32_t>(tap * a.step - quotient * a.divisor);
    const auto divisor = static_cast<int32_t>(a.divisor);
    const auto limit = static_cast<uint64_t>(a.output);
    int64_t count = 0;
    for (int64_t i = 0; i < from.count; ++i) {
      const int32_t entry = from.entry[i], rest = remainder_[d][entry] + remainder;
      const int64_t at = quotient_[d][entry] + quotient + (rest == divisor);
      to.entry[count] = entry;
      to.output[count] = from.output[i] + at * stride;
      count += (rest == 0 || rest == divisor) & (static_cast<uint64_t>(at) < limit);
    }
    to.count = count;
  }

  const ConvAxis (&axis_)[3];
  int64_t quotient_[3][kEntries];
  int32_t remainder_[3][kEntries];
  List start_;
};

}  // namespace rad::cpu

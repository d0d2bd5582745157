// Which entries of x meet which output positions of a convolution, tap by tap.
#pragma once
#include <algorithm>

#include "core/conv.h"
#include "cpu/conv_entries.h"

namespace rad::cpu {

// Pairs of an entry and a row of a panel, as offsets of their first numbers.
struct Pairs {
  int64_t count;
  int32_t row[kEntries], value[kEntries];
};

// The panel rows that the entries of a chunk meet: rows [0, rows) are the output positions from `first_row`
// on. An entry whose whole window lies among them meets every tap, at a distance from its first row that is
// the tap's alone. For the others pairs are found tap by tap, without a division: quotient and remainder of
// p * scale + offset are kept per entry, those of t * step added.
class Meetings {
 public:
  // `strip`, `pitch`: numbers of a panel row and of an entry.
  Meetings(const ConvAxis (&axis)[3], int64_t count, const int64_t* position, int64_t first_row, int64_t rows,
           int64_t strip, int64_t pitch)
      : axis_(axis),
        stride_{axis[1].output * axis[2].output, axis[2].output, 1},
        rows_(rows),
        strip_(strip),
        pitch_(pitch) {
    bool regular = true;
    int64_t low[3], high[3], highest = 0;
    for (int d = 0; d < 3; ++d) {
      const int64_t spread = (axis[d].taps - 1) * axis[d].step;
      low[d] = std::min<int64_t>(spread, 0);
      high[d] = std::max<int64_t>(spread, 0);
      lowest_ += low[d] * stride_[d];
      highest += high[d] * stride_[d];
      regular = regular && axis[d].divisor == 1;
    }
    whole_.count = partial_.count = 0;
    const int64_t inner = axis[1].input * axis[2].input, all = axis[0].input * inner;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t image = position[i] / all, p = position[i] - image * all;
      const int64_t digit[3] = {p / inner, p % inner / axis[2].input, p % axis[2].input};
      const int64_t origin = image * axis[0].output * stride_[0] - first_row;
      bool inside = regular;
      int64_t row = origin;
      for (int d = 0; d < 3; ++d) {
        const int64_t at = digit[d] * axis[d].scale + axis[d].offset;
        quotient_[d][i] = axis[d].divisor == 1 ? at : floor_div(at, axis[d].divisor);
        remainder_[d][i] = static_cast<int32_t>(at - quotient_[d][i] * axis[d].divisor);
        inside = inside && at + low[d] >= 0 && at + high[d] < axis[d].output;
        row += at * stride_[d];
      }
      if (inside && row + lowest_ >= 0 && row + highest < rows) {
        whole_.row[whole_.count] = static_cast<int32_t>((row + lowest_) * strip);
        whole_.value[whole_.count++] = static_cast<int32_t>(i * pitch);
      } else {
        partial_.entry[partial_.count] = static_cast<int32_t>(i);
        partial_.output[partial_.count++] = origin;
      }
    }
  }

  // visit(tap, pairs, distance of the panel that the pairs count from) for the taps [first, last).
  template <class Visit>
  void each_tap(int64_t first, int64_t last, const Visit& visit) const {
    const int64_t inner = axis_[1].taps * axis_[2].taps;
    if (whole_.count) {
      for (int64_t tap = first; tap < last; ++tap) {
        const int64_t t[3] = {tap / inner, tap % inner / axis_[2].taps, tap % axis_[2].taps};
        int64_t shift = -lowest_;
        for (int d = 0; d < 3; ++d) shift += t[d] * axis_[d].step * stride_[d];
        visit(tap, whole_, shift * strip_);
      }
    }
    if (!partial_.count) return;
    List outer, middle;
    Pairs found;
    for (int64_t t0 = first / inner; t0 * inner < last; ++t0) {
      meet(0, t0, partial_, outer);
      for (int64_t t1 = 0; t1 < axis_[1].taps; ++t1) {
        const int64_t row = (t0 * axis_[1].taps + t1) * axis_[2].taps;
        if (row >= last || row + axis_[2].taps <= first) continue;
        meet(1, t1, outer, middle);
        for (int64_t tap = std::max(row, first); tap < std::min(row + axis_[2].taps, last); ++tap) {
          meet_rows(tap - row, middle, found);
          if (found.count) visit(tap, found, 0);
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

  // keep(entry, output position along axis d, whether there is one) for the entries of a list.
  template <class Keep>
  void each(int d, int64_t tap, const List& from, const Keep& keep) const {
    const ConvAxis& a = axis_[d];
    const int64_t quotient = floor_div(tap * a.step, a.divisor);
    const auto remainder = static_cast<int32_t>(tap * a.step - quotient * a.divisor);
    const auto divisor = static_cast<int32_t>(a.divisor);
    const auto limit = static_cast<uint64_t>(a.output);
    for (int64_t i = 0; i < from.count; ++i) {
      const int32_t entry = from.entry[i], rest = remainder_[d][entry] + remainder;
      const int64_t at = quotient_[d][entry] + quotient + (rest == divisor);
      keep(entry, from.output[i] + at * stride_[d],
           static_cast<int>(rest == 0 || rest == divisor) &
               static_cast<int>(static_cast<uint64_t>(at) < limit));
    }
  }
  void meet(int d, int64_t tap, const List& from, List& to) const {
    int64_t count = 0;
    each(d, tap, from, [&](int32_t entry, int64_t output, int found) {
      to.entry[count] = entry;
      to.output[count] = output;
      count += found;
    });
    to.count = count;
  }
  void meet_rows(int64_t tap, const List& from, Pairs& to) const {
    int64_t count = 0;
    each(2, tap, from, [&](int32_t entry, int64_t output, int found) {
      to.row[count] = static_cast<int32_t>(output * strip_);
      to.value[count] = static_cast<int32_t>(entry * pitch_);
      count += found & static_cast<int>(static_cast<uint64_t>(output) < static_cast<uint64_t>(rows_));
    });
    to.count = count;
  }

  const ConvAxis (&axis_)[3];
  int64_t stride_[3], rows_, strip_, pitch_, lowest_ = 0;
  int64_t quotient_[3][kEntries];
  int32_t remainder_[3][kEntries];
  Pairs whole_;
  List partial_;
};

}  // namespace rad::cpu

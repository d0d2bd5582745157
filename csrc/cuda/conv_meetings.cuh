// The operand of a product whose rows are those of dy that kept positions meet.
#pragma once
#include "cuda/conv_positions.cuh"
#include "cuda/gemm/mma.cuh"
#include "cuda/gemm/sources.cuh"

namespace rad::cuda {

// Rows of dy in channels-last order: items of a group's outputs side by side, in chunks of 16 bytes.
struct MeetingRows {
  AxisMeetings axis[3];
  const uint16_t* dy;
  int64_t image, group, outputs, taps;  // strides of images and groups; both shape [taps, outputs]
};

// The chunks of columns (tap, output), outputs fastest, of the rows that spots meet; zeros where there is
// none.
template <int Threads>
class MeetingLoader {
  using Loaded = gemm::Share<gemm::kOutputs, gemm::kDepth, Threads>;

 public:
  RAD_DEVICE MeetingLoader(const MeetingRows& rows, const Spot* spots, const gemm::Steps<gemm::kDepth>& steps,
                           int64_t group, int64_t column)
      : rows_(rows), spots_(spots), steps_(steps) {
    const int64_t first = column + share_.chunk * gemm::kChunk;
    int64_t tap = first / rows.outputs;
    exists_ = tap < rows.taps;
    dy_ = rows.dy + group * rows.group + first % rows.outputs;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      tap_[d] = static_cast<int32_t>(rows.axis[d].of_tap(tap % rows.axis[d].axis.taps));
      tap /= rows.axis[d].axis.taps;
    }
    look_up(0);
  }
  RAD_DEVICE void fetch(int, char* tile) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      cp_async16(tile + share_.at(i), dy_ + (row_[i] < 0 ? 0 : row_[i]), row_[i] < 0 ? 0 : 16);
  }
  RAD_DEVICE void place(int step, char*) { look_up(step + 1); }

 private:
  static constexpr int kCount = Loaded::kCount, kStride = Loaded::kStride;

  RAD_DEVICE void look_up(int step) {
    const int64_t begin = steps_.begin(step) + share_.row;
#pragma unroll
    for (int i = 0; i < kCount; ++i) row_[i] = row_of(begin + i * kStride);
  }
  RAD_DEVICE int64_t row_of(int64_t line) const {
    if (!exists_ || line >= steps_.rows) return -1;
    const Spot spot = spots_[line];
    int64_t row = spot.image * rows_.image;
#pragma unroll
    for (int d = 0; d < 3; ++d) {
      const uint32_t q = rows_.axis[d].meet(spot.position[d], tap_[d]);
      if (q >= static_cast<uint32_t>(rows_.axis[d].axis.output)) return -1;
      row += q * rows_.axis[d].axis.dy_stride;
    }
    return row;
  }

  const MeetingRows& rows_;
  const Spot* spots_;
  const gemm::Steps<gemm::kDepth>& steps_;
  Loaded share_;
  bool exists_;
  const uint16_t* dy_;
  int32_t tap_[3];
  int64_t row_[kCount];  // items from dy_, or -1
};

}  // namespace rad::cuda

// The operand of a product whose rows are those of dy that kept positions meet.
#pragma once
#include "cuda/conv_positions.cuh"
#include "cuda/gemm/sources.cuh"

namespace rad::cuda {

// The chunks of columns (tap, output), outputs fastest, of the rows that spots meet; zeros where there is
// none.
template <int Width, int Depth, int Threads>
class MeetingLoader {
  using Loaded = gemm::Share<Width, Depth, Threads>;

 public:
  RAD_DEVICE MeetingLoader(const ChunkRows& rows, const Spot* spots, const gemm::Steps<Depth>& steps,
                           int64_t group, int64_t column)
      : rows_(rows), spots_(spots), steps_(steps), row_(0) {
    const int64_t first = column + share_.chunk * gemm::kChunk;
    dy_ = rows.dy + group * rows.group * gemm::kChunk + first % rows.outputs;
    int64_t tap = first / rows.outputs;
    const bool exists = tap < rows.taps;
#pragma unroll
    for (int d = 2; d >= 0; --d) {
      const int64_t number = rows.axis[d].of_tap(tap % rows.axis[d].axis.taps);
      tap_[d] = static_cast<int32_t>(number);
      row_ += rows.row_of(d, number + (int64_t{1} << rows.axis[d].shift) - 1);
      tap /= rows.axis[d].axis.taps;
    }
    if (!exists) tap_[2] = kNowhere;
    look_up(0);
  }
  RAD_DEVICE void fetch(int, char* tile) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool met = meets(spot_[i]);
      const uint32_t row = met ? spot_[i].row + row_ : 0;
      cp_async16(tile + share_.at(i), dy_ + int64_t{row} * gemm::kChunk, met ? 16 : 0);
    }
  }
  RAD_DEVICE void place(int step, char*) { look_up(step + 1); }

 private:
  static constexpr int kCount = Loaded::kCount, kStride = Loaded::kStride;

  // A step ahead of the copies that need them.
  RAD_DEVICE void look_up(int step) {
    const Spot* from = spots_ + steps_.begin(step) + share_.row;
    const int left = static_cast<int>(min(steps_.rows - steps_.begin(step), int64_t{Depth})) - share_.row;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      spot_[i] = {0, {0, 0, kNowhere}};
      if (i * kStride < left) spot_[i] = from[i * kStride];
    }
  }
  RAD_DEVICE bool meets(const Spot& spot) const {
    bool met = true;
#pragma unroll
    for (int d = 0; d < 3; ++d)
      met = met & (rows_.axis[d].meet(spot.position[d], tap_[d]) <
                   static_cast<uint32_t>(rows_.axis[d].axis.output));
    return met;
  }

  const ChunkRows& rows_;
  const Spot* spots_;
  const gemm::Steps<Depth>& steps_;
  Loaded share_;
  const uint16_t* dy_;
  int32_t tap_[3];
  uint32_t row_;  // what the tap adds
  Spot spot_[kCount];
};

}  // namespace rad::cuda

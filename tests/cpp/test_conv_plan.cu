// How a convolution's weight gradient is cut into one product: meetings by addition, positions that no tap
// reads, slices of the reduction.
#include "cuda/conv_plan.cuh"
#include "device.h"

using namespace rad;
using namespace rad::cuda;

namespace {

// f(axis) for a few thousand axes of both directions, windows of padding alone among them.
template <class F>
void each_axis(const F& f) {
  for (int64_t input = 1; input <= 13; input += 3)
    for (int64_t taps = 1; taps <= 5; ++taps)
      for (int64_t stride = 1; stride <= 5; ++stride)
        for (int64_t dilation = 1; dilation <= 3; ++dilation)
          for (int64_t padding = 0; padding <= 7; padding += 2) {
            const int64_t window = dilation * (taps - 1) + 1;
            const int64_t output = (input + 2 * padding - window) / stride + 1;
            if (input + 2 * padding >= window)
              f(ConvAxis{input, output, taps, 1, padding, -dilation, stride, 1});
            const int64_t wider = (input - 1) * stride - 2 * padding + window;
            if (wider > 0) f(ConvAxis{input, wider, taps, stride, -padding, dilation, 1, 1});
          }
}

TEST(conv_plan_meetings) {
  each_axis([](const ConvAxis& axis) {
    const AxisMeetings meetings(axis);
    EXPECT(meetings.fits());
    bool skips = false;
    for (int64_t p = 0; p < axis.input; ++p) {
      bool read = false;
      for (int64_t t = 0; t < axis.taps; ++t) {
        const int64_t expected = output_position(axis, p, t);
        const int64_t found = meetings.meet(static_cast<int32_t>(meetings.of_position(p)),
                                            static_cast<int32_t>(meetings.of_tap(t)));
        EXPECT(expected < 0 ? found >= axis.output : found == expected, "position ", p, " tap ", t);
        read = read || expected >= 0;
      }
      EXPECT(meetings.reads(p) == read, "position ", p);
      skips = skips || !read;
    }
    EXPECT(meetings.skips() == skips);
  });
}

TEST(conv_plan_long_axes) {
  constexpr int64_t kMillion = 1'000'000'000;
  EXPECT(AxisMeetings({kMillion, kMillion, 3, 1, 1, -1, 1, 1}).fits());
  EXPECT(!AxisMeetings({kMillion, kMillion, 3, 1, 1, -1, 3, 1}).fits());
  EXPECT(!AxisMeetings({5, 5, 3, 1, kMillion, -kMillion, 1, 1}).fits());
  EXPECT(!AxisMeetings({2 * kMillion, 2 * kMillion, 1, 1, 0, 0, 1, 1}).fits());
  EXPECT(!AxisMeetings({kMillion, kMillion, 3, 1, 1, -1, 1, 1}).skips());
  EXPECT(AxisMeetings({kMillion, kMillion - 7, 3, 1, 1, -1, 1, 1}).skips());
}

TEST(conv_plan_slices) {
  for (const int64_t lines : {1, 31, 32, 33, 700, 4096})
    for (const int64_t split : {int64_t{0}, int64_t{1}, lines / 3, lines - 1})
      for (const int64_t wanted : {1, 2, 7, 64}) {
        if (split < 0 || split >= lines) continue;
        Slices slices{};
        slices.lines = lines;
        slices.split = split;
        slices.cut(wanted, gemm::kDepth);
        EXPECT(slices.total() <= wanted + 1, lines, " lines at ", split);
        int64_t at = 0;
        for (int64_t i = 0; i < slices.total(); ++i) {
          EXPECT(slices.begin(i) == at && slices.end(i) > at, lines, " lines at ", split, " slice ", i);
          EXPECT(slices.end(i) <= split || at >= split);
          EXPECT((i < slices.count[0]) == (at < split));
          at = slices.end(i);
        }
        EXPECT(at == lines);
      }
}

}  // namespace

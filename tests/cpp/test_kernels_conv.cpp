// conv_wgrad of every kind on the plain kernel and, where 16-bit types take them, on tensor cores.
#include "conv_cases.h"

using namespace rad;
using namespace testing;

namespace {

const Geometry kPlain{2, 3, 10, 1, {1, 5, 4}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kSparse{2, 4, 18, 2, {1, 5, 8}, {1, 3, 2}, {1, 2, 3}, {0, 2, 1}, {1, 2, 1}};
const Geometry kSolid{1, 2, 3, 1, {3, 4, 5}, {2, 3, 2}, {2, 1, 1}, {1, 0, 1}, kOnes};
const Geometry kLine{3, 4, 12, 4, {1, 1, 20}, {1, 1, 4}, kOnes, {0, 0, 2}, {1, 1, 2}};
const Geometry kWider{2, 4, 6, 2, {1, 4, 5}, {1, 3, 2}, {1, 2, 2}, {0, 1, 0}, {1, 1, 2}, true};
const Geometry kWide{2, 2, 9, 1, {2, 3, 2}, {2, 2, 3}, {1, 2, 3}, kZeros, kOnes, true};
// More entries than a block has threads, more outputs than a block's.
const Geometry kLarge{3, 5, 67, 1, {1, 12, 11}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kGeometries[] = {kPlain, kSparse, kSolid, kLine, kWider, kWide};

// Weights of the other draws are n / k, so that k must be a power of two times a divisor of n.
struct Kept {
  int64_t num, den;
};
constexpr Kept kUneven{3, 10}, kQuarter{1, 4};

Kept share(Draw draw) { return draw == Draw::kStratified ? kUneven : kQuarter; }

TEST(conv_every_geometry_sampling_and_draw) {
  for (const Geometry& g : kGeometries)
    for (const Combination& c : kCombinations) {
      if (c.sampling == Sampling::kTileRows || c.sampling == Sampling::kProject || c.draw == Draw::kNorm)
        continue;
      const bool by_channel = c.sampling != Sampling::kRows;
      const int64_t n = by_row(c.spec(1, 1)) ? Problem::rows(g, by_channel) : Problem::cols(g, by_channel);
      if (c.draw != Draw::kStratified && n % 4) continue;
      const Kept keep = share(c.draw);
      check(g, c.spec(keep.num, keep.den), DType::kF32, by_channel);
    }
}

TEST(conv_dtypes_layouts_and_bits) {
  for (const DType dtype : kDTypes)
    for (const bool last : {false, true})
      for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
        for (const int bits : {0, 8, 1})
          check(last ? kWider : kPlain, {3, 10, sampling, Draw::kStratified, bits}, dtype,
                sampling != Sampling::kRows, last ? Order::kChannelsLast : Order::kChannelsFirst,
                item_size(dtype) == 2 && sampling != Sampling::kDifferent);
}

TEST(conv_everything_kept_as_codes) {
  for (const bool by_channel : {false, true})
    for (const int bits : kBits)
      check(kSparse, {1, 1, Sampling::kRows, Draw::kStratified, bits}, DType::kF32, by_channel);
}

TEST(conv_more_than_a_block) {
  const Geometry& g = testing::large ? kLarge : kPlain;
  for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
    check(g, {9, 10, sampling, Draw::kStratified, 0}, DType::kF32, sampling != Sampling::kRows);
}

TEST(conv_one_kept) {
  for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
    check(kWide, {1, 1000, sampling, Draw::kStratified, 0}, DType::kF64, sampling != Sampling::kRows);
}

}  // namespace

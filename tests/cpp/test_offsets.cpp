// Offsets and indices beyond 32 bits, through the functions that kernels and CPU code share. test_sparse.cpp
// runs kernels there.
#include "core/layout.h"
#include "core/matrix_view.h"
#include "core/philox.h"
#include "cpu/lanes.h"
#include "kernel_cases.h"

using namespace rad;

namespace {

constexpr int64_t kHuge = int64_t{1} << 33;

TEST(philox_known_answers) {  // Random123's kat_vectors
  const Words zero = philox4x32({{0, 0, 0, 0}}, 0, 0), ones = philox4x32({{~0u, ~0u, ~0u, ~0u}}, ~0u, ~0u);
  const Words pi = philox4x32({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0);
  const auto words = [](const Words& w) { return std::vector<uint32_t>(w.w, w.w + 4); };
  EXPECT_SAME(words(zero), (std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_SAME(words(ones), (std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_SAME(words(pi), (std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(lanes_of_philox_across_32_bits) {
  constexpr uint64_t kEnd = uint64_t{1} << 32;
  for (const uint64_t first : {uint64_t{0}, kEnd - cpu::kLanes, kEnd - cpu::kLanes + 1, kEnd - 1, kEnd}) {
    uint32_t lanes[4][cpu::kLanes], words[4 * cpu::kLanes];
    cpu::philox_lanes(testing::kKey, testing::kSalt, Role::kDropout, 9, first, lanes);
    cpu::philox_words(testing::kKey, testing::kSalt, Role::kDropout, 9, first, words);
    for (int i = 0; i < cpu::kLanes; ++i) {
      const Words call = random_words(testing::kKey, testing::kSalt, Role::kDropout, 9, first + i);
      for (int j = 0; j < 4; ++j) {
        EXPECT(lanes[j][i] == call.w[j], first, i, j);
        EXPECT(words[4 * i + j] == call.w[j], first, i, j);
      }
    }
  }
}

TEST(short_index_map_is_the_long_one) {
  testing::Random random(5);
  const uint64_t words[] = {
      0, 1, 0xFFFFFFFF, 0x100000000, ~uint64_t{0}, 0xFFFFFFFF00000000, 0x8000000000000001};
  for (const uint32_t n : {1u, 2u, 3u, 10u, 128u, 65537u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    for (const uint64_t word : words) EXPECT(mulhi64_short(word, n) == mulhi64(word, n), n, word);
    for (int i = 0; i < 10000; ++i) {
      const auto high = static_cast<uint64_t>(random.below(int64_t{1} << 32));
      const uint64_t word = high << 32 | static_cast<uint64_t>(random.below(int64_t{1} << 32));
      EXPECT(mulhi64_short(word, n) == mulhi64(word, n), n, word);
      // A carry decides where the product is next to a multiple of 2^64.
      const uint64_t edge = ~uint64_t{0} / n * (high % n + 1);
      for (const uint64_t near : {edge - 1, edge, edge + 1, edge + n})
        EXPECT(mulhi64_short(near, n) == mulhi64(near, n), n, near);
    }
  }
}

TEST(huge_strata) {
  const int64_t n = kHuge * 5 + 3, k = kHuge + 1;
  const Strata strata(n, k);
  EXPECT(strata.begin(0) == 0 && strata.begin(k) == n);
  for (const int64_t i : {int64_t{0}, strata.longer - 1, strata.longer, k / 2, k - 1}) {
    EXPECT(strata.find(strata.begin(i)) == i, i);
    EXPECT(strata.find(strata.begin(i) + strata.length(i) - 1) == i, i);
    EXPECT(strata.begin(i) + strata.length(i) == strata.begin(i + 1), i);
  }
}

TEST(huge_samples) {
  for (const Draw draw : testing::kDraws) {
    const SketchSpec spec{1, 1000, Sampling::kRows, draw, 0};
    const Sampler sampler(testing::kKey, testing::kSalt, spec, kHuge * 1000);
    EXPECT(sampler.k() == kHuge);
    int64_t above = 0;  // a 32-bit slip would fold indices below 2^32
    for (int64_t i = kHuge - 500; i < kHuge; ++i) {
      const int64_t index = sampler.index(0, i);
      EXPECT(index >= 0 && index < sampler.strata.n, i);
      if (draw == Draw::kStratified) EXPECT(sampler.strata.find(index) == i, i);
      above += index > kHuge;
    }
    EXPECT(above > 480);
  }
}

TEST(huge_rows) {
  MatrixView m{nullptr, 4 * kHuge, 8, 1, {2, 2, kHuge}, {5 * kHuge, 3 * kHuge, 8}};
  EXPECT(row_offset(m, 0) == 0);
  EXPECT(row_offset(m, kHuge + 7) == 3 * kHuge + 7 * 8);
  EXPECT(row_offset(m, 2 * kHuge + 1) == 5 * kHuge + 8);
  EXPECT(row_offset(m, 4 * kHuge - 1) == 8 * kHuge + (kHuge - 1) * 8);
}

TEST(huge_layout) {
  const auto layout =
      saved_layout({1, 10, Sampling::kDifferent, Draw::kStratified, 0}, DType::kBF16, kHuge, 4096);
  EXPECT(layout.width == 410 && layout.trailer == kHuge * 410 * 2 && layout.bytes == layout.trailer + 64);
}

}  // namespace

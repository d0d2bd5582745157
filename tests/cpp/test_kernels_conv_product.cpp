// conv_wgrad on tensor cores: every geometry with what is copied as it lies and what is laid out anew first.
#include <algorithm>

#include "conv_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr DType kHalves[] = {DType::kBF16, DType::kF16};
constexpr Order kOrders[] = {Order::kChannelsFirst, Order::kChannelsLast, Order::kPadded,
                             Order::kUnaligned,     Order::kExpanded,     Order::kSpread};

// Channels and outputs of a group are whole chunks of eight. Names tell the tiles: taps and outputs lie in
// one dimension of the product, 128 at a time, channels in the other.
const Geometry kTwoTiles{2, 16, 24, 1, {1, 9, 8}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kWideChannels{1, 136, 8, 1, {1, 6, 6}, {1, 3, 1}, kOnes, {0, 1, 0}, kOnes};
const Geometry kTileWithinTap{2, 8, 264, 1, {1, 1, 40}, {1, 1, 2}, kOnes, {0, 0, 1}, kOnes};
const Geometry kStrided{2, 32, 32, 2, {1, 11, 10}, {1, 3, 3}, {1, 2, 2}, {0, 2, 2}, {1, 2, 2}};
const Geometry kUnevenStrides{1, 16, 16, 1, {1, 13, 17}, {1, 4, 3}, {1, 3, 2}, {0, 2, 0}, {1, 2, 1}};
const Geometry kTransposed{2, 16, 16, 1, {1, 5, 4}, {1, 4, 4}, {1, 2, 2}, {0, 1, 1}, kOnes, true};
const Geometry kTransposedWide{1, 16, 16, 2, {2, 3, 4}, {2, 2, 3}, {2, 2, 3}, kZeros, {1, 2, 2}, true};
const Geometry kSolid{1, 8, 16, 1, {4, 5, 6}, {3, 3, 3}, kOnes, kOnes, kOnes};
const Geometry kSkipping{2, 8, 16, 1, {1, 11, 10}, {1, 2, 2}, {1, 3, 3}, kZeros, kOnes};
const Geometry kBeyond{1,         8,     8,         1,    {1, 4, 5},
                       {1, 3, 3}, kOnes, {0, 5, 4}, kOnes};  // windows of padding alone
const Geometry kPointwise{3, 64, 48, 1, {1, 7, 7}, kOnes, kOnes, kZeros, kOnes};
// Enough for the tiles of warpgroups: 256 taps and outputs, 128 channels; with tails both ways.
const Geometry kWarpgroups{2, 144, 40, 1, {1, 8, 9}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kWarpgroupSteps{1, 72, 64, 1, {1, 1, 900}, {1, 1, 4}, {1, 1, 2}, {0, 0, 1}, kOnes};
const Geometry kWarpgroupGroups{1, 150, 260, 2, {1, 9, 9}, {1, 2, 2}, kOnes, kZeros, kOnes};
const Geometry kAligned[] = {kTwoTiles,      kWideChannels, kTileWithinTap,  kStrided,
                             kUnevenStrides, kTransposed,   kTransposedWide, kSolid,
                             kSkipping,      kBeyond,       kPointwise};
// Neither channels nor outputs are.
const Geometry kFew{2, 3, 10, 1, {1, 7, 6}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kOddGroups{2, 10, 21, 1, {1, 6, 7}, {1, 3, 2}, {1, 2, 1}, {0, 2, 1}, {1, 1, 2}};
const Geometry kOddTransposed{2, 18, 33, 3, {1, 4, 5}, {1, 3, 2}, {1, 2, 2}, {0, 1, 0}, {1, 1, 2}, true};
const Geometry kOdd[] = {kFew, kOddGroups, kOddTransposed, kWarpgroupGroups};
// Many steps of the reduction in one tile, so that it is cut.
const Geometry kLong{3, 24, 24, 1, {1, 1, 401}, {1, 1, 5}, kOnes, {0, 0, 2}, kOnes};

void check_product(const Geometry& g, const SketchSpec& spec, DType dtype = DType::kBF16,
                   Order order = Order::kChannelsLast, bool by_channel = false) {
  check(g, spec, dtype, by_channel, order, true);
}

SketchSpec rows(int64_t num, int64_t den, Draw draw = Draw::kStratified, int bits = 0) {
  return {num, den, Sampling::kRows, draw, bits};
}
SketchSpec same(int64_t num, int64_t den, Draw draw = Draw::kStratified, int bits = 0) {
  return {num, den, Sampling::kSame, draw, bits};
}

TEST(conv_product_every_geometry) {
  for (const Geometry& g : kAligned) check_product(g, rows(3, 10));
  for (const Geometry& g : kOdd) check_product(g, rows(3, 10));
  for (const Geometry& g : {kTwoTiles, kStrided, kSkipping, kOddTransposed})
    check_product(g, rows(3, 10), DType::kF16);
}

TEST(conv_product_orders_of_dy) {
  for (const Order order : kOrders)
    for (const Geometry& g : {kTwoTiles, kStrided, kTransposedWide, kOddTransposed})
      check_product(g, rows(3, 10), DType::kBF16, order);
}

TEST(conv_product_draws) {
  for (const Draw draw : {Draw::kWithReplacement, Draw::kWithoutReplacement}) {
    check_product(kTwoTiles, rows(1, 4, draw));
    check_product(kTwoTiles, same(1, 4, draw), DType::kF16, Order::kChannelsFirst, true);
    for (const DType dtype : kHalves) check_product(kLong, rows(3, 10, draw), dtype);  // weights of 10 / 3
  }
}

// Lines of x lie by channel and have to be turned.
TEST(conv_product_same_positions) {
  for (const Geometry& g : {kTwoTiles, kStrided, kTransposedWide, kSkipping, kFew, kOddTransposed})
    check_product(g, same(3, 10), DType::kBF16, Order::kChannelsFirst, true);
}

TEST(conv_product_of_codes) {
  for (const int bits : kBits) {
    check_product(kTwoTiles, rows(3, 10, Draw::kStratified, bits));
    check_product(kOddTransposed, same(3, 10, Draw::kStratified, bits), DType::kF16, Order::kChannelsFirst,
                  true);
  }
  for (const bool by_channel : {false, true})
    check_product(kStrided, rows(1, 1, Draw::kStratified, 4), DType::kF16, Order::kChannelsFirst, by_channel);
}

TEST(conv_product_few_and_many_kept) {
  check_product(kTwoTiles, rows(1, 1000));
  check_product(kFew, same(1, 1000), DType::kF16, Order::kChannelsFirst, true);
  check_product(kTwoTiles, rows(9, 10));
  check_product(kWarpgroupSteps, rows(1, 2));
  check_product(kWarpgroupSteps, rows(2, 5), DType::kF16);
  check_product(kWarpgroups, rows(1, 1000));
  check_product(kWarpgroups, same(3, 10), DType::kF16, Order::kChannelsFirst, true);
  check_product(kLong, rows(1, 2));     // 1 of 3, 601 of 2
  check_product(kLong, rows(99, 100));  // 12 of 2, 1179 of 1
  check_product(kLong, same(3, 10), DType::kF16, Order::kChannelsFirst, true);
}

// ---- special values, order
// ----------------------------------------------------------------------------------

// dW of x, packed as rows, and dy in channels-last order.
struct Product {
  Problem p;
  Product(const Geometry& g, const SketchSpec& spec)
      : p(g, spec, DType::kBF16, false, Order::kChannelsLast) {}

  std::vector<uint16_t> wgrad(const std::vector<uint16_t>& x, const std::vector<uint16_t>& dy,
                              bool portable = false) const {
    std::vector<char> saved = fresh_saved(p.spec, p.dtype, p.x.host().rows, p.x.host().cols);
    run_cpu<PackArgs>(cpu::pack_workspace, cpu::pack,
                      {{},
                       p.spec,
                       p.dtype,
                       contiguous_matrix(x.data(), p.x.host().rows, p.x.host().cols),
                       p.x.host().cols,
                       kSalt,
                       saved.data(),
                       nullptr});
    const Device<char> device_saved(saved);
    const Device<uint16_t> device_dy(dy);
    Device<uint16_t> dw(p.weights());
    ConvWgradArgs args = p.args(device_dy.data(), device_saved.data(), p.device_index.data(), dw.data());
    args.portable = portable;
    run_cuda<ConvWgradArgs>(cuda::conv_wgrad_workspace, cuda::conv_wgrad, args);
    return dw.get();
  }
  std::vector<uint16_t> filled_x(uint16_t value) const {
    return std::vector<uint16_t>(static_cast<size_t>(p.x.host().rows * p.x.host().cols), value);
  }
  std::vector<uint16_t> filled_dy(uint16_t value) const {
    return std::vector<uint16_t>(static_cast<size_t>(p.g.images * p.outs * p.g.outputs), value);
  }
  bool kept(int64_t row) const { return std::count(p.index.begin(), p.index.end(), row) > 0; }
};

constexpr uint16_t kNaN = 0x7FC0, kOne = 0x3F80;
bool is_nan(uint16_t v) { return (v & 0x7FFF) > 0x7F80; }

// What was not kept, what no tap reads and what of dy meets nothing that was kept does not matter.
TEST(conv_product_nan_where_nothing_is_read) {
  const Product product(kSkipping, rows(1, 2));
  const Problem& p = product.p;
  std::vector<uint16_t> x = product.filled_x(kOne), dy = product.filled_dy(kNaN);
  int64_t skipped = 0;
  for (int64_t row = 0; row < p.x.host().rows; ++row) {
    bool read = false;
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const int64_t q = p.meeting(row % p.inputs, tap);
      read = read || q >= 0;
      if (q >= 0 && product.kept(row))
        std::fill_n(dy.begin() + p.dy_offset(row / p.inputs, 0, q), p.g.outputs, kOne);
    }
    if (!read || !product.kept(row)) std::fill_n(x.begin() + row * p.g.channels, p.g.channels, kNaN);
    skipped += !read && product.kept(row);
  }
  EXPECT(skipped > 0);
  for (const uint16_t value : product.wgrad(x, dy)) EXPECT(!is_nan(value));
}

// One of dy makes its output's taps NaN that a kept position meets there; one of x its channel.
TEST(conv_product_nan_stays_where_it_was_kept) {
  const Product product(kWarpgroups, rows(1, 4));
  const Problem& p = product.p;
  std::vector<uint16_t> x = product.filled_x(kOne), dy = product.filled_dy(kOne);
  constexpr int64_t kOutput = 3, kPlace = 37, kChannel = 5;
  dy[static_cast<size_t>(p.dy_offset(1, kOutput, kPlace))] = kNaN;
  const auto one = product.wgrad(x, dy);
  for (int64_t i = 0; i < static_cast<int64_t>(one.size()); ++i) {
    bool meets = false;
    for (const int64_t row : p.index)
      meets = meets || (row / p.inputs == 1 && p.meeting(row % p.inputs, i % p.taps) == kPlace);
    EXPECT(is_nan(one[static_cast<size_t>(i)]) == (meets && i / p.taps / p.g.channels == kOutput),
           "dy, element ", i);
  }
  dy = product.filled_dy(kOne);
  x[static_cast<size_t>(p.index[5] * p.g.channels + kChannel)] = kNaN;
  const auto other = product.wgrad(x, dy);
  for (int64_t i = 0; i < static_cast<int64_t>(other.size()); ++i)
    EXPECT(is_nan(other[static_cast<size_t>(i)]) == (i / p.taps % p.g.channels == kChannel), "x, element ",
           i);
}

TEST(conv_product_does_not_depend_on_the_schedule) {
  struct Kernel {
    Geometry g;
    bool portable;
  };
  for (const auto& [g, portable] :
       {Kernel{kLong, false}, Kernel{kWarpgroupSteps, false}, Kernel{kWarpgroupSteps, true}}) {
    const Product product(g, rows(3, 7));
    Random random(74);
    std::vector<uint16_t> x = product.filled_x(0), dy = product.filled_dy(0);
    for (auto* values : {&x, &dy})
      for (size_t i = 0; i < values->size(); ++i)
        set_item(DType::kBF16, values->data(), i, static_cast<double>(random.below(2000001) - 1000000) / 1e6);
    const auto first = product.wgrad(x, dy, portable);
#ifndef __CUDACC__
    const simt::Options before = simt::options;
    for (const simt::Order order : {simt::Order::kReverse, simt::Order::kRandom}) {
      simt::options.order = order;
      EXPECT_SAME(product.wgrad(x, dy, portable), first);
    }
    simt::options = before;
#endif
    EXPECT_SAME(product.wgrad(x, dy, portable), first);
  }
}

// Depthwise, an axis beyond 30 bits, other types and samplings: the plain kernel's.
TEST(conv_product_is_not_for_all) {
  const Geometry depthwise{2, 16, 16, 16, {1, 9, 8}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
  const Geometry far{1, 8, 8, 1, {1, 1, 40}, {1, 1, 3}, kOnes, {0, 0, 1 << 30}, {1, 1, 1 << 30}};
  for (const Geometry& g : {depthwise, far})
    check(g, rows(3, 10), DType::kBF16, false, Order::kChannelsLast, false);
  check(kTwoTiles, rows(3, 10), DType::kF32, false, Order::kChannelsLast, false);
  check(kTwoTiles, {3, 10, Sampling::kDifferent, Draw::kStratified, 0}, DType::kBF16, true,
        Order::kChannelsFirst, false);
}

}  // namespace

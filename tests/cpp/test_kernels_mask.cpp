// relu and masked: the CPU's result bit for bit, and the definition, special values included.
#include <limits>

#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(),
                 kInf = std::numeric_limits<double>::infinity();

std::vector<char> make_values(DType dtype, int64_t n) {
  constexpr double kSpecial[] = {0.0, -0.0, kNaN, kInf, -kInf};
  std::vector<char> v(static_cast<size_t>(n * item_size(dtype)));
  Random random(51);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t pick = random.below(20);
    set_item(dtype, v.data(), static_cast<size_t>(i), pick < 5 ? kSpecial[pick] : random.eighth());
  }
  return v;
}

bool same_value(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

void check_relu(DType dtype, int64_t n, size_t x_shift, size_t y_shift, bool in_place) {
  const size_t item = static_cast<size_t>(item_size(dtype)), words = static_cast<size_t>((n + 31) / 32);
  const auto x = make_values(dtype, n);
  std::vector<char> cpu_y(x.size());
  std::vector<uint32_t> cpu_mask(words);
  EXPECT(cpu::relu({{}, dtype, x.data(), cpu_y.data(), cpu_mask.data(), n}) == 0);
  Device<char> dx(x, x_shift * item), dy(x.size(), y_shift * item);
  Device<uint32_t> mask(words);
  char* y = in_place ? dx.data() : dy.data();
  EXPECT(cuda::relu({{}, dtype, dx.data(), y, mask.data(), n}) == 0);
  const auto got = in_place ? dx.get() : dy.get();
  const auto got_mask = mask.get();
  EXPECT_SAME(got_mask, cpu_mask, "n ", n);
  EXPECT_SAME(got, cpu_y, "n ", n);
  for (size_t i = 0; i < words * 32; ++i) {
    const bool inside = i < static_cast<size_t>(n);
    const double v = inside ? get_item(dtype, x.data(), i) : 0;
    EXPECT((got_mask[i / 32] >> i % 32 & 1) == (v > 0 || std::isnan(v)), "bit ", i);
    if (inside) EXPECT(same_value(get_item(dtype, got.data(), i), v < 0 ? 0.0 : v), "element ", i);
  }
}

void check_masked(DType dtype, int64_t n, size_t dy_shift, size_t dx_shift, bool in_place) {
  const size_t item = static_cast<size_t>(item_size(dtype));
  const auto dy = make_values(dtype, n);
  Random random(52);
  std::vector<uint32_t> bits(static_cast<size_t>((n + 31) / 32));
  for (auto& word : bits) word = static_cast<uint32_t>(random.bits());
  std::vector<char> cpu_dx(dy.size());
  EXPECT(cpu::masked({{}, dtype, dy.data(), bits.data(), cpu_dx.data(), n}) == 0);
  Device<char> device_dy(dy, dy_shift * item), device_dx(dy.size(), dx_shift * item);
  Device<uint32_t> mask(bits);
  char* out = in_place ? device_dy.data() : device_dx.data();
  EXPECT(cuda::masked({{}, dtype, device_dy.data(), mask.data(), out, n}) == 0);
  const auto got = in_place ? device_dy.get() : device_dx.get();
  EXPECT_SAME(got, cpu_dx, "n ", n);
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    const double want = bits[i / 32] >> i % 32 & 1 ? get_item(dtype, dy.data(), i) : 0.0;
    EXPECT(same_value(get_item(dtype, got.data(), i), want), "element ", i);
  }
}

constexpr int64_t kLengths[] = {1, 31, 32, 33, 255, 1023, 1024, 1025, 5000};

TEST(relu_every_dtype_and_length) {
  for (const DType dtype : kDTypes)
    for (const int64_t n : kLengths) check_relu(dtype, n, 0, 0, false);
}
TEST(relu_in_place_and_unaligned) {
  for (const DType dtype : kDTypes) {
    check_relu(dtype, 2100, 0, 0, true);
    check_relu(dtype, 2100, 1, 0, false);
    check_relu(dtype, 2100, 0, 1, false);
    check_relu(dtype, 2100, 3, 0, true);
  }
}
TEST(masked_every_dtype_and_length) {
  for (const DType dtype : kDTypes)
    for (const int64_t n : kLengths) check_masked(dtype, n, 0, 0, false);
}
TEST(masked_in_place_and_unaligned) {
  for (const DType dtype : kDTypes) {
    check_masked(dtype, 2100, 0, 0, true);
    check_masked(dtype, 2100, 1, 0, false);
    check_masked(dtype, 2100, 0, 1, false);
    check_masked(dtype, 2100, 3, 0, true);
  }
}
TEST(masks_larger) {
  const int64_t n = testing::large ? 1000003 : 20011;
  check_relu(DType::kBF16, n, 0, 0, false);
  check_masked(DType::kF32, n, 0, 0, false);
}
TEST(masks_of_nothing) {
  EXPECT(cuda::relu({{}, DType::kF32, nullptr, nullptr, nullptr, 0}) == 0);
  EXPECT(cuda::masked({{}, DType::kF32, nullptr, nullptr, nullptr, 0}) == 0);
}

}  // namespace

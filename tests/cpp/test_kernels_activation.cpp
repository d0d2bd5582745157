// activation, kink and sloped: the CPU's bytes, special values, tails and unaligned pointers included.
#include "core/derivative.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr Activation kActivations[] = {
    {Function::kGelu, 0, 0, 0},        {Function::kGeluTanh, 0, 0, 0}, {Function::kSilu, 0, 0, 0},
    {Function::kMish, 0, 0, 0},        {Function::kTanh, 0, 0, 0},     {Function::kSigmoid, 0, 0, 0},
    {Function::kLogSigmoid, 0, 0, 0},  {Function::kSoftplus, 2, 5, 0}, {Function::kElu, 1.5, 1, 1},
    {Function::kElu, -0.5, 1.05, 0.5}, {Function::kHardswish, 0, 0, 0}};

// Dense values around zero, far ones, infinities, and NaN in the middle where wanted.
std::vector<char> make_values(DType dtype, int64_t n, bool nan) {
  constexpr double kSpecial[] = {0.0, -0.0, INFINITY, -INFINITY, 3, -3, 88, -88, 1e-30, -60000};
  std::vector<char> v(static_cast<size_t>(n * item_size(dtype)));
  Random random(91);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t pick = random.below(60);
    const double far = (static_cast<double>(random.below(20001)) - 10000) / 1000;
    set_item(dtype, v.data(), static_cast<size_t>(i), pick < 10 ? kSpecial[pick] : far);
  }
  if (nan) set_item(dtype, v.data(), static_cast<size_t>(n / 2), NAN);
  return v;
}

void check_activation(DType dtype, const Activation& f, int bits, int64_t n, size_t shift = 0,
                      bool nan = false) {
  const size_t item = static_cast<size_t>(item_size(dtype));
  const auto x = make_values(dtype, n, nan);
  const DerivativeLayout layout(n, bits);
  std::vector<char> saved(static_cast<size_t>(layout.bytes), static_cast<char>(0xAB));
  std::memcpy(saved.data() + layout.trailer, &kKey, sizeof kKey);
  Device<char> device_saved(saved), device_x(x, shift * item), device_dx(x.size(), shift * item);
  EXPECT(cpu::activation({{}, dtype, f, bits, kSalt, x.data(), saved.data(), n}) == 0);
  EXPECT(cuda::activation({{}, dtype, f, bits, kSalt, device_x.data(), device_saved.data(), n}) == 0);
  EXPECT_SAME(device_saved.get(), saved, "function ", static_cast<int>(f.function), " bits ", bits, " n ", n);
  const auto* trailer = reinterpret_cast<const Trailer*>(saved.data() + layout.trailer);
  EXPECT(trailer->salt == kSalt && trailer->version == kFormatVersion);
  std::vector<char> dx(x.size());
  EXPECT(cpu::activation_backward({{}, dtype, f, bits, x.data(), saved.data(), dx.data(), n}) == 0);
  EXPECT(cuda::activation_backward(
             {{}, dtype, f, bits, device_x.data(), device_saved.data(), device_dx.data(), n}) == 0);
  const auto got = device_dx.get();
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    const double a = get_item(dtype, got.data(), i), b = get_item(dtype, dx.data(), i);
    EXPECT(std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b), "dx ", i);
    if (nan) EXPECT(std::isnan(a), "dx ", i, " survived a NaN");
  }
}

TEST(activation_every_function) {
  for (const Activation& f : kActivations)
    for (const DType dtype : kDTypes) check_activation(dtype, f, 4, testing::large ? 40001 : 1203);
}
TEST(activation_every_width_and_length) {
  for (const int bits : kBits)
    for (const int64_t n : {0, 1, 7, 8, 9, 127, 128, 129, 1031})
      check_activation(DType::kF32, kActivations[0], bits, n);
}
TEST(activation_unaligned_and_nan) {
  for (const DType dtype : kDTypes) {
    check_activation(dtype, kActivations[2], 2, 2100, 1);
    check_activation(dtype, kActivations[2], 8, 2100, 0, true);
  }
}

constexpr Rule kRules[] = {Rule::kAbove, Rule::kNotBelow, Rule::kBetween, Rule::kWithin, Rule::kOutside};

bool expected_bit(Rule rule, double x, double lo, double hi) {
  if (std::isnan(x)) return rule != Rule::kAbove && rule != Rule::kWithin;
  const bool bits[] = {x > lo, x > lo, x > lo && x<hi, x> lo && x < hi, x < lo || x > hi};
  return bits[static_cast<int>(rule)];
}

void check_kink(DType dtype, Rule rule, int64_t n) {
  const double lo = -0.5, hi = 3;
  const auto x = make_values(dtype, n, true);
  std::vector<uint32_t> mask(static_cast<size_t>((n + 31) / 32));
  Device<char> device_x(x);
  Device<uint32_t> device_mask(mask.size());
  EXPECT(cpu::kink({{}, dtype, rule, lo, hi, x.data(), mask.data(), n}) == 0);
  EXPECT(cuda::kink({{}, dtype, rule, lo, hi, device_x.data(), device_mask.data(), n}) == 0);
  EXPECT_SAME(device_mask.get(), mask, "rule ", static_cast<int>(rule));
  for (size_t i = 0; i < mask.size() * 32; ++i) {
    const bool want = i < static_cast<size_t>(n) && expected_bit(rule, get_item(dtype, x.data(), i), lo, hi);
    EXPECT((mask[i / 32] >> i % 32 & 1) == want, "rule ", static_cast<int>(rule), " bit ", i);
  }
  for (const double off : {0.0, 0.01}) {
    std::vector<char> dx(x.size());
    Device<char> device_dx(x.size());
    EXPECT(cpu::sloped({{}, dtype, 1.5, off, x.data(), mask.data(), dx.data(), n}) == 0);
    EXPECT(cuda::sloped({{}, dtype, 1.5, off, device_x.data(), device_mask.data(), device_dx.data(), n}) ==
           0);
    const auto got = device_dx.get();
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      const double a = get_item(dtype, got.data(), i), b = get_item(dtype, dx.data(), i);
      EXPECT(std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b), "dx ", i);
      if (off == 0 && !(mask[i / 32] >> i % 32 & 1)) EXPECT(a == 0, "dx ", i);
    }
  }
}

TEST(kink_every_rule_and_dtype) {
  for (const Rule rule : kRules)
    for (const DType dtype : kDTypes)
      for (const int64_t n : {1, 33, 1500}) check_kink(dtype, rule, n);
}

}  // namespace

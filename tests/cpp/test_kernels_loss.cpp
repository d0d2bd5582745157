// probabilities and cross_entropy_backward: the CPU's bytes, every shape of tail, special values included.
#include "core/probability.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

struct LossCase {
  DType dtype;
  int bits;
  int64_t outer, classes, inner;
  bool level, weights, targets;
  size_t shift = 0;
  bool special = false;
};

// Log-probabilities from -120 to 0; special: groups of zeros, infinities and a NaN.
std::vector<char> make_log_p(const LossCase& c, int64_t n) {
  std::vector<char> v(static_cast<size_t>(n * item_size(c.dtype)));
  Random random(17);
  for (int64_t i = 0; i < n; ++i) {
    double value = -static_cast<double>(random.below(i % 3 ? 8000 : 120000)) / 1000;
    if (c.special && i / 64 % 4 == 1) value = -INFINITY;
    if (c.special && i / 64 % 4 == 2) value = -90;
    if (c.special && i == 200) value = NAN;
    set_item(c.dtype, v.data(), static_cast<size_t>(i), value);
  }
  return v;
}

std::vector<char> make_coefficients(DType dtype, int64_t n, uint64_t seed) {
  const DType real = dtype == DType::kF64 ? DType::kF64 : DType::kF32;
  std::vector<char> v(static_cast<size_t>(n * item_size(real)));
  Random random(seed);
  for (int64_t i = 0; i < n; ++i)
    set_item(real, v.data(), static_cast<size_t>(i),
             (static_cast<double>(random.below(20001)) - 10000) / 7000);
  return v;
}

void expect_equal_items(DType dtype, const std::vector<char>& got, const std::vector<char>& want) {
  for (size_t i = 0; i < want.size() / static_cast<size_t>(item_size(dtype)); ++i) {
    const double a = get_item(dtype, got.data(), i), b = get_item(dtype, want.data(), i);
    EXPECT(std::isnan(a) ? std::isnan(b) : a == b, "dx ", i, ": ", a, " and ", b);
  }
}

void check_loss(const LossCase& c) {
  const int64_t n = c.outer * c.classes * c.inner, rows = c.outer * c.inner;
  const size_t item = static_cast<size_t>(item_size(c.dtype));
  const auto log_p = make_log_p(c, n);
  const ProbabilityLayout layout(n, c.bits);
  std::vector<char> saved(static_cast<size_t>(layout.bytes), static_cast<char>(0xAB));
  std::memcpy(saved.data() + layout.trailer, &kKey, sizeof kKey);
  Device<char> device_saved(saved), device_log_p(log_p, c.shift * item),
      device_dx(log_p.size(), c.shift * item);
  EXPECT(cpu::probabilities({{}, c.dtype, c.bits, kSalt, log_p.data(), saved.data(), n}) == 0);
  EXPECT(cuda::probabilities({{}, c.dtype, c.bits, kSalt, device_log_p.data(), device_saved.data(), n}) == 0);
  EXPECT_SAME(device_saved.get(), saved, "bits ", c.bits, " n ", n);

  const auto scale = make_coefficients(c.dtype, rows, 1), hit = make_coefficients(c.dtype, rows, 2),
             level = make_coefficients(c.dtype, rows, 3), weight = make_coefficients(c.dtype, c.classes, 4);
  std::vector<int64_t> target(static_cast<size_t>(rows));
  Random random(5);
  for (auto& t : target) t = random.below(8) ? random.below(c.classes) : -100;
  const Device<char> device_scale(scale), device_hit(hit), device_level(level), device_weight(weight);
  const Device<int64_t> device_target(target);
  std::vector<char> dx(log_p.size());
  CrossEntropyBackwardArgs args{{},      c.dtype, c.bits,    saved.data(), scale.data(), nullptr, nullptr,
                                nullptr, nullptr, dx.data(), c.outer,      c.classes,    c.inner};
  CrossEntropyBackwardArgs device = args;
  device.saved = device_saved.data(), device.scale = device_scale.data(), device.dx = device_dx.data();
  if (c.targets) args.hit = hit.data(), device.hit = device_hit.data();
  if (c.targets) args.target = target.data(), device.target = device_target.data();
  if (c.level) args.level = level.data(), device.level = device_level.data();
  if (c.weights) args.class_weight = weight.data(), device.class_weight = device_weight.data();
  EXPECT(cpu::cross_entropy_backward(args) == 0);
  EXPECT(cuda::cross_entropy_backward(device) == 0);
  expect_equal_items(c.dtype, device_dx.get(), dx);
}

TEST(loss_every_dtype_and_coefficient) {
  for (const DType dtype : kDTypes)
    for (const int mask : {0, 1, 3, 4, 7})
      for (const int64_t inner : {1, 5})
        check_loss({dtype, 8, 7, 37, inner, (mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0});
}
TEST(loss_every_width_and_length) {
  for (const int bits : kBits)
    for (const int64_t n : {0, 1, 7, 8, 9, 63, 64, 65, 128, 129, 1031})
      check_loss({DType::kF32, bits, n ? 1 : 0, n ? n : 3, 1, false, false, true});
}
TEST(loss_unaligned_and_special) {
  for (const DType dtype : kDTypes) {
    check_loss({dtype, 4, 3, testing::large ? 50257 : 301, 1, true, false, true, 1, false});
    check_loss({dtype, 8, 3, 301, 1, true, true, true, 0, true});
    check_loss({dtype, 1, 2, 10, 67, true, true, true, 0, true});
  }
}

}  // namespace

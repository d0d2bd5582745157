// dropout: the CPU's result bit for bit, and the definition; forward's mask is backward's.
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr int64_t kThreshold = 0x60000000;  // p = 3/8
constexpr float kScale = 1.6f;

bool kept_element(int64_t i) {
  const ReferenceSampler sampler{{1, 1, Sampling::kRows, Draw::kStratified, 0}, kKey, kSalt, 1};
  return sampler.call(6, 0, i / 4)[static_cast<size_t>(i % 4)] >= kThreshold;
}

std::vector<char> make_values(DType dtype, int64_t n) {
  std::vector<char> v(static_cast<size_t>(n * item_size(dtype)));
  Random random(81);
  for (int64_t i = 0; i < n; ++i) set_item(dtype, v.data(), static_cast<size_t>(i), random.eighth() + 3);
  return v;
}

void check_dropout(DType dtype, int64_t n, int64_t salt, size_t x_shift = 0, size_t y_shift = 0,
                   bool in_place = false) {
  const size_t item = static_cast<size_t>(item_size(dtype));
  const auto x = make_values(dtype, n);
  // Forward finds only the key in place, backward all of it.
  std::vector<Trailer> trailer{{kKey, salt < 0 ? kSalt : 1, salt < 0 ? kFormatVersion : 7, {}}};
  Device<Trailer> device_trailer(trailer);
  std::vector<char> cpu_y(x.size());
  Device<char> dx(x, x_shift * item), dy(x.size(), y_shift * item);
  char* y = in_place ? dx.data() : dy.data();
  EXPECT(cpu::dropout({{}, dtype, trailer.data(), salt, kThreshold, kScale, x.data(), cpu_y.data(), n}) == 0);
  EXPECT(cuda::dropout({{}, dtype, device_trailer.data(), salt, kThreshold, kScale, dx.data(), y, n}) == 0);
  const auto got = in_place ? dx.get() : dy.get();
  EXPECT_SAME(got, cpu_y, "n ", n);
  const Trailer after = device_trailer.get()[0];
  EXPECT(after.key == kKey && after.salt == kSalt && after.version == kFormatVersion, "n ", n);
  for (const uint64_t word : after.reserved) EXPECT(word == 0);
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<size_t>(i);
    const double scaled = get_item(dtype, x.data(), at) * static_cast<double>(kScale);
    const double want =
        kept_element(i) ? rounded(dtype, dtype == DType::kF64 ? scaled : rounded(DType::kF32, scaled)) : 0;
    EXPECT(get_item(dtype, got.data(), at) == want, "element ", i);
  }
}

TEST(dropout_every_dtype_and_length) {
  for (const DType dtype : kDTypes)
    for (const int64_t n : {1, 3, 4, 5, 31, 1024, 1027, 5000})
      for (const int64_t salt : {static_cast<int64_t>(kSalt), int64_t{-1}}) check_dropout(dtype, n, salt);
}

TEST(dropout_in_place_and_unaligned) {
  for (const DType dtype : kDTypes) {
    check_dropout(dtype, 2101, kSalt, 0, 0, true);
    check_dropout(dtype, 2101, kSalt, 1, 0);
    check_dropout(dtype, 2101, -1, 0, 1);
    check_dropout(dtype, 2101, -1, 3, 0, true);
  }
}

TEST(dropout_larger) { check_dropout(DType::kBF16, testing::large ? 300003 : 20011, kSalt); }

TEST(dropout_of_special_values_and_ends) {
  const std::vector<float> x{NAN, INFINITY, -INFINITY, -0.f, 1e-45f, 3e38f, NAN, 1.f};
  const auto n = static_cast<int64_t>(x.size());
  for (const uint32_t threshold : {0u, 0x80000000u, 0xFFFFFFFFu}) {
    std::vector<Trailer> trailer{{kKey, 0, 0, {}}};
    Device<Trailer> device_trailer(trailer);
    Device<float> device(x), out(x.size());
    EXPECT(
        cuda::dropout(
            {{}, DType::kF32, device_trailer.data(), kSalt, threshold, 2.f, device.data(), out.data(), n}) ==
        0);
    const auto y = out.get();
    const ReferenceSampler sampler{{1, 1, Sampling::kRows, Draw::kStratified, 0}, kKey, kSalt, 1};
    for (int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(i);
      const bool keeps = sampler.call(6, 0, i / 4)[static_cast<size_t>(i % 4)] >= threshold;
      const float want = keeps ? x[at] * 2 : 0.f;  // dropped NaNs are zeros
      EXPECT(std::isnan(want) ? std::isnan(y[at]) : y[at] == want, "threshold ", threshold, " element ", i);
    }
  }
}

// An element whose word is the threshold stays.
TEST(dropout_at_the_threshold) {
  const ReferenceSampler sampler{{1, 1, Sampling::kRows, Draw::kStratified, 0}, kKey, kSalt, 1};
  const uint32_t word = sampler.call(6, 0, 0)[2];
  for (const uint32_t above : {0u, 1u}) {
    Device<Trailer> trailer(std::vector<Trailer>{{kKey, 0, 0, {}}});
    Device<float> x(std::vector<float>{1, 1, 1}), y(3);
    EXPECT(cuda::dropout(
               {{}, DType::kF32, trailer.data(), kSalt, word + above, 2.f, x.data(), y.data(), 3}) == 0);
    EXPECT(y.get()[2] == (above ? 0.f : 2.f));
  }
}

// Nothing to drop: forward still completes the trailer.
TEST(dropout_of_nothing) { check_dropout(DType::kF32, 0, kSalt); }

}  // namespace

// coder.cuh against core/dither.h, and the arithmetic wrappers of ptx.cuh.
#include <cmath>

#include "cuda/saved.cuh"
#include "device.h"

using namespace rad;
using namespace rad::cuda;
using testing::Device;

namespace {

__global__ void arithmetic(const float* x, float* sum, uint32_t* bytes, uint64_t* wide) {
  const int t = static_cast<int>(threadIdx.x);
  sum[t] = add_toward_zero(x[t], kMantissa);
  bytes[t] = permute_bytes(0x33221100u, 0x77665544u, t == 0 ? 0x5410 : t == 1 ? 0x5432 : 0x7036);
  wide[t] = multiply_wide(0xFFFFFFFFu - static_cast<uint32_t>(t), 0xD2511F53u);
  if (opaque(t) != t) sum[t] = NAN;
}

TEST(ptx_arithmetic) {
  const std::vector<float> x{0.f, 1e-40f, 0.99999994f, 1.f, 1.5f, 254.99998f, 255.f, -0.25f};
  Device<float> dx(x), sum(x.size());
  Device<uint32_t> bytes(x.size());
  Device<uint64_t> wide(x.size());
  launch(arithmetic, {dim3(1), dim3(8)}, static_cast<const float*>(dx.data()), sum.data(), bytes.data(),
         wide.data());
  EXPECT_SAME(sum.get(), (std::vector<float>{8388608, 8388608, 8388608, 8388609, 8388609, 8388862, 8388863,
                                             8388607.5f}));
  const auto got = bytes.get();
  EXPECT(got[0] == 0x55441100u && got[1] == 0x55443322u && got[2] == 0x77003366u);
  const auto products = wide.get();
  for (uint64_t t = 0; t < 8; ++t) EXPECT(products[t] == (0xFFFFFFFFull - t) * 0xD2511F53ull);
}

__global__ void bounds(const float* x, const float* y, float* out) {
  const int t = static_cast<int>(threadIdx.x);
  out[4 * t] = multiply_toward_zero(x[t], y[t]);
  out[4 * t + 1] = min_or_nan(x[t], y[t]);
  out[4 * t + 2] = max_or_nan(x[t], y[t]);
  out[4 * t + 3] = normal_reciprocal(x[t]);
}

TEST(ptx_bounds) {
  constexpr float kTiny = 0x1p-149f, kBelowOne = 0x1.fffffep-1f;
  const std::vector<float> x{3, -3, 0x1.555556p-2f, kTiny, 0x1p100f, INFINITY, NAN, 2};
  const std::vector<float> y{0x1.555556p-2f, 0x1.555556p-2f, 3, 0.75f, 0x1p100f, 1, 5, NAN};
  Device<float> dx(x), dy(y), out(4 * x.size());
  launch(bounds, {dim3(1), dim3(8)}, static_cast<const float*>(dx.data()),
         static_cast<const float*>(dy.data()), out.data());
  const auto got = out.get();
  const float products[] = {1, -1, 1, 0, 0x1.fffffep127f, INFINITY};
  for (size_t t = 0; t < 6; ++t) {
    EXPECT(got[4 * t] == products[t], t, got[4 * t]);
    EXPECT(got[4 * t + 1] == std::fmin(x[t], y[t]) && got[4 * t + 2] == std::fmax(x[t], y[t]), t);
  }
  for (size_t t = 6; t < 8; ++t)
    for (size_t i = 0; i < 3; ++i) EXPECT(std::isnan(got[4 * t + i]), t, i);
  EXPECT(got[3] == 1.0f / 3 && got[7] == -1.0f / 3 && got[11] == 1 / x[2] && got[19] == 0x1p-100f);
  EXPECT(multiply_toward_zero(kBelowOne, kBelowOne) == 0x1.fffffcp-1f);
}

__global__ void reciprocals(unsigned* wrong) {
  unsigned count = 0;  // of all steps between the limits of OctetDither's divisor
  for (int exponent = -75; exponent <= 70; ++exponent) {
    const float x = ldexpf(1.0f + static_cast<float>(threadIdx.x) / 128, exponent);
    count += normal_reciprocal(x) != 1.0f / x;
  }
  if (count) atomicAdd(wrong, count);
}

TEST(reciprocals_are_those_of_ieee) {
  Device<unsigned> wrong(std::vector<unsigned>{0});
  launch(reciprocals, {dim3(1), dim3(128)}, wrong.data());
  EXPECT(wrong.get()[0] == 0);
}

// Steps of ranges of all sizes, of some next to a bf16 number times the levels, and of none that is finite.
__global__ void wrong_steps(const float* range, int count, const float* level, const int* bits, int cases,
                            unsigned* wrong) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x))
    for (int c = 0; c < cases; ++c) {
      const float lo = i % 3 ? 0.0f : -range[i] / 4, hi = lo + range[i];
      const uint32_t got = float_bits(group_step(lo, hi, bits[c], level[c]));
      if (got != float_bits(Dither<float>::step_for(lo, hi, bits[c]))) atomicAdd(wrong, 1u);
    }
}

TEST(steps_are_those_of_the_dither) {
  const std::vector<int> bits{1, 2, 3, 4, 8};
  std::vector<float> level, ranges{0, INFINITY, NAN, 0x1.fffffep127f};
  for (const int b : bits) {
    level.push_back(level_below(b));
    const double levels = (1 << b) - 1;
    EXPECT(level.back() * levels <= 1 && std::nextafterf(level.back(), 2) * levels > 1, b);
  }
  testing::Random random(8);
  for (int i = 0; i < (testing::large ? 200000 : 20000); ++i) {
    const auto any = static_cast<uint32_t>(random.below(0x7F800000));
    const float step = bits_float(any & 0x7FFF0000u), top = step * static_cast<float>((1 << bits[i % 5]) - 1);
    for (const float range : {bits_float(any), bits_float(any % 0x400000), top, std::nextafterf(top, 0.0f),
                              std::nextafterf(top, INFINITY)})
      ranges.push_back(range);
  }
  Device<float> dr(ranges), dl(level);
  Device<int> db(bits);
  Device<unsigned> wrong(std::vector<unsigned>{0});
  launch(wrong_steps, {dim3(1), dim3(64)}, static_cast<const float*>(dr.data()),
         static_cast<int>(ranges.size()), static_cast<const float*>(dl.data()),
         static_cast<const int*>(db.data()), static_cast<int>(bits.size()), wrong.data());
  EXPECT(wrong.get()[0] == 0, wrong.get()[0], " of ", ranges.size());
}

// A block takes one significand of a step at one exponent; quotients from 1/2 to 256.
__global__ void wrong_quotients(const int* exponent, int stride, unsigned* wrong) {
  const float step = ldexpf(1.0f + static_cast<float>(blockIdx.x) / 128, exponent[blockIdx.y]);
  const OctetDither<float> dither(0.0f, step);
  unsigned count = 0;
  for (int n = static_cast<int>(threadIdx.x); n < 1 << 23; n += static_cast<int>(blockDim.x) * stride) {
    const float value =
        step * (bits_float(0x3F800000u | static_cast<uint32_t>(n)) * static_cast<float>(1 << n % 8));
    if (std::isfinite(value)) count += dither.quotient(value) != value / step;
  }
  if (count) atomicAdd(wrong, count);
}

// Steps from the largest down to the subnormal bf16 numbers. Of all 2^30 pairs of a step's and a value's
// significand a sample; with stride 1 the test takes all.
TEST(coder_quotients_are_those_of_ieee) {
  const std::vector<int> exponents{120, 61, 60, 59, 0, -1, -59, -60, -61, -100, -126};
  Device<int> exponent(exponents);
  Device<unsigned> wrong(std::vector<unsigned>{0});
  const int stride = testing::large ? 499 : 4999;
  launch(wrong_quotients, {dim3(128, static_cast<unsigned>(exponents.size())), dim3(32)},
         static_cast<const int*>(exponent.data()), stride, wrong.data());
  EXPECT(wrong.get()[0] == 0);
}

struct Case {
  float lo, step;
  int bits;
};

// Codes and numbers of octet t of a case, twice: by the coder, and by core/dither.h value by value.
__global__ void both_ways(const Case* cases, const float* share, uint64_t* codes, float* numbers) {
  const Case c = cases[blockIdx.x];
  const int t = static_cast<int>(threadIdx.x), levels = (1 << c.bits) - 1;
  const Words noise = rad::random_words(7, 9, Role::kDither, blockIdx.x, static_cast<uint64_t>(t));
  const Dither<float> plain(c.lo, c.step, c.bits);
  const OctetDither<float> coder(c.lo, c.step);
  float value[kOctet], decoded[kOctet];
  uint64_t expected = 0;
  for (int e = 0; e < kOctet; ++e) {
    // Least and greatest values among them; where the step says that nothing is finite, NaN.
    value[e] = c.step == c.step ? c.lo + c.step * (share[t * kOctet + e] * static_cast<float>(levels)) : NAN;
    expected |= static_cast<uint64_t>(plain.encode(value[e], dither_noise(noise, e))) << (c.bits * e);
  }
  const uint64_t got = coder.encode(value, noise, c.bits);
  if (c.bits == 4 && blockIdx.y)
    coder.decode_nibbles(static_cast<uint32_t>(got), noise, decoded);
  else
    coder.decode(got, noise, c.bits, decoded);
  const auto place = static_cast<int>((blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x) + t;
  codes[2 * place] = got;
  codes[2 * place + 1] = expected;
  for (int e = 0; e < kOctet; ++e) {
    const int code = static_cast<int>(expected >> (c.bits * e)) & levels;
    numbers[2 * (place * kOctet + e)] = decoded[e];
    numbers[2 * (place * kOctet + e) + 1] = plain.decode(code, dither_noise(noise, e));
  }
}

TEST(coder_has_the_codes_and_numbers_of_the_dither) {
  std::vector<Case> cases;
  for (const int bits : {1, 2, 3, 4, 8})
    for (const float step : {1.0f, 0.0419921875f, 0x1.02p-30f, 0x1p-70f, 0x1.fep-126f, 0x1p-133f, 0x1.8p70f,
                             0x1.fep118f, 0.0f, NAN})
      for (const float lo : {0.0f, -3.5f * step}) cases.push_back({step == step ? lo : 0.0f, step, bits});
  constexpr unsigned kOctets = 32;
  std::vector<float> share(kOctets * kOctet);
  testing::Random random(3);
  for (float& s : share) s = static_cast<float>(random.below(257)) / 256;
  Device<Case> dc(cases);
  Device<float> ds(share);
  const size_t octets = 2 * cases.size() * kOctets;  // the second time with the coder's way of four bits
  Device<uint64_t> codes(2 * octets);
  Device<float> numbers(2 * octets * kOctet);
  launch(both_ways, {dim3(static_cast<unsigned>(cases.size()), 2), dim3(kOctets)},
         static_cast<const Case*>(dc.data()), static_cast<const float*>(ds.data()), codes.data(),
         numbers.data());
  const auto c = codes.get();
  for (size_t i = 0; i < c.size(); i += 2) EXPECT(c[i] == c[i + 1], "octet ", i / 2);
  const auto v = numbers.get();
  for (size_t i = 0; i < v.size(); i += 2)
    EXPECT(v[i] == v[i + 1] || (std::isnan(v[i]) && std::isnan(v[i + 1])), "value ", i / 2);
}

}  // namespace

// coder.cuh against core/dither.h, and the arithmetic wrappers of ptx.cuh.
#include <cmath>

#include "cuda/coder.cuh"
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
  coder.decode(got, noise, c.bits, decoded);
  const auto place = static_cast<int>(blockIdx.x * blockDim.x) + t;
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
  const size_t octets = cases.size() * kOctets;
  Device<uint64_t> codes(2 * octets);
  Device<float> numbers(2 * octets * kOctet);
  launch(both_ways, {dim3(static_cast<unsigned>(cases.size())), dim3(kOctets)},
         static_cast<const Case*>(dc.data()), static_cast<const float*>(ds.data()), codes.data(),
         numbers.data());
  const auto c = codes.get();
  for (size_t i = 0; i < c.size(); i += 2) EXPECT(c[i] == c[i + 1], "octet ", i / 2);
  const auto v = numbers.get();
  for (size_t i = 0; i < v.size(); i += 2)
    EXPECT(v[i] == v[i + 1] || (std::isnan(v[i]) && std::isnan(v[i + 1])), "value ", i / 2);
}

}  // namespace

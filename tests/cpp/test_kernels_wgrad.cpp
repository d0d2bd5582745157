// linear_wgrad of `different`: inputs are multiples of 1/8 and weights multiples of 1/2, so every order of
// summation gives the same fp32 sums; the CPU's result bit for bit, and the definition.
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

std::vector<double> definition(const SketchSpec& spec, const Matrix& x, const Matrix& dy) {
  const int64_t rows = dy.host().rows, outputs = dy.host().cols, features = x.host().cols;
  const ReferenceSampler sampler{spec, kKey, kSalt, features};
  std::vector<double> dw(static_cast<size_t>(outputs * features), 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < sampler.k(); ++j) {
      const int64_t f = sampler.index(r, j);
      for (int64_t o = 0; o < outputs; ++o)
        dw[static_cast<size_t>(o * features + f)] += dy.at(r, o) * x.at(r, f) * sampler.weight(j);
    }
  return dw;
}

void check_wgrad(const SketchSpec& spec, DType dtype, int64_t rows, int64_t outputs, int64_t features,
                 Form form = Form::kContiguous, size_t dw_shift = 0) {
  const Matrix x(dtype, Form::kContiguous, rows, features, 61), dy(dtype, form, rows, outputs, 62);
  const Packed saved(spec, dtype, x);
  const std::string what = describe(spec, dtype, rows, features) + " -> " + std::to_string(outputs) +
                           " form " + std::to_string(static_cast<int>(form));
  const size_t item = static_cast<size_t>(item_size(dtype)),
               bytes = static_cast<size_t>(outputs * features) * item;
  std::vector<char> cpu_dw(bytes);
  Device<char> dw(bytes, dw_shift * item);
  LinearWgradArgs cpu_args{{}, spec, dtype, dy.host(), features, saved.host.data(), cpu_dw.data(), nullptr};
  LinearWgradArgs args{{}, spec, dtype, dy.device(), features, saved.device.data(), dw.data(), nullptr};
  std::vector<char> cpu_workspace(static_cast<size_t>(cpu::linear_wgrad_workspace(cpu_args)));
  Device<char> workspace(static_cast<size_t>(cuda::linear_wgrad_workspace(args)));
  cpu_args.workspace = cpu_workspace.data();
  args.workspace = workspace.data();
  EXPECT(cpu::linear_wgrad(cpu_args) == 0 && cuda::linear_wgrad(args) == 0);
  const auto got = dw.get();
  EXPECT_SAME(got, cpu_dw, what);
  const auto want = definition(spec, x, dy);
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT(get_item(dtype, got.data(), i) == rounded(dtype, want[i]), what, " element ", i, " is ",
           get_item(dtype, got.data(), i), ", expected ", want[i]);
}

TEST(wgrad_every_draw_and_dtype) {
  for (const Draw draw : kDraws)
    for (const DType dtype : kDTypes) check_wgrad({2, 5, Sampling::kDifferent, draw, 0}, dtype, 37, 70, 100);
}

TEST(wgrad_dy_layouts) {
  for (const Form form : kForms)
    for (const DType dtype : {DType::kF32, DType::kBF16})
      check_wgrad({1, 4, Sampling::kDifferent, Draw::kStratified, 0}, dtype, 34, 72, 68, form);
}

TEST(wgrad_keep_from_one_entry_to_all) {
  for (const Draw draw : kDraws) {
    check_wgrad({1, 66, Sampling::kDifferent, draw, 0}, DType::kF32, 33, 5, 66);
    check_wgrad({65, 130, Sampling::kDifferent, draw, 0}, DType::kF32, 33, 65, 130);
    check_wgrad({1, 1, Sampling::kDifferent, draw, 0}, DType::kF32, 33, 66, 67);
  }
}

// On tensor cores: tails in every dimension, keeps from one entry to nearly all, blocks with several tiles.
TEST(wgrad_on_tensor_cores) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t num : {1, 3, 19, 38, 75, 130, 290, 299})
      check_wgrad({num, 300, Sampling::kDifferent, Draw::kStratified, 0}, dtype, 67, 131, 300);
    for (const int64_t features : {1, 7, 8, 127, 128, 129, 255, 257})
      check_wgrad({3, 10, Sampling::kDifferent, Draw::kStratified, 0}, dtype, 33, 8, features);
    for (const int64_t rows : {1, 31, 32, 64, 97})
      check_wgrad({1, 16, Sampling::kDifferent, Draw::kStratified, 0}, dtype, rows, 129, 144);
  }
  const int64_t many = testing::large ? 1500 : 400;
  check_wgrad({1, 8, Sampling::kDifferent, Draw::kStratified, 0}, DType::kBF16, 40, many, many);
  for (const Form form : kForms)
    check_wgrad({1, 3, Sampling::kDifferent, Draw::kStratified, 0}, DType::kBF16, 34, 136, 130, form);
}

TEST(wgrad_strata_across_tiles) {  // strata that straddle the 64-feature tiles, long ones first
  for (const int64_t num : {3, 7, 29, 64})
    check_wgrad({num, 150, Sampling::kDifferent, Draw::kStratified, 0}, DType::kF32, 40, 3, 150);
}

TEST(wgrad_small_and_unaligned) {
  for (const Draw draw : kDraws) {
    const SketchSpec half{1, 2, Sampling::kDifferent, draw, 0};
    check_wgrad(half, DType::kF32, 1, 1, 2);
    check_wgrad(half, DType::kF16, 31, 63, 64, Form::kShifted);
    check_wgrad(half, DType::kBF16, 32, 64, 64, Form::kContiguous, 1);
    check_wgrad(half, DType::kF64, 65, 4, 8, Form::kContiguous, 1);
  }
}

TEST(wgrad_larger) {
  const int64_t rows = testing::large ? 300 : 64, outputs = testing::large ? 200 : 64,
                features = testing::large ? 390 : 130;
  check_wgrad({1, 10, Sampling::kDifferent, Draw::kStratified, 0}, DType::kBF16, rows, outputs, features);
  check_wgrad({1, 10, Sampling::kDifferent, Draw::kWithReplacement, 0}, DType::kF32, rows, outputs, features);
}

// No rows: zeros. No outputs or features: nothing to write.
TEST(wgrad_of_nothing) {
  for (const Draw draw : kDraws) {
    check_wgrad({1, 2, Sampling::kDifferent, draw, 0}, DType::kF32, 0, 3, 10);
    check_wgrad({1, 2, Sampling::kDifferent, draw, 0}, DType::kF32, 3, 0, 10);
    check_wgrad({1, 2, Sampling::kDifferent, draw, 0}, DType::kF32, 3, 3, 0);
  }
}

// ---- inexact sums -----------------------------------------------------------------------------------------

std::vector<float> noise(int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> v(static_cast<size_t>(n));
  for (float& x : v) x = static_cast<float>(random.below(2000001) - 1000000) / 1e6f;
  return v;
}

struct Noisy {
  SketchSpec spec;
  int64_t rows = 150, outputs = 37, features = 133;
  std::vector<float> x = noise(rows * features, 65), dy = noise(rows * outputs, 66);
  std::vector<char> saved = fresh_saved(spec, DType::kF32, rows, features);

  explicit Noisy(Draw draw) : spec{3, 7, Sampling::kDifferent, draw, 0} {
    EXPECT(cpu::pack({{},
                      spec,
                      DType::kF32,
                      contiguous_matrix(x.data(), rows, features),
                      features,
                      kSalt,
                      saved.data(),
                      nullptr}) == 0);
  }
  std::vector<float> wgrad() const {
    Device<float> device_dy(dy), dw(static_cast<size_t>(outputs * features));
    Device<char> device_saved(saved);
    EXPECT(cuda::linear_wgrad({{},
                               spec,
                               DType::kF32,
                               contiguous_matrix(device_dy.data(), rows, outputs),
                               features,
                               device_saved.data(),
                               dw.data(),
                               nullptr}) == 0);
    return dw.get();
  }
};

TEST(wgrad_does_not_depend_on_the_schedule) {
  for (const Draw draw : kDraws) {
    const Noisy problem(draw);
    const auto first = problem.wgrad();
#ifndef __CUDACC__
    const simt::Options before = simt::options;
    for (const simt::Order order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kRandom}) {
      simt::options.order = order;
      simt::options.seed += 1;
      EXPECT_SAME(problem.wgrad(), first);
    }
    simt::options = before;
#endif
    EXPECT_SAME(problem.wgrad(), first);
  }
}

// A sum of n products in fp32, weighted at the end, is off by at most (n + 2) 2^-24 sum |terms| to first
// order.
TEST(wgrad_rounds_no_more_than_fp32_sums_do) {
  for (const Draw draw : kDraws) {
    const Noisy p(draw);
    const ReferenceSampler sampler{p.spec, kKey, kSalt, p.features};
    std::vector<double> want(static_cast<size_t>(p.outputs * p.features), 0), magnitude(want), terms(want);
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t j = 0; j < sampler.k(); ++j)
        for (int64_t o = 0; o < p.outputs; ++o) {
          const int64_t f = sampler.index(r, j);
          const double term = static_cast<double>(p.dy[static_cast<size_t>(r * p.outputs + o)]) *
                              p.x[static_cast<size_t>(r * p.features + f)] * sampler.weight(j);
          const auto i = static_cast<size_t>(o * p.features + f);
          want[i] += term;
          magnitude[i] += std::abs(term);
          terms[i] += 1;
        }
    const auto got = p.wgrad();
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT(std::abs(got[i] - want[i]) <= 1.01 * (terms[i] + 2) * std::ldexp(magnitude[i], -24), "element ",
             i);
  }
}

// ---- codes: decoded inside, so sums are inexact
// ------------------------------------------------------------

struct Bound {
  double want = 0, magnitude = 0, terms = 0;
};

// dW from what cpu::decode makes of the codes, in fp64. Tensor cores take 16-bit values that are rounded
// first.
std::vector<Bound> coded_definition(const SketchSpec& spec, DType dtype, const Matrix& dy, int64_t features,
                                    const std::vector<char>& saved) {
  const int64_t rows = dy.host().rows, outputs = dy.host().cols;
  const ReferenceSampler sampler{spec, kKey, kSalt, features};
  const bool widen = item_size(dtype) == 2 && spec.draw != Draw::kStratified;
  std::vector<double> values(static_cast<size_t>(rows * sampler.k()));
  EXPECT(cpu::decode({{}, spec, dtype, widen, rows, features, saved.data(), 0, rows, values.data()}) == 0);
  std::vector<Bound> dw(static_cast<size_t>(outputs * features));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < sampler.k(); ++j) {
      const double value =
          get_item(widen ? DType::kF32 : dtype, values.data(), static_cast<size_t>(r * sampler.k() + j)) *
          sampler.weight(j);
      const int64_t f = sampler.index(r, j);
      for (int64_t o = 0; o < outputs; ++o) {
        Bound& b = dw[static_cast<size_t>(o * features + f)];
        b.want += dy.at(r, o) * value;
        b.magnitude += std::abs(dy.at(r, o) * value);
        b.terms += 1;
      }
    }
  return dw;
}

// n products summed and weighted are off by at most (n + 2) units of their roundings, and once more when
// stored.
void check_coded_wgrad(const SketchSpec& spec, DType dtype, int64_t rows, int64_t outputs, int64_t features) {
  const Matrix x(dtype, Form::kContiguous, rows, features, 67),
      dy(dtype, Form::kContiguous, rows, outputs, 68);
  const Packed saved(spec, dtype, x);
  Device<char> dw(static_cast<size_t>(outputs * features * item_size(dtype)));
  run_cuda<LinearWgradArgs>(
      cuda::linear_wgrad_workspace, cuda::linear_wgrad,
      {{}, spec, dtype, dy.device(), features, saved.device.data(), dw.data(), nullptr});
  const auto got = dw.get();
  const auto want = coded_definition(spec, dtype, dy, features, saved.host);
  // Tensor cores cut off what they add.
  const bool cut_off = item_size(dtype) == 2 && spec.draw == Draw::kStratified;
  const int sum_bits = dtype == DType::kF64 ? 53 : cut_off ? 22 : 24;
  const int stored_bits = dtype == DType::kBF16 ? 8 : dtype == DType::kF16 ? 11 : sum_bits;
  for (size_t i = 0; i < want.size(); ++i) {
    const Bound& b = want[i];
    const double error = std::abs(get_item(dtype, got.data(), i) - b.want);
    EXPECT(error <= 1.01 * (std::ldexp((b.terms + 2) * b.magnitude, -sum_bits) +
                            std::ldexp(std::abs(b.want), -stored_bits)),
           describe(spec, dtype, rows, features), " element ", i, " is off by ", error);
  }
}

TEST(wgrad_codes_every_dtype_and_bits) {
  for (const Draw draw : kDraws)
    for (const DType dtype : kDTypes)
      for (const int bits : kBits)
        check_coded_wgrad({2, 5, Sampling::kDifferent, draw, bits}, dtype, 35, 9, 190);
}

TEST(wgrad_codes_on_tensor_cores) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const int bits : kBits)
      for (const int64_t num : {1, 5, 29})
        check_coded_wgrad({num, 30, Sampling::kDifferent, Draw::kStratified, bits}, dtype, 45, 20, 270);
}

TEST(wgrad_codes_odd_shapes) {
  for (const Draw draw : kDraws)
    for (const int bits : {8, 1}) {
      check_coded_wgrad({1, 1, Sampling::kDifferent, draw, bits}, DType::kF32, 33, 65, 67);
      check_coded_wgrad({1, 66, Sampling::kDifferent, draw, bits}, DType::kF32, 40, 3, 66);
      check_coded_wgrad({7, 150, Sampling::kDifferent, draw, bits}, DType::kF32, 40, 3, 150);
      check_coded_wgrad({1, 2, Sampling::kDifferent, draw, bits}, DType::kBF16, 1, 1, 2);
    }
}

// ---- special values ---------------------------------------------------------------------------------------

// What was not kept must not spread: NaN in x reaches only the features that sampled it.
TEST(wgrad_nan_stays_where_it_was_sampled) {
  const SketchSpec spec{1, 4, Sampling::kDifferent, Draw::kStratified, 0};
  constexpr int64_t kRows = 5, kCols = 40, kOuts = 3, kBad = 2;
  const ReferenceSampler sampler{spec, kKey, kSalt, kCols};
  Matrix x(DType::kF32, Form::kContiguous, kRows, kCols, 63);
  const Matrix dy(DType::kF32, Form::kContiguous, kRows, kOuts, 64);
  std::vector<float> values(kRows * kCols);
  std::memcpy(values.data(), x.host().data, values.size() * sizeof(float));
  for (int64_t c = 0; c < kCols; ++c) values[kBad * kCols + c] = NAN;
  std::vector<char> saved = fresh_saved(spec, DType::kF32, kRows, kCols);
  EXPECT(cpu::pack({{},
                    spec,
                    DType::kF32,
                    contiguous_matrix(values.data(), kRows, kCols),
                    kCols,
                    kSalt,
                    saved.data(),
                    nullptr}) == 0);
  Device<char> device_saved(saved);
  Device<float> dw(kOuts * kCols);
  EXPECT(cuda::linear_wgrad(
             {{}, spec, DType::kF32, dy.device(), kCols, device_saved.data(), dw.data(), nullptr}) == 0);
  std::vector<bool> hit(kCols, false);
  for (int64_t j = 0; j < sampler.k(); ++j) hit[static_cast<size_t>(sampler.index(kBad, j))] = true;
  const auto got = dw.get();
  for (size_t i = 0; i < got.size(); ++i) EXPECT(std::isnan(got[i]) == hit[i % kCols], "element ", i);
}

}  // namespace

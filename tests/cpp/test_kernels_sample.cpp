// sample and norm_sample: bit for bit the CPU's, and the definition.
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

// Even and odd counts, k = 1, k = n, n % k != 0, one and no entries.
struct Count {
  int64_t n, num, den;
};
constexpr Count kCounts[] = {{1, 1, 1},   {2, 1, 2},   {7, 1, 7},     {7, 3, 7},       {64, 1, 10},
                             {255, 1, 4}, {256, 1, 1}, {1000, 3, 10}, {513, 999, 1000}};

void check_sample(const SketchSpec& spec, int64_t n, int64_t outer) {
  const auto trailer = std::vector<Trailer>{{kKey, kSalt, kFormatVersion, {}}};
  Device<Trailer> device_trailer(trailer);
  const auto k = static_cast<size_t>(kept(n, spec.num, spec.den));
  std::vector<int64_t> cpu_index(k);
  Device<int64_t> index(k);
  EXPECT(cpu::sample({{}, spec, trailer.data(), n, outer, 1, cpu_index.data(), nullptr}) == 0);
  const SampleArgs args{{}, spec, device_trailer.data(), n, outer, 1, index.data(), nullptr};
  EXPECT(cuda::sample_workspace(args) == 0);
  EXPECT(cuda::sample(args) == 0);
  const auto got = index.get();
  const std::string what = describe(spec, DType::kF32, n, 1) + " line " + std::to_string(outer);
  EXPECT_SAME(got, cpu_index, what);
  EXPECT_SAME(got, (ReferenceSampler{spec, kKey, kSalt, n}.list(outer)), what);
}

bool has_lists(const Combination& c) {
  return c.draw != Draw::kNorm && (by_row(c.spec(1, 1)) || c.sampling == Sampling::kSame);
}

TEST(sample_lists) {
  for (const Combination& c : kCombinations) {
    if (!has_lists(c)) continue;
    for (const Count& count : kCounts) check_sample(c.spec(count.num, count.den), count.n, 0);
    if (c.sampling == Sampling::kTileRows) check_sample(c.spec(1, 3), 100, 41);
  }
}

// More draws than one block of the sort holds, and duplicates.
TEST(sample_sorts_across_blocks) {
  const int64_t n = testing::large ? 5000 : 1500;
  for (const Draw draw : {Draw::kWithReplacement, Draw::kWithoutReplacement})
    check_sample({1, 2, Sampling::kSame, draw, 0}, n, 0);
}

TEST(sample_of_nothing) {
  for (const Combination& c : kCombinations)
    if (has_lists(c)) EXPECT(cuda::sample({{}, c.spec(1, 2), nullptr, 0, 0, 1, nullptr, nullptr}) == 0);
}

// ---- norm_sample: squares of multiples of 1/8 sum exactly, so both sides have the same norms
// ------------------

struct NormSample {
  std::vector<int64_t> index;
  std::vector<float> weight;
};

NormSample planes_of(const std::vector<char>& saved, const SavedLayout& layout) {
  NormSample s{std::vector<int64_t>(static_cast<size_t>(layout.lines)),
               std::vector<float>(static_cast<size_t>(layout.lines))};
  std::memcpy(s.index.data(), saved.data() + layout.index, s.index.size() * sizeof(int64_t));
  std::memcpy(s.weight.data(), saved.data() + layout.weight, s.weight.size() * sizeof(float));
  return s;
}

// p_n = 0.9 a_n / S + 0.1 / N with a_n = floor(2^30 norm_n / largest), in plain arithmetic.
NormSample norm_definition(const SketchSpec& spec, const std::vector<double>& norm) {
  const auto n = static_cast<int64_t>(norm.size());
  const ReferenceSampler sampler{spec, kKey, kSalt, n};
  double largest = 0;
  bool finite = true;
  for (const double v : norm) {
    finite = finite && std::isfinite(v);
    largest = std::max(largest, v);
  }
  std::vector<uint64_t> a;
  uint64_t total = 0;
  for (const double v : norm) {
    a.push_back(finite && largest > 0 ? static_cast<uint64_t>(std::floor(v / largest * 1073741824.0)) : 0);
    total += a.back();
  }
  NormSample s;
  for (int64_t i = 0; i < sampler.k(); ++i) {
    const auto words = sampler.call(1, 0, i);
    const uint64_t choice = sampler.word(words, 0), place = sampler.word(words, 1);
    int64_t row = sampler.scaled(place, n);
    if (total > 0 && sampler.scaled(choice, 10) != 0) {
      auto left = static_cast<uint64_t>(sampler.scaled(place, static_cast<int64_t>(total)));
      for (row = 0; left >= a[static_cast<size_t>(row)]; ++row) left -= a[static_cast<size_t>(row)];
    }
    const double share = static_cast<double>(a[static_cast<size_t>(row)]) / static_cast<double>(total);
    const double p = total == 0 ? 1.0 / static_cast<double>(n) : 0.9 * share + 0.1 / static_cast<double>(n);
    s.index.push_back(row);
    s.weight.push_back(static_cast<float>(1 / (static_cast<double>(sampler.k()) * p)));
  }
  return s;
}

void check_norm_sample(const SketchSpec& spec, DType dtype, const MatrixView& host, const MatrixView& device,
                       const std::vector<double>& norm) {
  const int64_t rows = host.rows, cols = host.cols;
  const std::string what = describe(spec, dtype, rows, cols);
  auto cpu_saved = fresh_saved(spec, dtype, rows, cols);
  Device<char> saved(cpu_saved);
  run_cpu<NormSampleArgs>(cpu::norm_sample_workspace, cpu::norm_sample,
                          {{}, spec, dtype, host, kSalt, cpu_saved.data(), nullptr});
  run_cuda<NormSampleArgs>(cuda::norm_sample_workspace, cuda::norm_sample,
                           {{}, spec, dtype, device, kSalt, saved.data(), nullptr});
  const auto got_bytes = saved.get();
  EXPECT_SAME(got_bytes, cpu_saved, what);  // nothing else is touched
  const NormSample got = planes_of(got_bytes, saved_layout(spec, dtype, rows, cols));
  const NormSample want = norm_definition(spec, norm);
  EXPECT_SAME(got.index, want.index, what);
  EXPECT_SAME(got.weight, want.weight, what);
}

void check_norm_sample(const SketchSpec& spec, DType dtype, Form form, int64_t rows, int64_t cols) {
  const Matrix x(dtype, form, rows, cols, 15);
  std::vector<double> norm;
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < cols; ++c) sum += x.at(r, c) * x.at(r, c);
    norm.push_back(static_cast<float>(std::sqrt(sum)));
  }
  check_norm_sample(spec, dtype, x.host(), x.device(), norm);
}

TEST(norm_sample_every_dtype_and_form) {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms)
      check_norm_sample({1, 2, Sampling::kRows, Draw::kNorm, 0}, dtype, form, 20, 37);
}

TEST(norm_sample_odd_shapes) {
  for (const int64_t rows : {1, 2, 31, 257})
    for (const int64_t cols : {0, 1, 33})
      for (const int64_t den : {1, 3, 1000})
        check_norm_sample({1, den, Sampling::kRows, Draw::kNorm, 4}, DType::kF32, Form::kContiguous, rows,
                          cols);
  check_norm_sample({1, 2, Sampling::kRows, Draw::kNorm, 0}, DType::kF32, Form::kContiguous, 0, 5);
}

// More rows than the summing block takes at a time, ending within a thread's share.
TEST(norm_sample_many_rows) {
  const int64_t rows = testing::large ? 30003 : 8205;
  check_norm_sample({1, 50, Sampling::kRows, Draw::kNorm, 0}, DType::kF32, Form::kContiguous, rows, 2);
}

// Where the norms say nothing, or too much, rows are drawn uniformly: wherever the odd value stands.
TEST(norm_sample_of_zeros_infinities_and_nans) {
  constexpr int64_t kRows = 40, kCols = 3;
  const SketchSpec spec{1, 2, Sampling::kRows, Draw::kNorm, 0};
  for (const float odd : {0.f, INFINITY, NAN})
    for (const int64_t bad : {0, 17, 39}) {
      std::vector<float> x(kRows * kCols, odd == 0 ? 0.f : 2.f);
      x[static_cast<size_t>(bad * kCols + 1)] = odd;
      std::vector<double> norm;
      for (int64_t r = 0; r < kRows; ++r) norm.push_back(odd == 0 ? 0 : r == bad ? odd : std::sqrt(12.0));
      Device<float> device(x);
      check_norm_sample(spec, DType::kF32, contiguous_matrix(x.data(), kRows, kCols),
                        contiguous_matrix(device.data(), kRows, kCols), norm);
    }
}

}  // namespace

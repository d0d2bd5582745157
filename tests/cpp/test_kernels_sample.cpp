// sample and pack: bit for bit the CPU's, and the definition.
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

void check_sample(const SketchSpec& spec, int64_t n) {
  const auto trailer = std::vector<Trailer>{{kKey, kSalt, kFormatVersion, {}}};
  Device<Trailer> device_trailer(trailer);
  const auto k = static_cast<size_t>(kept(n, spec.num, spec.den));
  std::vector<int64_t> cpu_index(k);
  Device<int64_t> index(k);
  EXPECT(cpu::sample({{}, spec, trailer.data(), n, cpu_index.data(), nullptr}) == 0);
  const SampleArgs args{{}, spec, device_trailer.data(), n, index.data(), nullptr};
  EXPECT(cuda::sample_workspace(args) == 0);
  EXPECT(cuda::sample(args) == 0);
  const auto got = index.get();
  const std::string what = describe(spec, DType::kF32, n, 1);
  EXPECT_SAME(got, cpu_index, what);
  EXPECT_SAME(got, (ReferenceSampler{spec, kKey, kSalt, n}.list()), what);
}

TEST(sample_lists) {
  for (const Sampling sampling : {Sampling::kRows, Sampling::kSame})
    for (const Draw draw : kDraws)
      for (const Count& c : kCounts) check_sample({c.num, c.den, sampling, draw}, c.n);
}

// More draws than one block of the sort holds, and duplicates.
TEST(sample_sorts_across_blocks) {
  const int64_t n = testing::large ? 20000 : 1500;
  check_sample({1, 2, Sampling::kSame, Draw::kWithReplacement}, n);
}

TEST(sample_of_nothing) {
  for (const Draw draw : kDraws) {
    const SampleArgs args{{}, {1, 2, Sampling::kSame, draw}, nullptr, 0, nullptr, nullptr};
    EXPECT(cuda::sample(args) == 0);
  }
}

// ---- pack -------------------------------------------------------------------------------------------------

std::vector<char> pack_on_device(const SketchSpec& spec, DType dtype, const Matrix& x) {
  const auto start = fresh_saved(spec, dtype, x.host().rows, x.host().cols);
  Device<char> saved(start);
  PackArgs args{{}, spec, dtype, x.device(), kSalt, saved.data(), nullptr};
  Device<char> workspace(static_cast<size_t>(cuda::pack_workspace(args)));
  args.workspace = workspace.data();
  EXPECT(cuda::pack(args) == 0);
  return saved.get();
}

void check_against_definition(const SketchSpec& spec, DType dtype, const Matrix& x,
                              const std::vector<char>& saved, const std::string& what) {
  const int64_t rows = x.host().rows, cols = x.host().cols;
  const bool by_row = spec.sampling == Sampling::kRows, same = spec.sampling == Sampling::kSame;
  const ReferenceSampler sampler{spec, kKey, kSalt, by_row ? rows : cols};
  const int64_t k = sampler.n ? sampler.k() : 0;
  const auto list = same || by_row ? sampler.list() : std::vector<int64_t>{};
  for (int64_t i = 0; i < (by_row ? k : rows); ++i)
    for (int64_t j = 0; j < (by_row ? cols : k); ++j) {
      const int64_t r = by_row ? list[static_cast<size_t>(i)] : i;
      const int64_t c = by_row ? j : same ? list[static_cast<size_t>(j)] : sampler.index(i, j);
      const double got = get_item(dtype, saved.data(), static_cast<size_t>(i * (by_row ? cols : k) + j));
      EXPECT(got == x.at(r, c), what, " entry (", i, ",", j, ")");
    }
}

void check_pack(const SketchSpec& spec, DType dtype, Form form, int64_t rows, int64_t cols) {
  const Matrix x(dtype, form, rows, cols, 11);
  const std::string what =
      describe(spec, dtype, rows, cols) + " form " + std::to_string(static_cast<int>(form));
  const auto saved = pack_on_device(spec, dtype, x);
  EXPECT_SAME(saved, (Packed(spec, dtype, x).host), what);
  const auto layout = saved_layout(spec, dtype, rows, cols);
  Trailer trailer;
  std::memcpy(&trailer, saved.data() + layout.trailer, sizeof trailer);
  EXPECT(trailer.key == kKey && trailer.salt == kSalt && trailer.version == kFormatVersion, what);
  for (const uint64_t word : trailer.reserved) EXPECT(word == 0, what);
  if (rows > 0 && cols > 0) check_against_definition(spec, dtype, x, saved, what);
}

TEST(pack_every_sketch_dtype_and_form) {
  for (const Sampling sampling : kSamplings)
    for (const Draw draw : kDraws)
      for (const DType dtype : kDTypes)
        for (const Form form : kForms) check_pack({3, 10, sampling, draw}, dtype, form, 6, 40);
}

TEST(pack_odd_shapes) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {1, 300}, {300, 1}, {33, 17}, {5, 129}, {257, 8}};
  constexpr int64_t kKeeps[][2] = {{1, 1000}, {1, 3}, {1, 1}};
  for (const auto& shape : kShapes)
    for (const auto& keep : kKeeps)
      for (const Sampling sampling : kSamplings)
        for (const Draw draw : kDraws)
          check_pack({keep[0], keep[1], sampling, draw}, DType::kBF16, Form::kContiguous, shape[0], shape[1]);
}

TEST(pack_of_nothing_still_writes_the_trailer) {
  for (const Sampling sampling : kSamplings)
    for (const Draw draw : kDraws) {
      check_pack({1, 2, sampling, draw}, DType::kF32, Form::kContiguous, 0, 7);
      check_pack({1, 2, sampling, draw}, DType::kF32, Form::kContiguous, 7, 0);
    }
}

TEST(pack_larger) {
  const int64_t rows = testing::large ? 700 : 70, cols = testing::large ? 1030 : 130;
  for (const Sampling sampling : kSamplings)
    for (const DType dtype : kDTypes)
      check_pack({1, 10, sampling, Draw::kStratified}, dtype, Form::kContiguous, rows, cols);
}

}  // namespace

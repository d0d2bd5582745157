// gather and scatter: the CPU's result bit for bit, and the definition.
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

// ---- gather -----------------------------------------------------------------------------------------------

struct GatherCase {
  bool widen;
  double head, tail;
  int64_t split;
  bool listed;  // weights of the rows' own instead of the two scales
};

void check_gather(DType dtype, Form form, int64_t rows, int64_t cols, const GatherCase& c,
                  size_t out_shift = 0) {
  const Matrix source(dtype, form, rows, cols, 21);
  std::vector<int64_t> list;
  Random random(22);
  std::vector<float> weights;
  for (int64_t i = 0; i < rows + 3; ++i) {
    list.push_back(random.below(rows));
    weights.push_back(static_cast<float>(random.below(40)) / 3.f);
  }
  const DType out_dtype = c.widen ? DType::kF32 : dtype;
  const size_t items = list.size() * static_cast<size_t>(cols),
               bytes = items * static_cast<size_t>(item_size(out_dtype));
  const size_t shift = out_shift * static_cast<size_t>(item_size(out_dtype));
  Device<int64_t> index(list);
  Device<float> weight(weights);
  Device<char> out(bytes, shift);
  std::vector<char> cpu_out(bytes);
  const auto count = static_cast<int64_t>(list.size());
  EXPECT(cpu::gather({{},
                      dtype,
                      c.widen,
                      source.host(),
                      list.data(),
                      count,
                      c.split,
                      {c.head, c.tail},
                      c.listed ? weights.data() : nullptr,
                      cpu_out.data()}) == 0);
  EXPECT(cuda::gather({{},
                       dtype,
                       c.widen,
                       source.device(),
                       index.data(),
                       count,
                       c.split,
                       {c.head, c.tail},
                       c.listed ? weight.data() : nullptr,
                       out.data()}) == 0);
  const auto got = out.get();
  EXPECT_SAME(got, cpu_out, "dtype ", static_cast<int>(dtype), " form ", static_cast<int>(form), " cols ",
              cols);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t col = 0; col < cols; ++col) {
      const double scale = c.listed ? weights[static_cast<size_t>(i)] : i < c.split ? c.head : c.tail;
      double want = source.at(list[static_cast<size_t>(i)], col) * scale;
      if (dtype != DType::kF64) want = rounded(DType::kF32, want);  // one product in fp32, then one rounding
      want = rounded(out_dtype, want);
      EXPECT(get_item(out_dtype, got.data(), static_cast<size_t>(i * cols + col)) == want, "row ", i,
             " column ", col);
    }
}

constexpr GatherCase kPlain{false, 1, 1, 0, false}, kWidened{true, 1, 1, 0, false},
    kScaled{false, 11, 10, 3, false}, kBoth{true, 2.5, 3, 2, false}, kListed{false, 1, 1, 0, true},
    kListedWidened{true, 1, 1, 0, true};

TEST(gather_every_dtype_and_form) {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms)
      for (const int64_t cols : {1, 5, 40}) {
        check_gather(dtype, form, 6, cols, kPlain);
        check_gather(dtype, form, 6, cols, kScaled);
        check_gather(dtype, form, 6, cols, kListed);
      }
}

TEST(gather_widened) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const GatherCase& c : {kWidened, kBoth, kListedWidened})
      check_gather(dtype, Form::kPadded, 9, 35, c);
}

// The copy narrows its unit from 16 bytes to one item as alignment falls.
TEST(gather_unaligned_output) {
  for (const DType dtype : kDTypes)
    for (const size_t shift : {1, 2, 4}) check_gather(dtype, Form::kContiguous, 7, 32, kPlain, shift);
}

TEST(gather_many_rows) {
  check_gather(DType::kF32, Form::kContiguous, testing::large ? 20000 : 600, 3, kPlain);
}
TEST(gather_wide_rows) {
  check_gather(DType::kBF16, Form::kContiguous, 2, testing::large ? 20000 : 3001, kPlain);
}

TEST(gather_of_nothing) {
  const Matrix source(DType::kF32, Form::kContiguous, 3, 0, 1);
  EXPECT(cuda::gather({{}, DType::kF32, false, source.device(), nullptr, 5, 0, {1, 1}, nullptr, nullptr}) ==
         0);
  EXPECT(cuda::gather({{}, DType::kF32, false, source.device(), nullptr, 0, 0, {1, 1}, nullptr, nullptr}) ==
         0);
}

// ---- scatter ----------------------------------------------------------------------------------------------

void check_scatter(DType dtype, int64_t rows, int64_t cols, const std::vector<int64_t>& list,
                   size_t out_shift = 0) {
  const auto count = static_cast<int64_t>(list.size());
  const Matrix packed(dtype, Form::kContiguous, rows, count, 31);
  const int64_t split = count / 3;
  const double scale[2] = {3, 2};
  const size_t bytes = static_cast<size_t>(rows * cols * item_size(dtype));
  Device<int64_t> index(list);
  Device<char> out(bytes, out_shift * static_cast<size_t>(item_size(dtype)));
  std::vector<char> cpu_out(bytes);
  EXPECT(cpu::scatter({{},
                       dtype,
                       rows,
                       count,
                       cols,
                       packed.host().data,
                       list.data(),
                       split,
                       {scale[0], scale[1]},
                       cpu_out.data()}) == 0);
  EXPECT(cuda::scatter({{},
                        dtype,
                        rows,
                        count,
                        cols,
                        packed.device().data,
                        index.data(),
                        split,
                        {scale[0], scale[1]},
                        out.data()}) == 0);
  const auto got = out.get();
  EXPECT_SAME(got, cpu_out, "dtype ", static_cast<int>(dtype), " ", rows, "x", cols, " from ", count);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      double want = 0;
      for (int64_t j = 0; j < count; ++j)
        if (list[static_cast<size_t>(j)] == c) want += packed.at(r, j) * scale[j >= split];
      EXPECT(get_item(dtype, got.data(), static_cast<size_t>(r * cols + c)) == rounded(dtype, want), "(", r,
             ",", c, ")");
    }
}

TEST(scatter_distinct_and_duplicates) {
  for (const DType dtype : kDTypes) {
    check_scatter(dtype, 5, 40, {0, 3, 7, 8, 15, 16, 39});
    check_scatter(dtype, 5, 40, {0, 0, 0, 9, 9, 31, 39, 39});
    check_scatter(dtype, 3, 37, {1, 2, 2, 36});
    check_scatter(dtype, 3, 1, {0});
    check_scatter(dtype, 1, 9, {});
  }
}

TEST(scatter_unaligned_output) {
  for (const DType dtype : kDTypes)
    for (const size_t shift : {1, 2, 4}) check_scatter(dtype, 4, 32, {2, 2, 5, 31}, shift);
}

TEST(scatter_larger) {
  std::vector<int64_t> list;
  const int64_t rows = testing::large ? 600 : 60, cols = testing::large ? 2056 : 300;
  Random random(33);
  for (int64_t c = 0; c < cols; ++c)
    for (int64_t copies = random.below(7) - 4; copies > 0; --copies) list.push_back(c);
  check_scatter(DType::kBF16, rows, cols, list);
  check_scatter(DType::kF32, rows, cols, list);
}

TEST(scatter_of_nothing) {
  EXPECT(cuda::scatter({{}, DType::kF32, 0, 1, 4, nullptr, nullptr, 0, {1, 1}, nullptr}) == 0);
}

}  // namespace

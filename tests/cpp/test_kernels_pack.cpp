// pack: bit for bit the CPU's buffer, and the definition.
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

std::vector<char> pack_on_device(const SketchSpec& spec, DType dtype, const MatrixView& x, int64_t features) {
  Device<char> saved(fresh_saved(spec, dtype, x.rows, features));
  if (spec.draw == Draw::kNorm)
    run_cuda<NormSampleArgs>(cuda::norm_sample_workspace, cuda::norm_sample,
                             {{}, spec, dtype, x, kSalt, saved.data(), nullptr});
  run_cuda<PackArgs>(cuda::pack_workspace, cuda::pack,
                     {{}, spec, dtype, x, features, kSalt, saved.data(), nullptr});
  return saved.get();
}

// Row and column of x that stored value (tile, line, j) is.
struct Origin {
  const SketchSpec& spec;
  const SavedLayout& layout;
  ReferenceSampler sampler;
  std::vector<std::vector<int64_t>> lists;

  Origin(const SketchSpec& spec_, const SavedLayout& layout_, int64_t rows, int64_t features,
         const std::vector<char>& saved)
      : spec(spec_), layout(layout_), sampler{spec, kKey, kSalt, by_row(spec) ? rows : features} {
    for (int64_t tile = 0; tile < layout.tiles && sampler.n > 0; ++tile) {
      if (spec.draw == Draw::kNorm) {
        std::vector<int64_t> list(static_cast<size_t>(layout.lines));
        std::memcpy(list.data(), saved.data() + layout.index, list.size() * sizeof(int64_t));
        lists.push_back(list);
      } else if (by_row(spec) || spec.sampling == Sampling::kSame) {
        lists.push_back(sampler.list(tile));
      }
    }
  }
  int64_t row(int64_t tile, int64_t line) const {
    return by_row(spec) ? lists[static_cast<size_t>(tile)][static_cast<size_t>(line)] : line;
  }
  int64_t col(int64_t tile, int64_t line, int64_t j) const {
    if (spec.sampling == Sampling::kSame) return lists[0][static_cast<size_t>(j)];
    if (spec.sampling == Sampling::kDifferent) return sampler.index(line, j);
    return tile * 128 + j;
  }
};

// The value stored for `want`: itself, or a code that is off by at most half a step of its group.
void check_value(const SketchSpec& spec, DType dtype, const std::vector<char>& saved, const SavedLayout& m,
                 int64_t tile, int64_t line, int64_t j, double want, const std::string& what) {
  if (spec.bits == 0) {
    const int64_t at = tile * m.lines * m.width + line * m.tile_width(tile) + j;
    const double got = get_item(dtype, saved.data(), static_cast<size_t>(at));
    EXPECT(got == want, what, " tile ", tile, " line ", line, " value ", j, " is ", got, ", expected ", want);
    return;
  }
  const int64_t groups = (m.width + 63) / 64, place = (tile * groups + j / 64) * m.lines + line;
  const double lo = get_item(dtype, saved.data() + m.lo, static_cast<size_t>(place));
  const double step = get_item(DType::kBF16, saved.data() + m.step, static_cast<size_t>(place));
  const int64_t bit = m.line_offset(tile, line) * 8 + j * spec.bits;
  const int code =
      static_cast<uint8_t>(saved[static_cast<size_t>(bit / 8)]) >> bit % 8 & ((1 << spec.bits) - 1);
  const ReferenceSampler sampler{spec, kKey, kSalt, 1};
  const auto words = sampler.call(3, tile * m.lines + line, j / 8);
  const uint32_t noise = words[static_cast<size_t>(j % 8 / 2)] >> (j % 2 * 16) & 0xFFFF;
  const double u = (noise + 0.5) / 65536 - 0.5;
  const double error = lo + step * (code - u) - want;
  EXPECT(std::abs(error) <= step / 2 * (1 + 1e-6), what, " tile ", tile, " line ", line, " value ", j,
         " is off by ", error, " at step ", step);
}

void check_group_range(const SketchSpec& spec, DType dtype, const std::vector<char>& saved,
                       const SavedLayout& m, int64_t tile, int64_t line, int64_t group, double lo, double hi,
                       const std::string& what) {
  const int64_t place = (tile * ((m.width + 63) / 64) + group) * m.lines + line;
  const double step = get_item(DType::kBF16, saved.data() + m.step, static_cast<size_t>(place));
  const double exact = (hi - lo) / ((1 << spec.bits) - 1);
  EXPECT(get_item(dtype, saved.data() + m.lo, static_cast<size_t>(place)) == lo, what);
  EXPECT(step >= exact && step <= exact * (1 + 1.0 / 64), what, " step ", step, " of range ", hi - lo);
}

void check_definition(const SketchSpec& spec, DType dtype, const Matrix& x, int64_t features,
                      const std::vector<char>& saved, const std::string& what) {
  const SavedLayout m = saved_layout(spec, dtype, x.host().rows, features);
  const Origin origin(spec, m, x.host().rows, features, saved);
  for (int64_t tile = 0; tile < m.tiles; ++tile)
    for (int64_t line = 0; line < m.lines; ++line) {
      double lo = 0, hi = 0;
      for (int64_t j = 0; j < m.tile_width(tile); ++j) {
        const double value = x.at(origin.row(tile, line), origin.col(tile, line, j));
        check_value(spec, dtype, saved, m, tile, line, j, value, what);
        lo = j % 64 ? std::min(lo, value) : value;
        hi = j % 64 ? std::max(hi, value) : value;
        if (spec.bits && (j % 64 == 63 || j + 1 == m.tile_width(tile)))
          check_group_range(spec, dtype, saved, m, tile, line, j / 64, lo, hi, what);
      }
    }
}

void check_pack(const SketchSpec& spec, DType dtype, Form form, int64_t rows, int64_t features) {
  const Matrix x(dtype, form, rows, packed_cols(spec, features), 11);
  const std::string what =
      describe(spec, dtype, rows, features) + " form " + std::to_string(static_cast<int>(form));
  const auto saved = pack_on_device(spec, dtype, x.device(), features);
  EXPECT_SAME(saved, (Packed(spec, dtype, x.host(), features).host), what);
  const auto layout = saved_layout(spec, dtype, rows, features);
  Trailer trailer;
  std::memcpy(&trailer, saved.data() + layout.trailer, sizeof trailer);
  EXPECT(trailer.key == kKey && trailer.salt == kSalt && trailer.version == kFormatVersion, what);
  for (const uint64_t word : trailer.reserved) EXPECT(word == 0, what);
  for (int plane = 0; plane < Gaps::kCount; ++plane)
    for (int64_t at = layout.gaps.begin[plane]; at < layout.gaps.end[plane]; ++at)
      EXPECT(saved[static_cast<size_t>(at)] == 0, what, " byte ", at, " of the padding");
  check_definition(spec, dtype, x, features, saved, what);
}

TEST(pack_every_sketch_dtype_and_form) {
  for (const Combination& c : kCombinations)
    for (const DType dtype : kDTypes)
      for (const Form form : kForms) check_pack(c.spec(3, 10), dtype, form, 6, 40);
}

TEST(pack_odd_shapes) {
  constexpr int64_t kShapes[][2] = {{1, 1}, {1, 300}, {300, 1}, {33, 17}, {5, 129}, {257, 8}};
  constexpr int64_t kKeeps[][2] = {{1, 1000}, {1, 3}, {1, 1}};
  for (const auto& shape : kShapes)
    for (const auto& keep : kKeeps)
      for (const Combination& c : kCombinations)
        check_pack(c.spec(keep[0], keep[1]), DType::kBF16, Form::kContiguous, shape[0], shape[1]);
}

TEST(pack_tiles) {  // full and last tiles, aligned and not
  for (const Draw draw : {Draw::kStratified, Draw::kWithReplacement, Draw::kWithoutReplacement})
    for (const int64_t features : {127, 128, 129, 256, 384, 400})
      for (const DType dtype : {DType::kF32, DType::kBF16})
        check_pack({1, 3, Sampling::kTileRows, draw, 0}, dtype, Form::kContiguous, 14, features);
  for (const Form form : kForms)
    check_pack({1, 3, Sampling::kTileRows, Draw::kStratified, 0}, DType::kF16, form, 6, 264);
}

TEST(pack_of_nothing_still_writes_the_trailer) {
  for (const Combination& c : kCombinations)
    for (const int bits : {0, 4}) {
      check_pack(c.spec(1, 2, bits), DType::kF32, Form::kContiguous, 0, 7);
      check_pack(c.spec(1, 2, bits), DType::kF32, Form::kContiguous, 7, 0);
    }
}

TEST(pack_larger) {
  const int64_t rows = testing::large ? 700 : 70, cols = testing::large ? 1030 : 130;
  for (const Combination& c : kCombinations)
    check_pack(c.spec(1, 10), DType::kBF16, Form::kContiguous, rows, cols);
}

// ---- codes
// --------------------------------------------------------------------------------------------------

TEST(codes_every_sketch_and_bits) {
  for (const Combination& c : kCombinations)
    for (const int bits : kBits) check_pack(c.spec(3, 5, bits), DType::kF32, Form::kContiguous, 7, 150);
}

TEST(codes_every_dtype_and_form) {
  for (const DType dtype : kDTypes)
    for (const Form form : kForms)
      for (const Sampling sampling :
           {Sampling::kRows, Sampling::kSame, Sampling::kDifferent, Sampling::kTileRows})
        check_pack({1, 2, sampling, Draw::kStratified, 4}, dtype, form, 6, 136);
}

// Every remainder of an octet, a word and a group.
TEST(codes_tails) {
  for (const int bits : kBits)
    for (const int64_t features :
         {1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 72, 127, 128, 129})
      check_pack({1, 1, Sampling::kRows, Draw::kStratified, bits}, DType::kBF16, Form::kContiguous, 3,
                 features);
  // Rows that start at whole vectors and end within an octet.
  for (const int64_t features : {4, 12, 132})
    for (const Sampling sampling : {Sampling::kRows, Sampling::kTileRows})
      check_pack({1, 1, sampling, Draw::kStratified, 4}, DType::kF32, Form::kContiguous, 3, features);
}

TEST(codes_larger) {
  const int64_t rows = testing::large ? 300 : 40, cols = testing::large ? 1030 : 270;
  for (const Combination& c : kCombinations)
    check_pack(c.spec(1, 4, 2), DType::kBF16, Form::kContiguous, rows, cols);
}

// Values of every size, equal ones, zeros of both signs; groups that no code can hold.
TEST(codes_of_extreme_values) {
  constexpr int64_t kCols = 64 * 11;
  for (const DType dtype : kDTypes)
    for (const int bits : kBits) {
      const SketchSpec spec{1, 1, Sampling::kRows, Draw::kStratified, bits};
      const size_t item = static_cast<size_t>(item_size(dtype));
      std::vector<char> x(kCols * item);
      Random random(12);
      const double largest = dtype == DType::kF16 ? 65504 : dtype == DType::kF64 ? 1e308 : 3e38;
      const double least = dtype == DType::kF16 ? 0x1p-24 : dtype == DType::kF64 ? 0x1p-1074 : 0x1p-149;
      for (int64_t c = 0; c < kCols; ++c) {
        const double v = random.eighth() * (1 + static_cast<double>(random.below(1000)) / 999);
        const double by_group[] = {v,
                                   v * least * 8,
                                   v * largest / 2,
                                   3,
                                   c % 2 ? 0.0 : -0.0,
                                   v + 1000,
                                   v * 1e-3,
                                   -0.0,
                                   v * largest,
                                   v,
                                   v};
        set_item(dtype, x.data(), static_cast<size_t>(c), by_group[c / 64]);
      }
      set_item(dtype, x.data(), 64 * 9 + 20, NAN);
      set_item(dtype, x.data(), 64 * 10 + 63, -INFINITY);
      Device<char> device(x);
      const auto got = pack_on_device(spec, dtype, contiguous_matrix(device.data(), 1, kCols), kCols);
      EXPECT_SAME(got, (Packed(spec, dtype, contiguous_matrix(x.data(), 1, kCols), kCols).host),
                  describe(spec, dtype, 1, kCols));
      const SavedLayout m = saved_layout(spec, dtype, 1, kCols);
      for (const size_t group : {9, 10})
        EXPECT(std::isnan(get_item(DType::kBF16, got.data() + m.step, group)), "group ", group);
    }
}

// ---- decode
// -------------------------------------------------------------------------------------------------

void check_decode(const SketchSpec& spec, DType dtype, bool widen, int64_t rows, int64_t features,
                  size_t out_shift = 0) {
  const Matrix x(dtype, Form::kContiguous, rows, packed_cols(spec, features), 13);
  const Packed saved(spec, dtype, x.host(), features);
  const SavedLayout m = saved_layout(spec, dtype, rows, features);
  const DType out_dtype = widen ? DType::kF32 : dtype;
  const size_t item = static_cast<size_t>(item_size(out_dtype));
  for (int64_t tile = 0; tile < m.tiles; ++tile)
    for (const int64_t skip : {int64_t{0}, m.lines / 2}) {
      const int64_t begin = tile * m.lines + skip, end = (tile + 1) * m.lines, width = m.tile_width(tile);
      const size_t count = static_cast<size_t>((end - begin) * width);
      std::vector<char> cpu_out(count * item);
      Device<char> out(count * item, out_shift * item);
      EXPECT(cpu::decode(
                 {{}, spec, dtype, widen, rows, features, saved.host.data(), begin, end, cpu_out.data()}) ==
             0);
      EXPECT(cuda::decode(
                 {{}, spec, dtype, widen, rows, features, saved.device.data(), begin, end, out.data()}) == 0);
      EXPECT_SAME(out.get(), cpu_out, describe(spec, dtype, rows, features), " tile ", tile);
    }
}

TEST(decode_every_dtype_and_bits) {
  for (const DType dtype : kDTypes)
    for (const int bits : {0, 8, 4, 2, 1})
      for (const Sampling sampling : {Sampling::kRows, Sampling::kDifferent, Sampling::kTileRows}) {
        check_decode({2, 3, sampling, Draw::kStratified, bits}, dtype, false, 5, 200);
        check_decode({2, 3, sampling, Draw::kStratified, bits}, dtype, false, 5, 203);
        if (item_size(dtype) == 2)
          check_decode({2, 3, sampling, Draw::kStratified, bits}, dtype, true, 5, 203);
      }
}

TEST(decode_tails_and_alignment) {
  for (const int bits : kBits)
    for (const int64_t features : {1, 4, 7, 8, 15, 17, 33, 64, 65, 127})
      check_decode({1, 1, Sampling::kRows, Draw::kStratified, bits}, DType::kF16, false, 3, features);
  for (const size_t shift : {1, 2, 4})
    check_decode({1, 1, Sampling::kRows, Draw::kStratified, 4}, DType::kBF16, true, 3, 64, shift);
}

TEST(decode_larger) {
  check_decode({1, 1, Sampling::kRows, Draw::kStratified, 4}, DType::kBF16, false, testing::large ? 900 : 40,
               testing::large ? 1030 : 520);
}

TEST(decode_of_nothing) {
  const SketchSpec spec{1, 2, Sampling::kRows, Draw::kStratified, 4};
  EXPECT(cuda::decode({{}, spec, DType::kF32, false, 0, 5, nullptr, 0, 0, nullptr}) == 0);
  EXPECT(cuda::decode({{}, spec, DType::kF32, false, 5, 0, nullptr, 0, 3, nullptr}) == 0);
}

}  // namespace

// rows_wgrad: the definition from the stored lines in fp64. Plain values are multiples of 1/8 and most
// weights dyadic, so that every order of summation is exact and the CPU's result comes bit for bit.
#include <algorithm>

#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr DType kHalves[] = {DType::kBF16, DType::kF16};

struct Bound {
  double want = 0, magnitude = 0;
};

struct Case {
  SketchSpec spec;
  DType dtype;
  int64_t rows, outputs, features;
};

std::string describe(const Case& c) {
  return testing::describe(c.spec, c.dtype, c.rows, c.features) + " -> " + std::to_string(c.outputs);
}

std::vector<int64_t> kept_rows(const Case& c, const std::vector<char>& saved) {
  const SavedLayout layout = saved_layout(c.spec, c.dtype, c.rows, c.features);
  std::vector<int64_t> index;
  if (c.spec.draw == Draw::kNorm) {
    index.resize(static_cast<size_t>(layout.lines));
    std::memcpy(index.data(), saved.data() + layout.index, index.size() * sizeof(int64_t));
    return index;
  }
  const ReferenceSampler sampler{c.spec, kKey, kSalt, c.rows};
  for (int64_t tile = 0; tile < layout.tiles; ++tile)
    for (const int64_t row : sampler.list(tile)) index.push_back(row);
  return index;
}

// Line by line from what `decode` makes of it: weight * dy * x, rounded where the contract says.
std::vector<Bound> definition(const Case& c, const Matrix& dy, const std::vector<char>& saved,
                              const std::vector<int64_t>& index) {
  const SavedLayout layout = saved_layout(c.spec, c.dtype, c.rows, c.features);
  const ReferenceSampler sampler{c.spec, kKey, kSalt, c.rows};
  const bool by_norm = c.spec.draw == Draw::kNorm;
  std::vector<Bound> dw(static_cast<size_t>(c.outputs * c.features));
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    const int64_t width = layout.tile_width(tile), first = tile * layout.lines;
    std::vector<uint16_t> line(static_cast<size_t>(width));
    for (int64_t i = 0; i < layout.lines; ++i) {
      EXPECT(cpu::decode({{},
                          c.spec,
                          c.dtype,
                          false,
                          c.rows,
                          c.features,
                          saved.data(),
                          first + i,
                          first + i + 1,
                          line.data()}) == 0);
      float own = 1;
      if (by_norm) std::memcpy(&own, saved.data() + layout.weight + i * 4, 4);
      for (int64_t o = 0; o < c.outputs; ++o) {
        const double value = dy.at(index[static_cast<size_t>(first + i)], o);
        const double g =
            by_norm ? rounded(c.dtype, static_cast<float>(value) * own) : value * sampler.weight(i);
        for (int64_t f = 0; f < width; ++f) {
          Bound& b = dw[static_cast<size_t>(o * c.features + tile * kTileWidth + f)];
          const double term = g * get_item(c.dtype, line.data(), static_cast<size_t>(f));
          b.want += term;
          b.magnitude += std::abs(term);
        }
      }
    }
  }
  return dw;
}

// k products summed in fp32, scaled twice, stored once.
void check_within(const Case& c, const std::vector<char>& got, const std::vector<Bound>& want) {
  const int64_t k = kept(c.rows, c.spec.num, c.spec.den);
  const int stored = c.dtype == DType::kBF16 ? 9 : 12;  // half a unit of 8 or 11 bits
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(get_item(c.dtype, got.data(), i) - want[i].want);
    const double sums = std::ldexp(static_cast<double>(k + 4) * want[i].magnitude, -24);
    EXPECT(error <= 1.01 * (sums + std::ldexp(std::abs(want[i].want) + sums, 1 - stored)), describe(c),
           " element ", i, " is off by ", error);
  }
}

// `view` cuts columns off dy, which leaves its rows aligned.
void check_rows(const Case& c, bool exact, Form form = Form::kContiguous, int64_t cut = 0,
                size_t dw_shift = 0) {
  const Matrix x(c.dtype, Form::kContiguous, c.rows, c.features, 71),
      dy(c.dtype, form, c.rows, c.outputs + cut, 72);
  const Packed saved(c.spec, c.dtype, x);
  const std::vector<int64_t> index = kept_rows(c, saved.host);
  const Device<int64_t> device_index(index);
  const size_t bytes = static_cast<size_t>(c.outputs * c.features) * 2;
  std::vector<char> cpu_dw(bytes);
  MatrixView host_view = dy.host(), device_view = dy.device();
  host_view.cols = device_view.cols = c.outputs;
  EXPECT(cpu::rows_wgrad(
             {{}, c.spec, c.dtype, host_view, c.features, saved.host.data(), index.data(), cpu_dw.data()}) ==
         0);
  const auto want = definition(c, dy, saved.host, index);
  check_within(c, cpu_dw, want);
  for (const bool portable : {false, true}) {
    Device<char> dw(bytes, dw_shift * 2);
    EXPECT(cuda::rows_wgrad({{},
                             c.spec,
                             c.dtype,
                             device_view,
                             c.features,
                             saved.device.data(),
                             device_index.data(),
                             dw.data(),
                             portable}) == 0);
    const auto got = dw.get();
    check_within(c, got, want);
    if (!exact) continue;
    EXPECT_SAME(got, cpu_dw, describe(c));
    for (size_t i = 0; i < want.size(); ++i)
      EXPECT(get_item(c.dtype, got.data(), i) == rounded(c.dtype, want[i].want), describe(c), " element ", i);
  }
}

SketchSpec rows_spec(int64_t num, int64_t den, Draw draw = Draw::kStratified, int bits = 0) {
  return {num, den, Sampling::kRows, draw, bits};
}
SketchSpec tiles_spec(int64_t num, int64_t den, Draw draw = Draw::kStratified, int bits = 0) {
  return {num, den, Sampling::kTileRows, draw, bits};
}

// Steps of 32 rows: none, one, a tail, several rounds of the ring; tiles with tails both ways.
TEST(rows_wgrad_copied) {
  for (const DType dtype : kHalves)
    check_rows({rows_spec(2, 5, Draw::kWithReplacement), dtype, 80, 72, 136}, true);
  check_rows({rows_spec(1, 2), DType::kBF16, 2 * 161, 136, 264}, true);
  check_rows({rows_spec(1, 1, Draw::kWithoutReplacement), DType::kBF16, 33, 8, 8}, true);
  check_rows({tiles_spec(1, 4, Draw::kWithoutReplacement), DType::kF16, 4 * 67, 128, 272}, true);
  check_rows({tiles_spec(1, 2), DType::kBF16, 2 * 32, 264, 128}, true);
}

// Tiles of 256 outputs in steps of 64 rows: more rounds of the ring than one, tails of tiles and steps, one
// block that takes several tiles; the sums change scale within a step, at its end, at its start.
TEST(rows_wgrad_several_tiles_and_rounds) {
  check_rows({rows_spec(1, 2), DType::kBF16, 2 * 581, 264, 136}, true);
  check_rows({tiles_spec(1, 2), DType::kF16, 2 * 320, 520, 264}, true);
  check_rows({rows_spec(128, 320), DType::kF16, 320, 264, 8}, true);      // 64 of 3, 64 of 2
  check_rows({tiles_spec(147, 359), DType::kBF16, 359, 256, 144}, true);  // 65 of 3, 82 of 2
  check_rows({tiles_spec(321, 384), DType::kF16, 384, 272, 256}, true);   // 63 of 2, 258 of 1
}

// The sums change scale where long strata (3, 2, 5 rows) end, within a step, at its end and at its start.
TEST(rows_wgrad_strata_of_two_lengths) {
  check_rows({rows_spec(40, 107), DType::kBF16, 107, 64, 72}, true);        // 27 strata of 3, 13 of 2
  check_rows({rows_spec(64, 160), DType::kF16, 160, 16, 128}, true);        // 32 of 3, 32 of 2
  check_rows({tiles_spec(40, 41), DType::kBF16, 41, 40, 200}, true);        // 1 of 2, 39 of 1
  check_rows({tiles_spec(33, 132 + 32), DType::kF16, 164, 24, 136}, true);  // 32 of 5, 1 of 4
  check_rows({rows_spec(30, 100), DType::kBF16, 100, 24, 24}, false);  // 10 of 4, 20 of 3: a ratio of 4/3
}

TEST(rows_wgrad_layouts_of_dy) {
  for (const Form form : kForms) check_rows({rows_spec(1, 2), DType::kBF16, 2 * 17, 40, 24}, true, form);
  check_rows({rows_spec(1, 2), DType::kF16, 2 * 17, 70, 24}, true, Form::kContiguous, 2);
  check_rows({tiles_spec(1, 2), DType::kBF16, 2 * 17, 129, 136}, true, Form::kContiguous, 7);
}

TEST(rows_wgrad_small_and_unaligned) {
  check_rows({rows_spec(1, 2), DType::kBF16, 2, 1, 1}, true);
  check_rows({rows_spec(1, 8), DType::kF16, 8, 3, 131}, true);
  check_rows({tiles_spec(1, 4), DType::kBF16, 4 * 9, 5, 139}, true);
  check_rows({rows_spec(1, 2), DType::kBF16, 34, 16, 16}, true, Form::kContiguous, 0, 1);
}

TEST(rows_wgrad_weights_of_their_own) {
  check_rows({rows_spec(2, 5, Draw::kNorm), DType::kBF16, 100, 40, 72}, false);
  check_rows({rows_spec(1, 3, Draw::kNorm), DType::kF16, 100, 9, 70}, false);
  check_rows({rows_spec(1, 3, Draw::kNorm, 4), DType::kBF16, 50, 9, 70}, false);
}

TEST(rows_wgrad_codes) {
  for (const int bits : kBits) {
    check_rows({rows_spec(2, 5, Draw::kStratified, bits), DType::kBF16, 90, 40, 200}, false);
    check_rows({tiles_spec(1, 2, Draw::kWithReplacement, bits), DType::kF16, 70, 24, 139}, false);
  }
  check_rows({rows_spec(1, 2, Draw::kStratified, 8), DType::kBF16, 70, 9, 75}, false, Form::kShifted);
}

// No rows: zeros. No outputs or features: nothing to write.
TEST(rows_wgrad_of_nothing) {
  check_rows({rows_spec(1, 2), DType::kBF16, 0, 3, 10}, true);
  check_rows({rows_spec(1, 2), DType::kBF16, 4, 0, 10}, true);
  check_rows({rows_spec(1, 2), DType::kBF16, 4, 3, 0}, true);
}

TEST(rows_wgrad_is_for_16_bit_types) {
  const Case c{rows_spec(1, 2), DType::kF32, 4, 2, 2};
  const Matrix x(c.dtype, Form::kContiguous, 4, 2, 73);
  const Packed saved(c.spec, c.dtype, x);
  const Device<int64_t> index(std::vector<int64_t>{0, 2});
  Device<char> dw(16);
  EXPECT(cuda::rows_wgrad(
             {{}, c.spec, c.dtype, x.device(), 2, saved.device.data(), index.data(), dw.data()}) != 0);
}

bool has_wgmma(const Case& c, bool portable = false, Form form = Form::kContiguous) {
  const Matrix x(c.dtype, Form::kContiguous, c.rows, c.features, 75),
      dy(c.dtype, form, c.rows, c.outputs, 76);
  const Packed saved(c.spec, c.dtype, x);
  return cuda::rows_wgrad_has_wgmma(
      {{}, c.spec, c.dtype, dy.device(), c.features, saved.device.data(), nullptr, nullptr, portable});
}

// Aligned plain values alone, and not where the other kernel is asked for. A GPU need not have it at all.
TEST(rows_wgrad_has_wgmma_for_aligned_plain_values) {
#ifndef __CUDACC__
  EXPECT(has_wgmma({rows_spec(1, 2), DType::kBF16, 64, 16, 8}));
  EXPECT(has_wgmma({tiles_spec(1, 2), DType::kF16, 64, 8, 264}));
#endif
  EXPECT(!has_wgmma({rows_spec(1, 2), DType::kBF16, 64, 16, 8}, true));
  EXPECT(!has_wgmma({rows_spec(1, 2, Draw::kStratified, 4), DType::kBF16, 64, 16, 64}));
  EXPECT(!has_wgmma({rows_spec(1, 2, Draw::kNorm), DType::kBF16, 64, 16, 8}));
  EXPECT(!has_wgmma({rows_spec(1, 2), DType::kBF16, 64, 16, 12}));
  EXPECT(!has_wgmma({rows_spec(1, 2), DType::kBF16, 64, 16, 8}, false, Form::kShifted));
  EXPECT(!has_wgmma({rows_spec(1, 2), DType::kBF16, 0, 16, 8}));
}

// ---- special values, order --------------------------------------------------------------------------------

struct Product {
  Case c;
  std::vector<char> saved = fresh_saved(c.spec, c.dtype, c.rows, c.features);
  std::vector<int64_t> index;

  Product(const Case& c_, const std::vector<uint16_t>& x) : c(c_) {
    run_cpu<PackArgs>(cpu::pack_workspace, cpu::pack,
                      {{},
                       c.spec,
                       c.dtype,
                       contiguous_matrix(x.data(), c.rows, c.features),
                       c.features,
                       kSalt,
                       saved.data(),
                       nullptr});
    index = kept_rows(c, saved);
  }
  // Of a dy whose rows lie `stride` items apart and which ends with its last row.
  std::vector<uint16_t> wgrad(const std::vector<uint16_t>& dy, bool portable, int64_t stride = 0) const {
    const Device<uint16_t> device_dy(dy);
    MatrixView view = contiguous_matrix(device_dy.data(), c.rows, c.outputs);
    if (stride) view.stride[2] = stride;
    const Device<char> device_saved(saved);
    const Device<int64_t> device_index(index);
    Device<uint16_t> dw(static_cast<size_t>(c.outputs * c.features));
    EXPECT(cuda::rows_wgrad({{},
                             c.spec,
                             c.dtype,
                             view,
                             c.features,
                             device_saved.data(),
                             device_index.data(),
                             dw.data(),
                             portable}) == 0);
    return dw.get();
  }
};

// Rows 16 items apart of which 10 are there: the last one's second chunk must not be read to its end.
TEST(rows_wgrad_reads_no_further_than_the_last_row) {
  constexpr int64_t kStride = 16;
  const Case c{rows_spec(1, 1, Draw::kWithoutReplacement), DType::kBF16, 65, 10, 8};
  Random random(77);
  const auto fill = [&](int64_t count) {
    std::vector<uint16_t> v(static_cast<size_t>(count));
    for (size_t i = 0; i < v.size(); ++i) set_item(c.dtype, v.data(), i, random.eighth());
    return v;
  };
  const Product problem(c, fill(c.rows * c.features));
  const auto dy = fill((c.rows - 1) * kStride + c.outputs);
  std::vector<uint16_t> dense;
  for (int64_t r = 0; r < c.rows; ++r)
    dense.insert(dense.end(), dy.begin() + r * kStride, dy.begin() + r * kStride + c.outputs);
  const auto want = problem.wgrad(dense, true);
  for (const bool portable : {false, true}) EXPECT_SAME(problem.wgrad(dy, portable, kStride), want);
}

// A NaN stays in its row and column, and rows that were not kept do not matter; nor do those that fill a
// step.
TEST(rows_wgrad_nan_stays_where_it_was_kept) {
  constexpr uint16_t kNaN = 0x7FC0, kOne = 0x3F80;
  const Case c{rows_spec(1, 4), DType::kBF16, 4 * 37, 16, 24};
  const ReferenceSampler sampler{c.spec, kKey, kSalt, c.rows};
  const int64_t kept_one = sampler.index(0, 36);
  std::vector<uint16_t> x(static_cast<size_t>(c.rows * c.features), kNaN),
      dy(static_cast<size_t>(c.rows * c.outputs), kNaN);
  for (int64_t i = 0; i < 37; ++i) {
    const int64_t row = sampler.index(0, i);
    std::fill_n(x.begin() + row * c.features, c.features, kOne);
    std::fill_n(dy.begin() + row * c.outputs, c.outputs, kOne);
  }
  x[static_cast<size_t>(kept_one * c.features + 5)] = kNaN;
  dy[static_cast<size_t>(kept_one * c.outputs + 3)] = kNaN;
  for (const bool portable : {false, true}) {
    const auto got = Product(c, x).wgrad(dy, portable);
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT(((got[i] & 0x7FFF) > 0x7F80) == (i % 24 == 5 || i / 24 == 3), "element ", i);
  }
}

TEST(rows_wgrad_does_not_depend_on_the_schedule) {
  struct Kernel {
    int bits;
    bool portable;
  };
  for (const auto [bits, portable] : {Kernel{0, false}, Kernel{0, true}, Kernel{4, false}}) {
    const Case c{tiles_spec(3, 7, Draw::kStratified, bits), DType::kF16, 230, 136, 264};
    Random random(74);
    std::vector<uint16_t> x(static_cast<size_t>(c.rows * c.features)),
        dy(static_cast<size_t>(c.rows * c.outputs));
    for (auto* values : {&x, &dy})
      for (size_t i = 0; i < values->size(); ++i)
        set_item(c.dtype, values->data(), i, static_cast<double>(random.below(2000001) - 1000000) / 1e6);
    const Product problem(c, x);
    const auto first = problem.wgrad(dy, portable);
#ifndef __CUDACC__
    const simt::Options before = simt::options;
    for (const simt::Order order : {simt::Order::kReverse, simt::Order::kRandom}) {
      simt::options.order = order;
      EXPECT_SAME(problem.wgrad(dy, portable), first);
    }
    simt::options = before;
#endif
    EXPECT_SAME(problem.wgrad(dy, portable), first);
  }
}

}  // namespace

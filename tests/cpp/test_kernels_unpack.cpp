// unpack: the CPU's result bit for bit, and the definition from the decoded values.
#include "core/hadamard.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

// Stored values as numbers, [tile][line][j]: plain ones, or what cpu::decode makes of the codes.
std::vector<std::vector<double>> decoded_tiles(const SketchSpec& spec, DType dtype, int64_t rows,
                                               int64_t features, const std::vector<char>& saved) {
  const SavedLayout m = saved_layout(spec, dtype, rows, features);
  const bool widen = item_size(dtype) == 2;
  std::vector<std::vector<double>> tiles;
  for (int64_t tile = 0; tile < m.tiles; ++tile) {
    const auto count = static_cast<size_t>(m.lines * m.tile_width(tile));
    std::vector<double> storage(count), values;
    EXPECT(cpu::decode({{},
                        spec,
                        dtype,
                        widen,
                        rows,
                        features,
                        saved.data(),
                        tile * m.lines,
                        (tile + 1) * m.lines,
                        storage.data()}) == 0);
    for (size_t i = 0; i < count; ++i)
      values.push_back(get_item(widen ? DType::kF32 : dtype, storage.data(), i));
    tiles.push_back(values);
  }
  return tiles;
}

double rounded_sum(DType dtype, double total, double value, double weight) {
  const DType sum = dtype == DType::kF64 ? DType::kF64 : DType::kF32;
  return rounded(dtype, rounded(sum, total + rounded(sum, value * weight)));
}

std::vector<double> definition(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features,
                               const std::vector<char>& saved) {
  const SavedLayout m = saved_layout(spec, dtype, rows, features);
  const auto tiles = decoded_tiles(spec, dtype, rows, features, saved);
  const ReferenceSampler sampler{spec, kKey, kSalt, by_row(spec) ? rows : features};
  const auto* norm_index = reinterpret_cast<const int64_t*>(saved.data() + m.index);
  const auto* norm_weight = reinterpret_cast<const float*>(saved.data() + m.weight);
  std::vector<double> want(static_cast<size_t>(rows * features), 0);
  for (int64_t tile = 0; tile < m.tiles; ++tile) {
    const bool listed = spec.draw == Draw::kNorm;
    const auto list =
        listed || spec.sampling == Sampling::kDifferent ? std::vector<int64_t>{} : sampler.list(tile);
    for (int64_t line = 0; line < m.lines; ++line)
      for (int64_t j = 0; j < m.tile_width(tile); ++j) {
        const int64_t i = by_row(spec) ? line : j;
        const int64_t place = listed         ? norm_index[i]
                              : list.empty() ? sampler.index(line, i)
                                             : list[static_cast<size_t>(i)];
        const int64_t r = by_row(spec) ? place : line, c = by_row(spec) ? tile * 128 + j : place;
        const double weight = listed ? static_cast<double>(norm_weight[i]) : sampler.weight(i);
        double& total = want[static_cast<size_t>(r * features + c)];
        total =
            rounded_sum(dtype, total,
                        tiles[static_cast<size_t>(tile)][static_cast<size_t>(line * m.tile_width(tile) + j)],
                        rounded(dtype == DType::kF64 ? dtype : DType::kF32, weight));
      }
  }
  return want;
}

// Unpacks on both sides; returns the device's.
std::vector<char> unpacked(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features,
                           const Packed& saved, size_t shift = 0) {
  const size_t item = static_cast<size_t>(item_size(dtype)),
               bytes = static_cast<size_t>(rows * features) * item;
  std::vector<char> cpu_out(bytes);
  Device<char> out(bytes, shift * item);
  run_cpu<UnpackArgs>(cpu::unpack_workspace, cpu::unpack,
                      {{}, spec, dtype, rows, features, saved.host.data(), cpu_out.data(), nullptr});
  run_cuda<UnpackArgs>(cuda::unpack_workspace, cuda::unpack,
                       {{}, spec, dtype, rows, features, saved.device.data(), out.data(), nullptr});
  const auto got = out.get();
  EXPECT_SAME(got, cpu_out, describe(spec, dtype, rows, features));
  return got;
}

void check_unpack(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features, size_t shift = 0) {
  const Matrix x(dtype, Form::kContiguous, rows, features, 41);
  const Packed saved(spec, dtype, x);
  const auto got = unpacked(spec, dtype, rows, features, saved, shift);
  const auto want = definition(spec, dtype, rows, features, saved.host);
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT(get_item(dtype, got.data(), i) == want[i], describe(spec, dtype, rows, features), " element ", i);
}

TEST(unpack_every_sketch_and_dtype) {
  for (const Combination& c : kCombinations)
    for (const DType dtype : kDTypes)
      if (c.sampling != Sampling::kProject) check_unpack(c.spec(2, 5), dtype, 10, 25);
}

TEST(unpack_codes) {
  for (const Combination& c : kCombinations)
    for (const int bits : kBits)
      for (const DType dtype : {DType::kF32, DType::kBF16})
        if (c.sampling != Sampling::kProject) check_unpack(c.spec(2, 5, bits), dtype, 7, 140);
}

TEST(unpack_odd_shapes) {
  for (const Combination& c : kCombinations) {
    if (c.sampling == Sampling::kProject) continue;
    check_unpack(c.spec(1, 1000), DType::kF32, 1, 1);
    check_unpack(c.spec(1, 1), DType::kBF16, 33, 20);
    check_unpack(c.spec(1, 4), DType::kF32, 4, 300);
    check_unpack(c.spec(1, 4), DType::kF32, 300, 4);
  }
}

// Whole vectors, and rows that cannot have them; entries whose call or octet of noise began before a
// thread's.
TEST(unpack_vectors_and_unaligned_output) {
  for (const Combination& c : kCombinations) {
    if (c.sampling == Sampling::kProject) continue;
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const size_t shift : {0, 1, 4})
        for (const int bits : {0, 4}) check_unpack(c.spec(2, 5, bits), dtype, 9, 328, shift);
    check_unpack(c.spec(4, 5, 8), DType::kBF16, 40, 264);
  }
}

TEST(unpack_of_nothing) {
  for (const Combination& c : kCombinations)
    EXPECT(cuda::unpack({{}, c.spec(1, 2), DType::kF32, 0, 4, nullptr, nullptr, nullptr}) == 0);
}

// ---- project
// ------------------------------------------------------------------------------------------------

double sign(int64_t feature, int64_t column) {
  const ReferenceSampler sampler{{1, 1, Sampling::kProject, Draw::kStratified, 0}, kKey, kSalt, 1};
  const auto words = sampler.call(4, feature, column / 128);
  return words[static_cast<size_t>(column % 128 / 32)] >> (column % 32) & 1 ? 1 : -1;
}

TEST(signs_every_dtype_and_width) {
  for (const DType dtype : kDTypes)
    for (const int64_t k : {1, 3, 8, 31, 64, 127, 128, 129, 300})
      for (const size_t shift : {0, 1}) {
        const SketchSpec spec{1, 1, Sampling::kProject, Draw::kStratified, 0};
        const int64_t begin = k / 3, end = k;
        const auto trailer = std::vector<Trailer>{{kKey, kSalt, kFormatVersion, {}}};
        Device<Trailer> device_trailer(trailer);
        const size_t item = static_cast<size_t>(item_size(dtype)),
                     bytes = static_cast<size_t>((end - begin) * k) * item;
        std::vector<char> cpu_out(bytes);
        Device<char> out(bytes, shift * item);
        EXPECT(cpu::signs({{}, spec, dtype, trailer.data(), k, begin, end, cpu_out.data()}) == 0);
        EXPECT(cuda::signs({{}, spec, dtype, device_trailer.data(), k, begin, end, out.data()}) == 0);
        const auto got = out.get();
        EXPECT_SAME(got, cpu_out, "k ", k);
        for (int64_t i = 0; i < (end - begin) * k; ++i)
          EXPECT(get_item(dtype, got.data(), static_cast<size_t>(i)) == sign(begin + i / k, i % k), "k ", k,
                 " entry ", i);
      }
}

// In place, by recursion on halves: H of twice the order is [[H, H], [H, -H]].
void walsh(std::vector<double>& v, size_t begin, size_t order) {
  if (order == 1) return;
  for (size_t i = begin; i < begin + order / 2; ++i) {
    const double a = v[i], b = v[i + order / 2];
    v[i] = a + b, v[i + order / 2] = a - b;
  }
  walsh(v, begin, order / 2), walsh(v, begin + order / 2, order / 2);
}

// Sums of multiples of 1/8 are exact, so CPU and GPU code meet the definition to the last rounding. The last
// sizes have lines that do not fit into shared memory.
TEST(hadamard_against_its_definition) {
  for (const DType dtype : kDTypes)
    for (const int64_t features : {1, 2, 5, 33, 64, 300, 8193, 16385})
      for (const bool transposed : {false, true}) {
        const SketchSpec spec{1, 3, Sampling::kProject, Draw::kHadamard, 0};
        const int64_t k = kept(features, 1, 3), rows = features > 1000 ? 2 : 5,
                      order = hadamard_order(features), in = transposed ? k : features,
                      out_cols = transposed ? features : k;
        const Matrix x(dtype, Form::kPadded, rows, in, 44);
        const std::vector<Trailer> trailer{{kKey, kSalt, kFormatVersion, {}}};
        Device<Trailer> device_trailer(trailer);
        const size_t bytes = static_cast<size_t>(rows * out_cols * item_size(dtype));
        std::vector<char> cpu_out(bytes);
        Device<char> out(bytes);
        HadamardArgs args{{},         spec,     dtype, trailer.data(), features,
                          transposed, x.host(), 0.25,  cpu_out.data(), nullptr};
        run_cpu<HadamardArgs>(cpu::hadamard_workspace, cpu::hadamard, args);
        args.trailer = device_trailer.data(), args.x = x.device(), args.out = out.data();
        run_cuda<HadamardArgs>(cuda::hadamard_workspace, cuda::hadamard, args);
        EXPECT_SAME(out.get(), cpu_out, describe(spec, dtype, rows, features));
        const Permutation column(kKey, kSalt, 0, order);
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<double> line(static_cast<size_t>(order));
          for (int64_t i = 0; i < in; ++i)
            line[static_cast<size_t>(transposed ? column(i) : i)] =
                x.at(r, i) * (transposed ? 1 : sign(0, i));
          walsh(line, 0, line.size());
          for (int64_t i = 0; i < out_cols; ++i) {
            const double sum = line[static_cast<size_t>(transposed ? i : column(i))];
            EXPECT(get_item(dtype, cpu_out.data(), static_cast<size_t>(r * out_cols + i)) ==
                       rounded(dtype, 0.25 * sum * (transposed ? sign(0, i) : 1)),
                   "(", r, ",", i, ")");
          }
        }
      }
}

TEST(signs_of_nothing) {
  const SketchSpec spec{1, 2, Sampling::kProject, Draw::kStratified, 0};
  EXPECT(cuda::signs({{}, spec, DType::kF32, nullptr, 6, 2, 2, nullptr}) == 0);
}

// (x R) R^T / k of multiples of 1/8: sums are exact, so the definition is met to the last rounding. k is a
// power of four, whose scale is exactly 1 / sqrt(k).
TEST(unpack_projected) {
  for (const DType dtype : kDTypes)
    for (const auto& [features, k] : {std::pair<int64_t, int64_t>{9, 4}, {33, 16}, {70, 64}}) {
      const SketchSpec spec{k, features, Sampling::kProject, Draw::kStratified, 0};
      const Matrix stored(dtype, Form::kContiguous, 5, k, 42);
      const Packed saved(spec, dtype, stored.host(), features);
      const auto got = unpacked(spec, dtype, 5, features, saved);
      for (int64_t r = 0; r < 5; ++r)
        for (int64_t f = 0; f < features; ++f) {
          double sum = 0;
          for (int64_t j = 0; j < k; ++j) sum += stored.at(r, j) * sign(f, j);
          const double want = rounded(dtype, sum / std::sqrt(static_cast<double>(k)));
          EXPECT(get_item(dtype, got.data(), static_cast<size_t>(r * features + f)) == want, "(", r, ",", f,
                 ")");
        }
    }
}

TEST(unpack_projected_in_blocks) {  // more columns than are summed before a rounding
  for (const int bits : {0, 8}) {
    const SketchSpec spec{3, 4, Sampling::kProject, Draw::kStratified, bits};
    const Matrix stored(DType::kBF16, Form::kContiguous, 3, packed_cols(spec, 400), 43);
    unpacked(spec, DType::kBF16, 3, 400, Packed(spec, DType::kBF16, stored.host(), 400));
  }
}

}  // namespace

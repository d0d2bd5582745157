// norm_pack: the CPU's bytes exactly. norm_backward: the CPU's numbers but for the order of sums.
#include "core/norm.h"

#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

// n, set, params, inner, by_channel: rows of many lengths, groups of planes, batches in both memory orders.
constexpr NormShape kShapes[] = {
    {7, 1, 1, 1, false},
    {5 * 3, 3, 3, 1, false},
    {4 * 64, 64, 64, 1, false},
    {3 * 65, 65, 65, 1, false},
    {3 * 300, 300, 300, 1, false},
    {2 * 2500, 2500, 2500, 1, false},
    {2 * 6 * 35, 105, 6, 35, false},
    {70 * 2 * 3, 6, 2, 3, false},
    {5 * 7 * 9, 45, 7, 9, true},
    {40 * 33, 40, 33, 1, true},
    {2 * 3 * 1, 2, 3, 1, true},
    {3 * 2 * 700, 2100, 2, 700, true},
    // in whole octets: rows and columns, planes, groups of planes; several slices
    {77 * 136, 77, 136, 1, true},
    {5 * 6 * 16, 80, 6, 16, true},
    {3 * 8 * 24, 48, 8, 24, false},
    {150 * 24, 24, 24, 1, false},
    {700 * 5, 700, 5, 1, true},
    {90 * 3 * 49, 90 * 49, 3, 49, true}};

std::vector<char> values(DType dtype, int64_t n, uint64_t seed) {
  std::vector<char> v(static_cast<size_t>(n * item_size(dtype)));
  Random random(seed);
  for (int64_t i = 0; i < n; ++i) set_item(dtype, v.data(), static_cast<size_t>(i), random.eighth());
  return v;
}

DType wide(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

// A copy that begins an element behind a vector's place.
std::vector<char> behind(const std::vector<char>& v, size_t shift) {
  std::vector<char> shifted(shift);
  shifted.insert(shifted.end(), v.begin(), v.end());
  return shifted;
}

void check_pack(const NormShape& s, DType dtype, int bits, bool centred, size_t shift = 0) {
  const int64_t sets = s.n / s.set;
  const auto x = values(dtype, s.n, 91), mean = values(wide(dtype), s.params, 92);
  auto rstd = values(wide(dtype), sets, 93);
  const auto layout = norm_layout(s, bits);
  auto saved = fresh_saved(norm_spec(bits), kNormLo, norm_lines(s), norm_width(s));
  Device<char> device_x(behind(x, shift)), device_mean(mean), device_rstd(rstd), device_saved(saved);
  NormPackArgs args{{},          s,           dtype,
                    bits,        centred,     1e-5,
                    kSalt,       x.data(),    s.by_channel ? mean.data() : nullptr,
                    rstd.data(), saved.data()};
  EXPECT(cpu::norm_pack(args) == 0);
  args.x = device_x.data() + shift, args.rstd = device_rstd.data(), args.saved = device_saved.data();
  if (s.by_channel) args.mean = device_mean.data();
  EXPECT(cuda::norm_pack(args) == 0);
  EXPECT_SAME(device_saved.get(), saved, "set ", s.set, " bits ", bits, " channel ", s.by_channel);
  EXPECT_SAME(device_rstd.get(), rstd, "set ", s.set);
  EXPECT(static_cast<int64_t>(saved.size()) == layout.bytes);
}

TEST(norm_pack_every_shape_and_dtype) {
  for (const NormShape& s : kShapes)
    for (const DType dtype : kDTypes)
      for (const int bits : {8, 3, 1}) check_pack(s, dtype, bits, true);
  for (const int bits : kBits) check_pack(kShapes[4], DType::kF32, bits, false);
  for (const NormShape& s : kShapes) check_pack(s, DType::kBF16, 4, true, 2);
}

void check_backward(const NormShape& s, DType dtype, int bits, bool centred, bool weighted, bool wanted,
                    size_t shift = 0) {
  const int64_t sets = s.n / s.set;
  const auto x = values(dtype, s.n, 94), dy = values(dtype, s.n, 95),
             weight = values(wide(dtype), s.params, 96), mean = values(wide(dtype), s.params, 97);
  auto rstd = values(wide(dtype), sets, 98);
  auto saved = fresh_saved(norm_spec(bits), kNormLo, norm_lines(s), norm_width(s));
  EXPECT(cpu::norm_pack(
             {{}, s, dtype, bits, centred, 1e-5, kSalt, x.data(), mean.data(), rstd.data(), saved.data()}) ==
         0);
  const size_t param_bytes = static_cast<size_t>(s.params * item_size(wide(dtype)));
  std::vector<char> dx(x.size()), dw(param_bytes), db(param_bytes);
  Device<char> device_dy(behind(dy, shift)), device_saved(saved), device_rstd(rstd), device_weight(weight),
      device_dx(dx.size() + shift), device_dw(param_bytes), device_db(param_bytes);
  NormBackwardArgs args{{},
                        s,
                        dtype,
                        bits,
                        centred,
                        dy.data(),
                        saved.data(),
                        rstd.data(),
                        weighted ? weight.data() : nullptr,
                        dx.data(),
                        wanted ? dw.data() : nullptr,
                        wanted ? db.data() : nullptr,
                        nullptr};
  run_cpu<NormBackwardArgs>(cpu::norm_backward_workspace, cpu::norm_backward, args);
  args.dy = device_dy.data() + shift, args.saved = device_saved.data(), args.rstd = device_rstd.data();
  args.weight = weighted ? device_weight.data() : nullptr, args.dx = device_dx.data() + shift;
  args.weight_grad = wanted ? device_dw.data() : nullptr,
  args.bias_grad = wanted ? device_db.data() : nullptr;
  run_cuda<NormBackwardArgs>(cuda::norm_backward_workspace, cuda::norm_backward, args);
  // Sums of n terms of at most 2^12 in another order; 16-bit results differ by at most one rounding more.
  const double unit = dtype == DType::kF64 ? 0x1p-53 : 0x1p-24;
  const double sums = unit * 4096.0 * static_cast<double>(s.n + 8);
  const double last = dtype == DType::kBF16 ? 0x1p-7 : dtype == DType::kF16 ? 0x1p-10 : 0;
  const auto close = [&](DType type, const std::vector<char>& got, const std::vector<char>& want,
                         double factor) {
    for (size_t i = 0; i < want.size() / static_cast<size_t>(item_size(type)); ++i) {
      const double a = get_item(type, got.data(), i), b = get_item(type, want.data(), i);
      EXPECT(std::abs(a - b) <= sums * factor + last * std::abs(b), "set ", s.set, " element ", i, ": ", a,
             " and ", b);
    }
  };
  double largest = 1;  // rstd multiplies dx
  for (int64_t i = 0; i < sets; ++i)
    largest = std::max(largest, std::abs(get_item(wide(dtype), rstd.data(), static_cast<size_t>(i))));
  auto device = device_dx.get();
  device.erase(device.begin(), device.begin() + static_cast<std::ptrdiff_t>(shift));
  close(dtype, device, dx, largest);
  if (!wanted) return;
  close(wide(dtype), device_dw.get(), dw, 1);
  close(wide(dtype), device_db.get(), db, 1);
}

TEST(norm_backward_every_shape_and_dtype) {
  for (const NormShape& s : kShapes) {
    for (const DType dtype : kDTypes) check_backward(s, dtype, 4, true, true, true);
    check_backward(s, DType::kF32, 3, s.by_channel, false, false);
    check_backward(s, DType::kBF16, 4, true, true, true, 2);
  }
}

TEST(norm_of_nothing) {
  NormShape s{0, 4, 4, 1, false};
  EXPECT(cuda::norm_pack({{}, s, DType::kF32, 4, true, 1e-5, 0, nullptr, nullptr, nullptr, nullptr}) == 0);
  EXPECT(cuda::norm_backward({{},
                              s,
                              DType::kF32,
                              4,
                              true,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr,
                              nullptr}) == 0);
}

}  // namespace

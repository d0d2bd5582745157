// max_pool and its gradient: the CPU's bits, and the definition.
#include "core/pool.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr PoolShape kShapes[] = {
    {3, 1, {1, 7, 9}, {1, 3, 4}, {1, 2, 2}, {1, 2, 2}, {0, 0, 0}, {1, 1, 1}},
    {2, 5, {1, 6, 8}, {1, 3, 4}, {1, 3, 3}, {1, 2, 2}, {0, 1, 1}, {1, 1, 1}},
    {2, 3, {4, 5, 6}, {4, 3, 3}, {2, 3, 2}, {1, 2, 2}, {0, 1, 0}, {1, 1, 1}},
    {4, 1, {1, 1, 40}, {1, 1, 17}, {1, 1, 3}, {1, 1, 2}, {0, 0, 0}, {1, 1, 3}},
    {2, 2, {1, 5, 5}, {1, 5, 5}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}},
};

void check_pool(DType dtype, const PoolShape& s, bool special) {
  const int64_t n = pool_inputs(s), outputs = pool_outputs(s);
  const size_t item = static_cast<size_t>(item_size(dtype));
  std::vector<char> x(static_cast<size_t>(n) * item), dy(static_cast<size_t>(outputs) * item);
  Random random(71);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t pick = special ? random.below(6) : 9;
    set_item(dtype, x.data(), static_cast<size_t>(i),
             pick == 0  ? NAN
             : pick < 4 ? -INFINITY
                        : random.eighth());
  }
  for (int64_t i = 0; i < outputs; ++i) set_item(dtype, dy.data(), static_cast<size_t>(i), random.eighth());
  const size_t words = static_cast<size_t>((outputs + 31) / 32 * pool_bits(s));
  std::vector<char> y(dy.size()), dx(x.size());
  std::vector<uint32_t> codes(words);
  EXPECT(cpu::max_pool({{}, dtype, s, x.data(), y.data(), codes.data()}) == 0);
  EXPECT(cpu::max_pool_backward({{}, dtype, s, dy.data(), codes.data(), dx.data()}) == 0);
  Device<char> device_x(x), device_y(y.size()), device_dy(dy), device_dx(dx.size());
  Device<uint32_t> device_codes(words);
  EXPECT(cuda::max_pool({{}, dtype, s, device_x.data(), device_y.data(), device_codes.data()}) == 0);
  EXPECT(cuda::max_pool_backward({{}, dtype, s, device_dy.data(), device_codes.data(), device_dx.data()}) ==
         0);
  EXPECT_SAME(device_codes.get(), codes);
  EXPECT_SAME(device_y.get(), y);
  EXPECT_SAME(device_dx.get(), dx);
  if (special) return;
  double sum = 0, given = 0;  // what goes in comes out
  for (int64_t i = 0; i < n; ++i) sum += get_item(dtype, dx.data(), static_cast<size_t>(i));
  for (int64_t i = 0; i < outputs; ++i) given += get_item(dtype, dy.data(), static_cast<size_t>(i));
  EXPECT(sum == given);
}

TEST(max_pool_every_dtype_and_shape) {
  for (const PoolShape& shape : kShapes)
    for (const DType dtype : kDTypes)
      for (const bool special : {false, true}) check_pool(dtype, shape, special);
}

}  // namespace

// The copy wrappers of ptx.cuh, one test each: cp.async, mbarriers, TMA, bulk copies.
#include "cuda/ptx.cuh"
#include "device.h"
#include "tensor_map.h"

using namespace rad::cuda;
using testing::Device;

namespace {

std::vector<uint16_t> numbered(size_t n) {
  std::vector<uint16_t> v(n);
  for (size_t i = 0; i < n; ++i) v[i] = static_cast<uint16_t>(i * 7 + 1);
  return v;
}

__global__ void copy_tiles(const uint4* x, uint4* y,
                           int n) {  // two tiles in flight, the tail filled with zeros
  CUDA_SHARED(uint4[2][64], tile);
  const int t = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 2; ++i) {
    cp_async16(&tile[i][t], x + (i * 64 + t < n ? i * 64 + t : 0), i * 64 + t < n ? 16 : 0);
    cp_async_commit();
  }
  cp_async_wait<1>();
  __syncthreads();
  y[t] = tile[0][63 - t];
  cp_async_wait<0>();
  __syncthreads();
  y[64 + t] = tile[1][63 - t];
}

TEST(ptx_cp_async) {
  const int n = 100;
  const auto x = numbered(n * 8);
  Device<uint16_t> dx(x), dy(128 * 8);
  launch(copy_tiles, {dim3(1), dim3(64)}, reinterpret_cast<const uint4*>(dx.data()),
         reinterpret_cast<uint4*>(dy.data()), n);
  std::vector<uint16_t> expected(128 * 8, 0);
  for (size_t i = 0; i < 128; ++i)
    for (size_t e = 0; e < 8; ++e) {
      const size_t source = i / 64 * 64 + 63 - i % 64;
      if (source < n) expected[i * 8 + e] = x[source * 8 + e];
    }
  EXPECT_SAME(dy.get(), expected);
}

// Of vector t the first t items, then zeros; of the last, which is cut off, what there is.
__global__ void copy_parts(const uint4* x, uint4* y) {
  CUDA_SHARED(uint4[9], tile);
  const int t = static_cast<int>(threadIdx.x);
  cp_async16(&tile[t], x + t, t == 8 ? 6 : 2 * t);
  cp_async_commit();
  cp_async_wait<0>();
  y[t] = tile[t];
}

TEST(ptx_cp_async_parts) {
  const auto x = numbered(8 * 8 + 3);  // the last vector has three of its eight items
  Device<uint16_t> dx(x), dy(9 * 8);
  launch(copy_parts, {dim3(1), dim3(9)}, reinterpret_cast<const uint4*>(dx.data()),
         reinterpret_cast<uint4*>(dy.data()));
  std::vector<uint16_t> expected(9 * 8, 0);
  for (size_t t = 0; t < 9; ++t)
    for (size_t e = 0; e < (t == 8 ? 3 : t); ++e) expected[t * 8 + e] = x[t * 8 + e];
  EXPECT_SAME(dy.get(), expected);
}

__global__ void copy_through_mbarrier(const uint4* x,
                                      uint4* y) {  // warp 1 copies, warp 0 waits for all its lanes
  CUDA_SHARED(uint4[32], tile);
  CUDA_SHARED(uint64_t, landed);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) mbarrier_init(&landed, 32);
  __syncthreads();
  if (threadIdx.x >= 32) {
    cp_async16(&tile[lane], x + lane);
    cp_async_mbarrier_arrive(&landed);
  } else {
    mbarrier_wait(&landed, 0);
    y[lane] = tile[31 - lane];
  }
}

TEST(ptx_cp_async_mbarrier_arrive) {
  const auto x = numbered(256);
  Device<uint16_t> dx(x), dy(256);
  launch(copy_through_mbarrier, {dim3(1), dim3(64)}, reinterpret_cast<const uint4*>(dx.data()),
         reinterpret_cast<uint4*>(dy.data()));
  std::vector<uint16_t> expected(256);
  for (size_t i = 0; i < 256; ++i) expected[i] = x[(31 - i / 8) * 8 + i % 8];
  EXPECT_SAME(dy.get(), expected);
}

__global__ void mbarrier_rounds(int* y) {  // producer and consumer warps take turns through two mbarriers
  CUDA_SHARED(int[32], slot);
  CUDA_SHARED(uint64_t[2], bar);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar[0], 32);
    mbarrier_init(&bar[1], 32);
    mbarrier_init_fence();
  }
  __syncthreads();
  for (int round = 0; round < 5; ++round) {
    if (threadIdx.x < 32) {
      if (round) mbarrier_wait(&bar[1], (round - 1) & 1);
      slot[lane] = round * 100 + lane;
      mbarrier_arrive(&bar[0]);
    } else {
      mbarrier_wait(&bar[0], round & 1);
      y[round * 32 + lane] = slot[lane ^ 1];
      mbarrier_arrive(&bar[1]);
    }
  }
}

TEST(ptx_mbarrier_phases) {
  Device<int> y(160);
  launch(mbarrier_rounds, {dim3(1), dim3(64)}, y.data());
  const auto got = y.get();
  for (int i = 0; i < 160; ++i)
    EXPECT(got[static_cast<size_t>(i)] == i / 32 * 100 + (i % 32 ^ 1), "element ", i);
}

// One box through shared memory, element by element as it lies there.
__global__ void load_box(const __grid_constant__ TensorMap map, int x, int y, int items, uint16_t* out) {
  auto* tile = dyn_smem<uint16_t>();
  CUDA_SHARED(uint64_t, landed);
  if (threadIdx.x == 0) {
    mbarrier_init(&landed, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&landed, items * 2);
    tma_load_2d(tile, &map, x, y, &landed);
  }
  __syncthreads();
  mbarrier_wait(&landed, 0);
  for (int i = static_cast<int>(threadIdx.x); i < items; i += static_cast<int>(blockDim.x)) out[i] = tile[i];
}

void check_box(int rows, int cols, int box_rows, int box_cols, bool swizzle, int x, int y) {
  const auto data = numbered(static_cast<size_t>(rows * cols));
  const int items = box_rows * box_cols;
  Device<uint16_t> tensor(data), out(static_cast<size_t>(items));
  launch(load_box, {dim3(1), dim3(64), static_cast<size_t>(items) * 2},
         testing::tensor_map(tensor.data(), rows, cols, box_rows, box_cols, swizzle), x, y, items,
         out.data());
  std::vector<uint16_t> expected(static_cast<size_t>(items), 0);
  for (int r = 0; r < box_rows; ++r)
    for (int c = 0; c < box_cols; ++c) {
      if (y + r < 0 || y + r >= rows || x + c < 0 || x + c >= cols) continue;
      const int chunk = swizzle ? c / 8 ^ (r % 8) : c / 8;  // 16-byte chunks of a 128-byte row
      expected[static_cast<size_t>(r * box_cols + chunk * 8 + c % 8)] =
          data[static_cast<size_t>((y + r) * cols + x + c)];
    }
  EXPECT_SAME(out.get(), expected);
}

TEST(ptx_tma_plain) { check_box(40, 48, 8, 16, false, 16, 8); }
TEST(ptx_tma_swizzled) { check_box(100, 128, 64, 64, true, 64, 0); }
TEST(ptx_tma_zero_fill) {
  check_box(20, 72, 16, 64, true, 64, 10);
  check_box(20, 72, 16, 64, true, -8, -3);
}

__global__ void load_bulk(const char* x, char* y, int bytes) {
  char* tile = dyn_smem<char>();
  CUDA_SHARED(uint64_t, landed);
  if (threadIdx.x == 0) {
    mbarrier_init(&landed, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&landed, bytes);
    bulk_load(tile, x, bytes, &landed);
  }
  __syncthreads();
  mbarrier_wait(&landed, 0);
  for (int i = static_cast<int>(threadIdx.x); i < bytes; i += static_cast<int>(blockDim.x)) y[i] = tile[i];
}

TEST(ptx_bulk_load) {
  const auto x = numbered(600);
  Device<uint16_t> dx(x), dy(600);
  launch(load_bulk, {dim3(1), dim3(64), 1200}, reinterpret_cast<const char*>(dx.data()),
         reinterpret_cast<char*>(dy.data()), 1200);
  EXPECT_SAME(dy.get(), x);
}

}  // namespace

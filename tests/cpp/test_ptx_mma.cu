// The matrix wrappers of ptx.cuh against element-wise references: ldmatrix, mma, wgmma.
#include "cuda/ptx_wgmma.cuh"
#include "device.h"
#include "tensor_map.h"

using namespace rad::cuda;
using testing::Device;

namespace {

template <class T>
std::vector<T> eighths(size_t n, uint64_t seed) {
  testing::Random random(seed);
  std::vector<T> v(n);
  for (T& x : v) x = static_cast<T>(random.eighth());
  return v;
}

// a [m, k] b [n, k]^T; exact for multiples of 1/8
template <class T>
std::vector<float> product(const std::vector<T>& a, const std::vector<T>& b, size_t m, size_t n, size_t k) {
  std::vector<float> c(m * n, 0.f);
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < n; ++j)
      for (size_t x = 0; x < k; ++x)
        c[i * n + j] += static_cast<float>(a[i * k + x]) * static_cast<float>(b[j * k + x]);
  return c;
}

// ---- ldmatrix
// -----------------------------------------------------------------------------------------------

template <int Count, bool Transposed>
__global__ void load_matrices(const uint16_t* x, uint32_t* y) {
  CUDA_SHARED(uint16_t[Count * 64], tile);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < Count * 64; i += 32) tile[i] = x[i];
  __syncthreads();
  uint32_t r[Count];
  ldmatrix<Count, Transposed>(r, tile + lane % (Count * 8) * 8);
  for (int m = 0; m < Count; ++m) y[m * 32 + lane] = r[m];
}

template <int Count, bool Transposed>
void check_ldmatrix() {
  std::vector<uint16_t> x(Count * 64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i + 1);
  Device<uint16_t> dx(x);
  Device<uint32_t> dy(Count * 32);
  launch(load_matrices<Count, Transposed>, {dim3(1), dim3(32)}, dx.data(), dy.data());
  std::vector<uint32_t> expected(Count * 32);
  for (size_t m = 0; m < Count; ++m)
    for (size_t lane = 0; lane < 32; ++lane) {
      const size_t row = lane / 4, col = lane % 4 * 2;
      const auto item = [&](size_t c) {
        return uint32_t{x[m * 64 + (Transposed ? c * 8 + row : row * 8 + c)]};
      };
      expected[m * 32 + lane] = item(col) | item(col + 1) << 16;
    }
  EXPECT_SAME(dy.get(), expected);
}

TEST(ptx_ldmatrix) {
  check_ldmatrix<2, false>();
  check_ldmatrix<2, true>();
  check_ldmatrix<4, false>();
  check_ldmatrix<4, true>();
}

// ---- stmatrix
// -----------------------------------------------------------------------------------------------

// What a transposed ldmatrix reads, a transposed stmatrix writes back.
__global__ void store_matrices(const uint16_t* x, uint16_t* y) {
#ifdef RAD_HAS_WGMMA
  CUDA_SHARED(uint16_t[4 * 64], from);
  CUDA_SHARED(uint16_t[4 * 64], to);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 4 * 64; i += 32) from[i] = x[i];
  __syncthreads();
  uint32_t r[4];
  ldmatrix<4, true>(r, from + lane * 8);
  stmatrix_transposed(to + lane * 8, r);
  __syncthreads();
  for (int i = lane; i < 4 * 64; i += 32) y[i] = to[i];
#endif
}

TEST(ptx_stmatrix) {
  std::vector<uint16_t> x(4 * 64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i + 1);
  Device<uint16_t> dx(x), dy(x.size());
  launch(store_matrices, {dim3(1), dim3(32)}, dx.data(), dy.data());
  EXPECT_SAME(dy.get(), x);
}

// ---- mma
// ------------------------------------------------------------------------------------------------------

template <class T>
__device__ uint32_t pair(const T* p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

template <class T>
__global__ void one_mma(const T* a, const T* b, const float* c, float* d) {  // [16,16], [8,16], [16,8]
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, q = lane % 4 * 2;
  const uint32_t fa[4] = {pair(a + g * 16 + q), pair(a + (g + 8) * 16 + q), pair(a + g * 16 + q + 8),
                          pair(a + (g + 8) * 16 + q + 8)};
  const uint32_t fb[2] = {pair(b + g * 16 + q), pair(b + g * 16 + q + 8)};
  const float fc[4] = {c[g * 8 + q], c[g * 8 + q + 1], c[(g + 8) * 8 + q], c[(g + 8) * 8 + q + 1]};
  float fd[4];
  mma_m16n8k16<T>(fd, fa, fb, fc);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + q + i % 2] = fd[i];
}

template <class T>
void check_mma() {
  const auto a = eighths<T>(256, 1), b = eighths<T>(128, 2);
  const auto c = eighths<float>(128, 3);
  Device<T> da(a), db(b);
  Device<float> dc(c), dd(128);
  launch(one_mma<T>, {dim3(1), dim3(32)}, da.data(), db.data(), dc.data(), dd.data());
  auto expected = product(a, b, 16, 8, 16);
  for (size_t i = 0; i < 128; ++i) expected[i] += c[i];
  EXPECT_SAME(dd.get(), expected);
}

TEST(ptx_mma_bf16) { check_mma<bf16>(); }
TEST(ptx_mma_f16) { check_mma<f16>(); }

// ---- wgmma
// ------------------------------------------------------------------------------------------------------

constexpr int kTileBytes = 64 * 64 * 2;

[[maybe_unused]] __device__ void store_accumulators(const float (&d)[32], float* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int e = 0; e < 32; ++e)
    out[(warp * 16 + lane / 4 + e / 2 % 2 * 8) * 64 + e / 4 * 8 + lane % 4 * 2 + e % 2] = d[e];
}

template <class T>
__global__ void __launch_bounds__(128)
    one_tile(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c) {
#ifdef RAD_HAS_WGMMA
  char* tile = dyn_smem<char>();
  CUDA_SHARED(uint64_t, landed);
  if (threadIdx.x == 0) {
    mbarrier_init(&landed, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&landed, 2 * kTileBytes);
    tma_load_2d(tile, &a, 0, 0, &landed);
    tma_load_2d(tile + kTileBytes, &b, 0, 0, &landed);
  }
  __syncthreads();
  mbarrier_wait(&landed, 0);
  float d[32];
  for (float& x : d) x = 1000.f;  // the first product must overwrite, the others add
  wgmma_fence();
  for (int k = 0; k < 4; ++k)
    wgmma_m64n64k16<T>(d, wgmma_operand_k128(tile + k * 32), wgmma_operand_k128(tile + kTileBytes + k * 32),
                       k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  store_accumulators(d, c);
#endif
}

template <class T>
void check_wgmma() {
  const auto a = eighths<T>(64 * 64, 4), b = eighths<T>(64 * 64, 5);
  Device<T> da(a), db(b);
  Device<float> c(64 * 64);
  launch(one_tile<T>, {dim3(1), dim3(128), 2 * kTileBytes},
         testing::tensor_map(da.data(), 64, 64, 64, 64, true),
         testing::tensor_map(db.data(), 64, 64, 64, 64, true), c.data());
  EXPECT_SAME(c.get(), product(a, b, 64, 64, 64));
}

TEST(ptx_wgmma_bf16) { check_wgmma<bf16>(); }
TEST(ptx_wgmma_f16) { check_wgmma<f16>(); }

// Both operands with their k one after another, in panels of 64 items: a [32, 64] and b [32, 256], so that
// the second product starts 16 k on.
template <class T>
__global__ void __launch_bounds__(128) items_first(const T* a, const T* b, float* c) {
#ifdef RAD_HAS_WGMMA
  constexpr int kK = 32, kPanelBytes = kK * 128;
  char* tile = dyn_smem<char>();
  const auto place = [](int k, int item) {
    return item / 64 * kPanelBytes + k * 128 + (item % 64 / 8 ^ k % 8) * 16 + item % 8 * 2;
  };
  for (int i = static_cast<int>(threadIdx.x); i < kK * 320; i += 128) {
    const int k = i / 320, item = i % 320;
    *reinterpret_cast<T*>(tile + place(k, item)) = item < 64 ? a[k * 64 + item] : b[k * 256 + item - 64];
  }
  fence_proxy_async();
  __syncthreads();
  float d[128];
  for (float& x : d) x = 1000.f;  // the first product must overwrite, the second adds
  wgmma_fence();
  for (int k = 0; k < kK; k += 16)
    wgmma_m64n256k16_mn<T>(d, wgmma_operand_mn128(tile + k * 128, kPanelBytes),
                           wgmma_operand_mn128(tile + kPanelBytes + k * 128, kPanelBytes), k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int e = 0; e < 128; ++e)
    c[(warp * 16 + lane / 4 + e / 2 % 2 * 8) * 256 + e / 4 * 8 + lane % 4 * 2 + e % 2] = d[e];
#endif
}

template <class T>
void check_items_first() {
  const size_t k = 32;
  const auto a = eighths<T>(k * 64, 10), b = eighths<T>(k * 256, 11);
  const auto turned = [&](const std::vector<T>& x, size_t items) {
    std::vector<T> y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i % items * k + i / items] = x[i];
    return y;
  };
  Device<T> da(a), db(b);
  Device<float> c(64 * 256);
  launch(items_first<T>, {dim3(1), dim3(128), k * 320 * 2}, da.data(), db.data(), c.data());
  EXPECT_SAME(c.get(), product(turned(a, 64), turned(b, 256), 64, 256, k));
}

TEST(ptx_wgmma_items_first_bf16) { check_items_first<bf16>(); }
TEST(ptx_wgmma_items_first_f16) { check_items_first<f16>(); }

// A ring of two stages: a TMA warp ahead of a warpgroup that keeps one product in flight.
__global__ void __launch_bounds__(160)
    ring(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* c, int steps) {
#ifdef RAD_HAS_WGMMA
  constexpr int kStages = 2;
  char* tiles = dyn_smem<char>();
  CUDA_SHARED(uint64_t[kStages], full);
  CUDA_SHARED(uint64_t[kStages], empty);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&full[s], 1);
      mbarrier_init(&empty[s], 1);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    for (int k = 0; k < steps && threadIdx.x == 128; ++k) {
      const int s = k % kStages, round = k / kStages;
      if (round > 0) mbarrier_wait(&empty[s], (round - 1) & 1);
      mbarrier_arrive_expect(&full[s], 2 * kTileBytes);
      tma_load_2d(tiles + s * 2 * kTileBytes, &a, k * 64, 0, &full[s]);
      tma_load_2d(tiles + s * 2 * kTileBytes + kTileBytes, &b, k * 64, 0, &full[s]);
    }
    return;
  }
  float d[32] = {};
  for (int k = 0; k < steps; ++k) {
    const int s = k % kStages;
    mbarrier_wait(&full[s], (k / kStages) & 1);
    const char *ta = tiles + s * 2 * kTileBytes, *tb = ta + kTileBytes;
    wgmma_fence();
    for (int i = 0; i < 4; ++i)
      wgmma_m64n64k16<bf16>(d, wgmma_operand_k128(ta + i * 32), wgmma_operand_k128(tb + i * 32), true);
    wgmma_commit();
    wgmma_wait<0>();
    named_barrier_sync(1, 128);
    if (threadIdx.x == 0) mbarrier_arrive(&empty[s]);
  }
  store_accumulators(d, c);
#endif
}

TEST(ptx_wgmma_ring_with_tails) {
  const size_t m = 40, n = 56, k = 64 * 5 - 24;
  const auto a = eighths<bf16>(m * k, 6), b = eighths<bf16>(n * k, 7);
  Device<bf16> da(a), db(b);
  Device<float> c(64 * 64);
  const auto map = [&](const Device<bf16>& x, size_t rows) {
    return testing::tensor_map(x.data(), static_cast<int>(rows), static_cast<int>(k), 64, 64, true);
  };
  launch(ring, {dim3(1), dim3(160), 4 * kTileBytes}, map(da, m), map(db, n), c.data(), 5);
  const auto got = c.get(), expected = product(a, b, m, n, k);
  for (size_t i = 0; i < 64; ++i)
    for (size_t j = 0; j < 64; ++j) {
      const float want = i < m && j < n ? expected[i * n + j] : 0.f;
      EXPECT(got[i * 64 + j] == want, "element (", i, ",", j, ") is ", got[i * 64 + j], ", expected ", want);
    }
}

// Plain stores into the swizzled layout, a proxy fence, then wgmma: how unpacked operands reach it.
__global__ void __launch_bounds__(128) stored_operands(const bf16* a, const bf16* b, float* c) {
#ifdef RAD_HAS_WGMMA
  char* tile = dyn_smem<char>();
  for (int i = static_cast<int>(threadIdx.x); i < 64 * 64; i += 128) {
    const int r = i / 64, byte = r * 128 + (i % 64 * 2 ^ (r % 8) << 4);
    *reinterpret_cast<bf16*>(tile + byte) = a[i];
    *reinterpret_cast<bf16*>(tile + kTileBytes + byte) = b[i];
  }
  fence_proxy_async();
  __syncthreads();
  float d[32] = {};
  wgmma_fence();
  for (int k = 0; k < 4; ++k)
    wgmma_m64n64k16<bf16>(d, wgmma_operand_k128(tile + k * 32),
                          wgmma_operand_k128(tile + kTileBytes + k * 32), true);
  wgmma_commit();
  wgmma_wait<0>();
  store_accumulators(d, c);
#endif
}

TEST(ptx_fence_proxy_async) {
  const auto a = eighths<bf16>(64 * 64, 8), b = eighths<bf16>(64 * 64, 9);
  Device<bf16> da(a), db(b);
  Device<float> c(64 * 64);
  launch(stored_operands, {dim3(1), dim3(128), 2 * kTileBytes}, da.data(), db.data(), c.data());
  EXPECT_SAME(c.get(), product(a, b, 64, 64, 64));
}

}  // namespace

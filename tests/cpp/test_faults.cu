// Planted faults of indexing, initialisation and synchronisation (check build only).
#include "cuda/ptx.cuh"
#include "faults.h"

using namespace rad::cuda;
using testing::Device;

namespace {

// ---- barriers ---------------------------------------------------------------------------------------------

template <bool Broken>
__global__ void missing_syncthreads(int* y) {
  CUDA_SHARED(int[128], tile);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (!Broken) __syncthreads();
  y[threadIdx.x] = tile[127 - threadIdx.x];
}

TEST(fault_missing_syncthreads) {
  Device<int> y(128);
  EXPECT_CAUGHT("RACE",
                [&](auto broken) { launch(missing_syncthreads<broken>, {dim3(1), dim3(128)}, y.data()); });
}

template <bool Broken>
__global__ void buffer_reused_too_early(int* y) {
  CUDA_SHARED(int[64], tile);
  for (int round = 0; round < 3; ++round) {
    tile[threadIdx.x] = round;
    __syncthreads();
    y[round * 64 + threadIdx.x] = tile[63 - threadIdx.x];
    if (!Broken) __syncthreads();
  }
}

TEST(fault_buffer_reused_too_early) {
  Device<int> y(192);
  EXPECT_CAUGHT("RACE",
                [&](auto broken) { launch(buffer_reused_too_early<broken>, {dim3(1), dim3(64)}, y.data()); });
}

template <bool Broken>
__global__ void divergent_barrier() {
  if (!Broken || threadIdx.x < 32) __syncthreads();
}

TEST(fault_divergent_barrier) {
  EXPECT_CAUGHT("__syncthreads",
                [&](auto broken) { launch(divergent_barrier<broken>, {dim3(1), dim3(64)}); });
}

template <bool Broken>
__global__ void barrier_on_two_lines() {
  if (Broken && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

TEST(fault_barrier_on_two_lines) {
  const auto healthy = testing::problems([&] { launch(barrier_on_two_lines<false>, {dim3(1), dim3(64)}); });
  const auto broken = testing::problems([&] { launch(barrier_on_two_lines<true>, {dim3(1), dim3(64)}); });
  EXPECT(healthy.empty(), healthy);
  EXPECT(broken.find("divergent __syncthreads") != std::string::npos, broken);
}

template <bool Broken>
__global__ void barrier_count_differs(int* y) {
  for (unsigned i = 0; i < (Broken ? threadIdx.x / 32 + 1 : 2); ++i) __syncthreads();
  y[threadIdx.x] = 1;
}

TEST(fault_barrier_count_differs) {
  Device<int> y(64);
  EXPECT_CAUGHT("__syncthreads",
                [&](auto broken) { launch(barrier_count_differs<broken>, {dim3(1), dim3(64)}, y.data()); });
}

// ---- warps
// --------------------------------------------------------------------------------------------------

template <bool Broken>
__global__ void missing_syncwarp(int* y) {
  CUDA_SHARED(int[32], tile);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (!Broken) __syncwarp();
  y[threadIdx.x] = tile[31 - threadIdx.x];
}

TEST(fault_missing_syncwarp) {
  Device<int> y(32);
  EXPECT_CAUGHT("RACE",
                [&](auto broken) { launch(missing_syncwarp<broken>, {dim3(1), dim3(32)}, y.data()); });
}

template <bool Broken>
__global__ void shuffle_does_not_order_memory(int* y) {
  CUDA_SHARED(int[32], tile);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (Broken)
    y[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
  else
    __syncwarp();
  y[threadIdx.x] = tile[31 - threadIdx.x];
}

TEST(fault_shuffle_taken_for_a_barrier) {
  Device<int> y(32);
  EXPECT_CAUGHT("RACE", [&](auto broken) {
    launch(shuffle_does_not_order_memory<broken>, {dim3(1), dim3(32)}, y.data());
  });
}

template <bool Broken>
__global__ void wrong_shuffle_mask(int* y) {
  y[threadIdx.x] = __shfl_down_sync(Broken ? 0xFFFFu : ~0u, 7, 1);
}

TEST(fault_wrong_shuffle_mask) {
  Device<int> y(32);
  EXPECT_CAUGHT("not in its own mask",
                [&](auto broken) { launch(wrong_shuffle_mask<broken>, {dim3(1), dim3(32)}, y.data()); });
}

template <bool Broken>
__global__ void lanes_in_two_collectives(unsigned* y) {
  const bool in = !Broken || threadIdx.x < 20;
  if (in)
    y[threadIdx.x] = __ballot_sync(~0u, 1);
  else
    __syncwarp();
}

TEST(fault_lanes_in_two_collectives) {
  Device<unsigned> y(32);
  EXPECT_CAUGHT("DEADLOCK", [&](auto broken) {
    launch(lanes_in_two_collectives<broken>, {dim3(1), dim3(32)}, y.data());
  });
}

// ---- indexing and initialisation
// -----------------------------------------------------------------------------

template <bool Broken>
__global__ void tail_store(int* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (Broken ? i <= n : i < n) y[i] = i;
}

TEST(fault_store_one_past_the_end) {
  Device<int> y(100);
  EXPECT_CAUGHT("OUT OF BOUNDS write",
                [&](auto broken) { launch(tail_store<broken>, {dim3(4), dim3(32)}, y.data(), 100); });
}

template <bool Broken>
__global__ void tail_load(const int* x, int* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  y[i] = x[Broken || i < n ? i : 0];
}

TEST(fault_load_past_the_end) {
  Device<int> x(std::vector<int>(20, 1)), y(32);
  EXPECT_CAUGHT("OUT OF BOUNDS read",
                [&](auto broken) { launch(tail_load<broken>, {dim3(1), dim3(32)}, x.data(), y.data(), 20); });
}

template <bool Broken>
__global__ void vector_store_over_the_tail(int* y, int n) {
  const int i = static_cast<int>(threadIdx.x) * 4;
  if (i + 4 <= n || (Broken && i < n))
    *reinterpret_cast<int4*>(y + i) = int4{1, 2, 3, 4};
  else
    for (int j = i; j < n; ++j) y[j] = 0;
}

TEST(fault_vector_store_over_the_tail) {
  Device<int> y(30);
  EXPECT_CAUGHT("OUT OF BOUNDS write", [&](auto broken) {
    launch(vector_store_over_the_tail<broken>, {dim3(1), dim3(32)}, y.data(), 30);
  });
}

template <bool Broken>
__global__ void vector_store(int* y) {
  reinterpret_cast<int4*>(y + (Broken ? 1 : 0))[threadIdx.x] = int4{1, 2, 3, 4};
}

TEST(fault_misaligned_vector_store) {
  Device<int> y(132);
  EXPECT_CAUGHT("MISALIGNED",
                [&](auto broken) { launch(vector_store<broken>, {dim3(1), dim3(32)}, y.data()); });
}

template <bool Broken>
__global__ void shared_index(int* y) {
  CUDA_SHARED(int[32], tile);
  tile[threadIdx.x + (Broken ? 1 : 0)] = 1;
  y[threadIdx.x] = tile[threadIdx.x + (Broken ? 1 : 0)];
}

TEST(fault_shared_index_past_the_end) {
  Device<int> y(32);
  EXPECT_CAUGHT("OUT OF BOUNDS",
                [&](auto broken) { launch(shared_index<broken>, {dim3(1), dim3(32)}, y.data()); });
}

template <bool Broken>
__global__ void dynamic_shared_index(int* y) {
  int* tile = dyn_smem<int>();
  tile[threadIdx.x + (Broken ? 1 : 0)] = 1;
  y[threadIdx.x] = 0;
}

TEST(fault_dynamic_shared_too_small) {
  Device<int> y(32);
  EXPECT_CAUGHT("OUT OF BOUNDS", [&](auto broken) {
    launch(dynamic_shared_index<broken>, {dim3(1), dim3(32), 128}, y.data());
  });
}

template <bool Broken>
__global__ void uninitialised_shared(int* y) {
  CUDA_SHARED(int[64], tile);
  if (!Broken || threadIdx.x < 63) tile[threadIdx.x] = 5;
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x];
}

TEST(fault_uninitialised_shared_read) {
  Device<int> y(64);
  EXPECT_CAUGHT("UNINITIALISED read",
                [&](auto broken) { launch(uninitialised_shared<broken>, {dim3(1), dim3(64)}, y.data()); });
}

template <bool Broken>
__global__ void host_pointer(int* device, int* host) {
  (Broken ? host : device)[threadIdx.x] = 1;
}

TEST(fault_host_pointer) {
  Device<int> y(32);
  std::vector<int> host(32);
  EXPECT_CAUGHT("HOST pointer", [&](auto broken) {
    launch(host_pointer<broken>, {dim3(1), dim3(32)}, y.data(), host.data());
  });
}

// ---- between blocks
// ----------------------------------------------------------------------------------------

template <bool Broken>
__global__ void sum_of_blocks(int* sum) {
  if (threadIdx.x != 0) return;
  if (Broken)
    *sum += 1;
  else
    atomicAdd(sum, 1);
}

TEST(fault_cross_block_sum_without_atomic) {
  Device<int> sum(std::vector<int>{0});
  EXPECT_CAUGHT("RACE", [&](auto broken) { launch(sum_of_blocks<broken>, {dim3(4), dim3(32)}, sum.data()); });
}

template <bool Broken>
__global__ void hand_over(int* part, unsigned* ticket, int* out) {
  part[blockIdx.x] = 1;
  if (!Broken) __threadfence();
  if (atomicAdd(ticket, 1u) != gridDim.x - 1) return;
  if (!Broken) __threadfence();
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) sum += part[b];
  *out = sum;
}

TEST(fault_hand_over_without_fence) {
  Device<int> part(4), out(1);
  EXPECT_CAUGHT("RACE", [&](auto broken) {
    Device<unsigned> ticket(std::vector<unsigned>{0});
    launch(hand_over<broken>, {dim3(4), dim3(1)}, part.data(), ticket.data(), out.data());
  });
}

// ---- launches
// ----------------------------------------------------------------------------------------------

__global__ void nothing() {}

TEST(fault_bad_launch_configuration) {
  for (const LaunchConfig& bad :
       {LaunchConfig{dim3(0), dim3(32)}, LaunchConfig{dim3(1, 65536), dim3(32)},
        LaunchConfig{dim3(1), dim3(1025)}, LaunchConfig{dim3(1), dim3(32), 228 << 10}}) {
    const auto text = testing::problems([&] { launch(nothing, bad); });
    EXPECT(text.find("bad launch configuration") != std::string::npos, text);
  }
}

}  // namespace

// Barriers, warp collectives, atomics and hand-over between blocks: legal patterns that must give the right
// answer and raise no alarm. test_faults.cu has their broken twins.
#include "cuda/ptx.cuh"
#include "device.h"

using namespace rad::cuda;
using testing::Device;

namespace {

std::vector<int> range(int n) {
  std::vector<int> v(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) v[static_cast<size_t>(i)] = i;
  return v;
}

// ---- votes and shuffles -----------------------------------------------------------------------------------

__global__ void votes(unsigned* out) {
  const int lane = threadIdx.x;
  const unsigned ballot = __ballot_sync(~0u, lane % 3 == 0);
  const int any = __any_sync(~0u, lane == 7), none = __any_sync(~0u, lane > 31);
  const int all = __all_sync(~0u, lane < 32), not_all = __all_sync(~0u, lane != 5);
  const unsigned match = __match_any_sync(~0u, lane % 4);
  out[lane * 6 + 0] = ballot;
  out[lane * 6 + 1] = any != 0;
  out[lane * 6 + 2] = none != 0;
  out[lane * 6 + 3] = all != 0;
  out[lane * 6 + 4] = not_all != 0;
  out[lane * 6 + 5] = match;
}

TEST(warp_votes) {
  Device<unsigned> out(32 * 6);
  launch(votes, {dim3(1), dim3(32)}, out.data());
  const auto got = out.get();
  unsigned thirds = 0;
  for (int lane = 0; lane < 32; lane += 3) thirds |= 1u << lane;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const std::vector<unsigned> expected{thirds, 1, 0, 1, 0, 0x11111111u << lane % 4};
    EXPECT_SAME(std::vector<unsigned>(got.begin() + lane * 6, got.begin() + lane * 6 + 6), expected, "lane ",
                lane);
  }
}

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x, value = 100 + lane;
  out[lane * 5 + 0] = __shfl_sync(~0u, value, 3);
  out[lane * 5 + 1] = __shfl_up_sync(~0u, value, 2);
  out[lane * 5 + 2] = __shfl_down_sync(~0u, value, 5);
  out[lane * 5 + 3] = __shfl_xor_sync(~0u, value, 9);
  out[lane * 5 + 4] = __shfl_sync(~0u, value, lane + 1, 8);
}

TEST(warp_shuffles) {
  Device<int> out(32 * 5);
  launch(shuffles, {dim3(1), dim3(32)}, out.data());
  const auto got = out.get();
  for (int lane = 0; lane < 32; ++lane) {
    const std::vector<int> expected{103, 100 + (lane < 2 ? lane : lane - 2),
                                    100 + (lane + 5 > 31 ? lane : lane + 5), 100 + (lane ^ 9),
                                    100 + lane / 8 * 8 + (lane + 1) % 8};
    EXPECT_SAME(std::vector<int>(got.begin() + lane * 5, got.begin() + lane * 5 + 5), expected, "lane ",
                lane);
  }
}

__global__ void double_shuffle(double* out) {
  out[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x + 0.25, 1);
}

TEST(warp_shuffle_of_doubles) {
  Device<double> out(32);
  launch(double_shuffle, {dim3(1), dim3(32)}, out.data());
  const auto got = out.get();
  for (size_t i = 0; i < 32; ++i) EXPECT(got[i] == static_cast<double>(i ^ 1) + 0.25, "lane ", i);
}

__global__ void half_warps(int* out) {  // disjoint masks in a branch
  const int lane = threadIdx.x;
  int v;
  if (lane < 16)
    v = __shfl_xor_sync(0x0000FFFFu, lane, 1);
  else
    v = __shfl_down_sync(0xFFFF0000u, lane, 1);
  out[lane] = v;
  __syncwarp();
  if (lane & 1) out[lane - 1] += 1000;
}

TEST(half_warp_masks_and_syncwarp) {
  Device<int> out(32);
  launch(half_warps, {dim3(1), dim3(32)}, out.data());
  const auto got = out.get();
  for (int lane = 0; lane < 32; ++lane) {
    const int moved = lane < 16 ? lane ^ 1 : lane == 31 ? 31 : lane + 1;
    EXPECT(got[static_cast<size_t>(lane)] == moved + (lane % 2 ? 0 : 1000), "lane ", lane);
  }
}

__global__ void partial_warp(int* out) {  // 40 threads: the second warp has 8 lanes
  const unsigned lanes = threadIdx.x < 32 ? ~0u : 0xFFu;
  out[threadIdx.x] = static_cast<int>(__ballot_sync(lanes, 1));
}

TEST(partial_warp_ballot) {
  Device<int> out(40);
  launch(partial_warp, {dim3(1), dim3(40)}, out.data());
  EXPECT(out.get()[0] == -1 && out.get()[39] == 0xFF);
}

// ---- block barriers
// ---------------------------------------------------------------------------------------------

__global__ void reverse_block(const int* x, int* y) {
  CUDA_SHARED(int[256], tile);
  const int t = threadIdx.x, base = blockIdx.x * 256;
  tile[t] = x[base + t];
  __syncthreads();
  y[base + t] = tile[255 - t];
}

TEST(barrier_and_static_shared) {
  Device<int> x(range(768)), y(768);
  launch(reverse_block, {dim3(3), dim3(256)}, x.data(), y.data());
  const auto got = y.get();
  for (int i = 0; i < 768; ++i) EXPECT(got[static_cast<size_t>(i)] == i / 256 * 256 + 255 - i % 256);
}

__global__ void ping_pong(int* out) {  // one barrier per round with two buffers
  CUDA_SHARED(int[2][128], buffer);
  const int t = threadIdx.x;
  buffer[0][t] = t;
  __syncthreads();
  for (int round = 0; round < 6; ++round) {
    buffer[~round & 1][t] = buffer[round & 1][(t + 1) & 127] + 1;
    __syncthreads();
  }
  out[blockIdx.x * 128 + t] = buffer[0][t];
}

TEST(one_barrier_per_round) {
  Device<int> out(256);
  launch(ping_pong, {dim3(2), dim3(128)}, out.data());
  const auto got = out.get();
  for (int i = 0; i < 256; ++i) EXPECT(got[static_cast<size_t>(i)] == (i % 128 + 6) % 128 + 6);
}

__global__ void vote_in_block(int* out) {
  const int count = __syncthreads_count(threadIdx.x % 5 == 0), any = __syncthreads_or(threadIdx.x == 1000);
  out[threadIdx.x] = count * 2 + (any != 0);
}

TEST(barrier_votes) {
  Device<int> out(64);
  launch(vote_in_block, {dim3(1), dim3(64)}, out.data());
  for (int v : out.get()) EXPECT(v == 26);
}

__global__ void dynamic_reverse(int* y, int n) {
  int* tile = dyn_smem<int>();
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  y[threadIdx.x] = tile[n - 1 - static_cast<int>(threadIdx.x)] + static_cast<int>(smem_address(tile) % 1024);
}

TEST(dynamic_shared_is_1024_aligned) {
  Device<int> y(96);
  launch(dynamic_reverse, {dim3(1), dim3(96), 96 * sizeof(int)}, y.data(), 96);
  for (int i = 0; i < 96; ++i) EXPECT(y.get()[static_cast<size_t>(i)] == 95 - i);
}

__global__ void producer_consumer(int* out) {  // warp 0 fills, warp 1 reads, named barriers both ways
  CUDA_SHARED(int[32], slot);
  const int lane = threadIdx.x & 31;
  for (int round = 0; round < 4; ++round) {
    if (threadIdx.x < 32) {
      if (round) named_barrier_sync(2, 64);
      slot[lane] = round * 100 + lane;
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      out[round * 32 + lane] = slot[31 - lane];
      if (round < 3) named_barrier_arrive(2, 64);
    }
  }
}

TEST(named_barriers) {
  Device<int> out(128);
  launch(producer_consumer, {dim3(1), dim3(64)}, out.data());
  const auto got = out.get();
  for (int i = 0; i < 128; ++i) EXPECT(got[static_cast<size_t>(i)] == i / 32 * 100 + 31 - i % 32);
}

// ---- atomics, blocks, launches
// --------------------------------------------------------------------------------

__global__ void histogram(const int* x, int* h, int n) {
  CUDA_SHARED(int[16], part);
  if (threadIdx.x < 16) part[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(&part[x[i] & 15], 1);
  __syncthreads();
  if (threadIdx.x < 16) atomicAdd(&h[threadIdx.x], part[threadIdx.x]);
}

TEST(shared_and_global_atomics) {
  Device<int> x(range(1000)), h(std::vector<int>(16, 0));
  launch(histogram, {dim3(3), dim3(64)}, x.data(), h.data(), 1000);
  const auto got = h.get();
  for (int i = 0; i < 16; ++i) EXPECT(got[static_cast<size_t>(i)] == (i < 1000 % 16 ? 63 : 62));
}

__global__ void last_block_sums(const int* x, int* part, unsigned* ticket, int* out, int n) {
  CUDA_SHARED(int, last);
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  sum = __reduce_add_sync(~0u, sum);
  if (threadIdx.x == 0) {
    part[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 0) {
    __threadfence();
    int total = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) total += part[b];
    *out = total;
  }
}

TEST(fenced_hand_over_between_blocks) {
  Device<int> x(range(1000)), part(8), out(1);
  Device<unsigned> ticket(std::vector<unsigned>{0});
  launch(last_block_sums, {dim3(8), dim3(32)}, x.data(), part.data(), ticket.data(), out.data(), 1000);
  EXPECT(out.get()[0] == 499500);
}

__global__ void coordinates(int* out) {
  const int block = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  out[block * 12 + thread] = block * 1000 + thread;
}

TEST(three_dimensional_launch) {
  Device<int> out(24 * 12);
  launch(coordinates, {dim3(4, 3, 2), dim3(2, 3, 2)}, out.data());
  const auto got = out.get();
  for (int i = 0; i < 24 * 12; ++i) EXPECT(got[static_cast<size_t>(i)] == i / 12 * 1000 + i % 12);
}

__global__ void early_exit(
    int* out) {  // legal: what follows is no barrier, and the ballot names the lanes left
  if (threadIdx.x >= 40) return;
  out[threadIdx.x] = static_cast<int>(__ballot_sync(threadIdx.x < 32 ? ~0u : 0xFFu, 1));
}

TEST(early_return) {
  Device<int> out(40);
  launch(early_exit, {dim3(1), dim3(64)}, out.data());
  EXPECT(out.get()[39] == 0xFF);
}

// Each launch is ordered after all earlier ones, however many there have been.
__global__ void one_writes(int* y, unsigned who) {
  if (threadIdx.x == who) y[0] = static_cast<int>(who);
}

TEST(thousands_of_launches) {
  Device<int> y(1);
  for (unsigned i = 0; i < 5000; ++i) launch(one_writes, {dim3(1), dim3(2)}, y.data(), i % 2);
  EXPECT(y.get()[0] == 1);
}

}  // namespace

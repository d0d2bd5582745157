// One-bit masks of a function's argument, a whole warp at a time.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr int64_t kMaskTile = 1024;  // elements of which a warp makes 32 mask words

// The 32 mask words of one tile. A word's bits come from neighbouring lanes; lane i stores word i, so that
// loads and stores are whole lines. sink(place, vector) sees every vector with its place in the tile.
template <class T, class Passes, class Sink>
RAD_DEVICE void mask_tile(const T* x, uint32_t* mask, int lane, const Passes& passes, const Sink& sink) {
  constexpr int kCount = kPerVector<T>, kLanesPerWord = 32 / kCount, kRounds = kMaskTile / (32 * kCount);
  using Chunk = Vector<T, kCount>;
  uint32_t own_word = 0;
#pragma unroll 4  // loads in flight; all rounds at once would spill
  for (int round = 0; round < kRounds; ++round) {
    const int chunk = round * 32 + lane;
    const Chunk values = reinterpret_cast<const Chunk*>(x)[chunk];
    uint32_t word = 0;
#pragma unroll
    for (int e = 0; e < kCount; ++e)
      word |= static_cast<unsigned>(passes(values.item[e])) << (lane % kLanesPerWord * kCount + e);
    sink(chunk, values);
#pragma unroll
    for (int step = 1; step < kLanesPerWord; step *= 2) word |= __shfl_xor_sync(kFullWarp, word, step);
    // This round made the words of lanes [round, round + 1) * kCount.
    const uint32_t word_for_lane = __shfl_sync(kFullWarp, word, lane % kCount * kLanesPerWord);
    if (lane / kCount == round) own_word = word_for_lane;
  }
  mask[lane] = own_word;
}

// Tiles first, then word by word what is left (everything, where pointers are unaligned). sink(tile) makes a
// tile's sink, and rest(i, value) sees the elements that are left.
template <class T, class Passes, class Sink, class Rest>
RAD_DEVICE void make_mask(const T* x, uint32_t* mask, int64_t n, int64_t tiles, const Passes& passes,
                          const Sink& sink, const Rest& rest) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t t = warp; t < tiles; t += warps)
    mask_tile(x + t * kMaskTile, mask + t * (kMaskTile / 32), lane, passes, sink(t));
  for (int64_t w = tiles * (kMaskTile / 32) + warp; w * 32 < n; w += warps) {
    const int64_t i = w * 32 + lane;
    const T v = i < n ? x[i] : narrow<T>(0);
    if (i < n) rest(i, v);
    const uint32_t word = __ballot_sync(kFullWarp, static_cast<int>(i < n && passes(v)));
    if (lane == 0) mask[w] = word;
  }
}

// A warp to a tile or to a word of the rest.
inline LaunchConfig over_mask(int64_t n, int64_t tiles, void* stream) {
  const int64_t rest_words = (n - tiles * kMaskTile + 31) / 32;
  return {dim3(blocks_for(tiles + rest_words, kThreads / 32)), dim3(kThreads), 0, stream};
}

}  // namespace rad::cuda

#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;
constexpr int64_t kTile = 1024;  // elements of which a warp makes 32 mask words

template <class T>
RAD_DEVICE T rectified(T v) {
  return widen(v) < 0 ? narrow<T>(0) : v;
}
template <class T>
RAD_DEVICE unsigned passes(T v) {  // NaN passes
  return !(widen(v) <= 0);
}

// 32 mask words of one tile. A word's bits come from neighbouring lanes; lane i stores word i, so that loads
// and stores are whole lines.
template <class T>
RAD_DEVICE void relu_tile(const T* x, T* y, uint32_t* mask, int lane) {
  constexpr int kCount = kPerVector<T>, kLanesPerWord = 32 / kCount, kRounds = kTile / (32 * kCount);
  using Chunk = Vector<T, kCount>;
  uint32_t own_word = 0;
#pragma unroll 4  // loads in flight; all rounds at once would spill
  for (int round = 0; round < kRounds; ++round) {
    const int chunk = round * 32 + lane;
    Chunk values = reinterpret_cast<const Chunk*>(x)[chunk];
    uint32_t word = 0;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      word |= passes(values.item[e]) << (lane % kLanesPerWord * kCount + e);
      values.item[e] = rectified(values.item[e]);
    }
    reinterpret_cast<Chunk*>(y)[chunk] = values;
#pragma unroll
    for (int step = 1; step < kLanesPerWord; step *= 2) word |= __shfl_xor_sync(kFullWarp, word, step);
    // This round made the words of lanes [round, round + 1) * kCount.
    const uint32_t word_for_lane = __shfl_sync(kFullWarp, word, lane % kCount * kLanesPerWord);
    if (lane / kCount == round) own_word = word_for_lane;
  }
  mask[lane] = own_word;
}

// Tiles first, then word by word what is left (everything, where pointers are unaligned).
template <class T>
__global__ void __launch_bounds__(kThreads)
    relu_kernel(const T* x, T* y, uint32_t* mask, int64_t n, int64_t tiles) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  for (int64_t t = warp; t < tiles; t += warps)
    relu_tile(x + t * kTile, y + t * kTile, mask + t * (kTile / 32), lane);
  for (int64_t w = tiles * (kTile / 32) + warp; w * 32 < n; w += warps) {
    const int64_t i = w * 32 + lane;
    const T v = i < n ? x[i] : narrow<T>(0);
    if (i < n) y[i] = rectified(v);
    const uint32_t word = __ballot_sync(kFullWarp, static_cast<int>(passes(v)));
    if (lane == 0) mask[w] = word;
  }
}

// dx = mask ? dy : 0, a vector per thread; the last elements (all, where pointers are unaligned) one by one.
template <class Item>
__global__ void __launch_bounds__(kThreads)
    masked_kernel(const Item* dy, const uint32_t* mask, Item* dx, int64_t n, int64_t vectors) {
  constexpr int kCount = kPerVector<Item>;
  using Chunk = Vector<Item, kCount>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t v = first; v < vectors; v += step) {
    Chunk values = reinterpret_cast<const Chunk*>(dy)[v];
    const uint32_t bits = mask[v * kCount / 32] >> (v * kCount % 32);
#pragma unroll
    for (int e = 0; e < kCount; ++e) values.item[e] = bits >> e & 1u ? values.item[e] : Item{};
    reinterpret_cast<Chunk*>(dx)[v] = values;
  }
  for (int64_t i = vectors * kCount + first; i < n; i += step)
    dx[i] = mask[i / 32] >> (i % 32) & 1u ? dy[i] : Item{};
}

}  // namespace

int relu(const ReluArgs& args) {
  if (args.n == 0) return 0;
  const bool whole = aligned(args.x, kVectorBytes) && aligned(args.y, kVectorBytes);
  const int64_t tiles = whole ? args.n / kTile : 0, rest_words = (args.n - tiles * kTile + 31) / 32;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(relu_kernel<T>,
                  {dim3(blocks_for(tiles + rest_words, kThreads / 32)), dim3(kThreads), 0, args.exec.stream},
                  static_cast<const T*>(args.x), static_cast<T*>(args.y), args.mask, args.n, tiles);
  });
}

int masked(const MaskedArgs& args) {
  if (args.n == 0) return 0;
  const bool whole = aligned(args.dy, kVectorBytes) && aligned(args.dx, kVectorBytes);
  return visit_item(item_size(args.dtype), [&](auto tag) {
    using Item = typename decltype(tag)::type;
    const int64_t vectors = whole ? args.n / kPerVector<Item> : 0, rest = args.n - vectors * kPerVector<Item>;
    return launch(
        masked_kernel<Item>,
        {dim3(blocks_for(vectors > rest ? vectors : rest, kThreads)), dim3(kThreads), 0, args.exec.stream},
        static_cast<const Item*>(args.dy), args.mask, static_cast<Item*>(args.dx), args.n, vectors);
  });
}

}  // namespace rad::cuda

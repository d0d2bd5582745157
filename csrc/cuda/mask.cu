#include "cuda/mask.cuh"

namespace rad::cuda {
namespace {

template <class T>
RAD_DEVICE T rectified(T v) {
  return widen(v) < 0 ? narrow<T>(0) : v;
}
template <class T>
RAD_DEVICE bool passes(T v) {  // NaN passes
  return !(widen(v) <= 0);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    relu_kernel(const T* x, T* y, uint32_t* mask, int64_t n, int64_t tiles) {
  using Chunk = Vector<T, kPerVector<T>>;
  const auto rectify = [y](int64_t tile) {
    return [to = reinterpret_cast<Chunk*>(y + tile * kMaskTile)](int place, Chunk values) {
#pragma unroll
      for (T& item : values.item) item = rectified(item);
      to[place] = values;
    };
  };
  make_mask(
      x, mask, n, tiles, [](T v) { return passes(v); }, rectify,
      [y](int64_t i, T v) { y[i] = rectified(v); });
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
  const int64_t tiles = whole ? args.n / kMaskTile : 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(relu_kernel<T>, over_mask(args.n, tiles, args.exec.stream), static_cast<const T*>(args.x),
                  static_cast<T*>(args.y), args.mask, args.n, tiles);
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

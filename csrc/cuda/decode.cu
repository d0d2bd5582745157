#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

// Some lines of one tile.
struct LineRange {
  int64_t tile, first, count;
};

template <class T, class Out>
RAD_DEVICE void load_octet(const SavedView& saved, const Seed& seed, const LineRange& range, int64_t i,
                           int64_t first, int64_t width, Out (&out)[kOctet]) {
  const int64_t line = range.first + i;
  if (saved.layout.bits) {
    Accumulate<T> value[kOctet];
    decode_octet<T>(saved, seed, range.tile, line, first, value);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) out[e] = narrow<Out>(value[e]);
    return;
  }
  const T* from = saved.plane<const T>(saved.layout.line_offset(range.tile, line)) + first;
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    const T item = first + e < width ? from[e] : narrow<T>(0);
    if constexpr (std::is_same_v<T, Out>)
      out[e] = item;
    else
      out[e] = widen(item);
  }
}

// out [range.count, width]: an octet per thread.
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kResident)
    decode_kernel(SavedView saved, LineRange range, Out* out, bool vector_store) {
  constexpr int kCount = kPerVector<Out>;
  const Seed seed = saved.key().seed();
  const int64_t width = saved.layout.tile_width(range.tile);
  const int64_t line_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kOctet;
  const int64_t start = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kOctet;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < range.count;
       i += line_step) {
    for (int64_t first = start; first < width; first += step) {
      alignas(kVectorBytes) Out value[kOctet];
      load_octet<T>(saved, seed, range, i, first, width, value);
      Out* to = out + i * width + first;
      if (vector_store) {
#pragma unroll
        for (int v = 0; v < kOctet; v += kCount)
          *reinterpret_cast<Vector<Out, kCount>*>(to + v) =
              *reinterpret_cast<Vector<Out, kCount>*>(value + v);
      } else {
#pragma unroll
        for (int e = 0; e < kOctet; ++e)
          if (first + e < width) to[e] = value[e];
      }
    }
  }
}

template <class T, class Out>
int decode_lines(const DecodeArgs& args, const SavedView& saved) {
  const int64_t tile = args.begin / saved.layout.lines, width = saved.layout.tile_width(tile);
  const LineRange range{tile, args.begin - tile * saved.layout.lines, args.end - args.begin};
  const bool vector_store = width % kOctet == 0 && aligned(args.out, kVectorBytes);
  return launch(decode_kernel<T, Out>,
                over_matrix(range.count, (width + kOctet - 1) / kOctet, args.exec.stream), saved, range,
                static_cast<Out*>(args.out), vector_store);
}

}  // namespace

int decode(const DecodeArgs& args) {
  if (args.begin >= args.end || args.features == 0) return 0;
  const SavedView saved(args.spec, args.dtype, args.rows, args.features, args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return args.widen ? decode_lines<T, Accumulate<T>>(args, saved) : decode_lines<T, T>(args, saved);
  });
}

}  // namespace rad::cuda

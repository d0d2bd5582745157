#include "cuda/row_copy.cuh"
#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

// Some lines of one tile.
struct LineRange {
  int64_t tile, first, count;
};

// Stores an octet whose first `count` values exist.
template <class Out>
RAD_DEVICE void store_values(Out* to, const Out (&value)[kOctet], int64_t count, bool vectors) {
  if (vectors) return store_whole(to, 0, value);
#pragma unroll
  for (int e = 0; e < kOctet; ++e)
    if (e < count) to[e] = value[e];
}

// A thread walks down the lines with one octet. Nibbles: codes of four bits, all its values exist, as
// vectors.
template <bool Nibbles, class T, class Out>
RAD_DEVICE void decode_down(const OctetPlace<T>& place, const Seed& seed, const LineRange& range,
                            int64_t width, Out* out, bool vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
#pragma unroll 2
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < range.count; i += step) {
    Accumulate<T> value[kOctet];
    decode_octet<Nibbles>(place, seed, range.first + i, value);
    Out result[kOctet];
#pragma unroll
    for (int e = 0; e < kOctet; ++e) result[e] = narrow<Out>(value[e]);
    store_values(out + i * width, result, place.count, Nibbles || vectors);
  }
}

// out [range.count, width]
template <class T, class Out>
__global__ void __launch_bounds__(kThreads, kResident)
    decode_kernel(SavedView saved, LineRange range, Out* out, bool vectors) {
  const Seed seed = saved.key().seed();
  const int64_t width = saved.layout.tile_width(range.tile);
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kOctet;
  const int64_t start = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kOctet;
  for (int64_t first = start; first < width; first += step) {
    const OctetPlace<T> place(saved, range.tile, first);
    if (place.bits == 4 && vectors)
      decode_down<true>(place, seed, range, width, out + first, vectors);
    else
      decode_down<false>(place, seed, range, width, out + first, vectors);
  }
}

// Plain values widened; those that keep their type are moved as bits.
template <class T, class Out>
RAD_DEVICE Out converted(T value) {
  if constexpr (std::is_same_v<T, Out>)
    return value;
  else
    return widen(value);
}
template <class T, class Out, int Count>
__global__ void __launch_bounds__(kThreads) copy_kernel(MatrixView lines, Vector<Out, Count>* out) {
  copy_rows<Vector<T, Count>>(
      lines, lines.rows, [](int64_t i) { return i; }, out,
      [](int64_t, const Vector<T, Count>& from) {
        Vector<Out, Count> to;
#pragma unroll
        for (int e = 0; e < Count; ++e) to.item[e] = converted<T, Out>(from.item[e]);
        return to;
      });
}

template <class T, class Out, int Count>
int copy_lines(const DecodeArgs& args, const MatrixView& lines) {
  const MatrixView units = in_units(lines, sizeof(T), sizeof(T) * Count);
  return launch(copy_kernel<T, Out, Count>, over_lines(units.rows, units.cols, kRowsAhead, args.exec.stream),
                units, static_cast<Vector<Out, Count>*>(args.out));
}

template <class T, class Out>
int decode_lines(const DecodeArgs& args, const SavedView& saved) {
  const SavedLayout& m = saved.layout;
  const int64_t tile = args.begin / m.lines, width = m.tile_width(tile);
  const LineRange range{tile, args.begin - tile * m.lines, args.end - args.begin};
  if (!m.bits) {
    constexpr int kCount = kPerVector<Out>;
    const auto* from = saved.plane<const T>(m.line_offset(tile, range.first));
    const bool vectors =
        width % kCount == 0 && aligned(from, sizeof(T) * kCount) && aligned(args.out, kVectorBytes);
    const MatrixView lines = contiguous_matrix(from, range.count, width);
    return vectors ? copy_lines<T, Out, kCount>(args, lines) : copy_lines<T, Out, 1>(args, lines);
  }
  const bool vectors = width % kOctet == 0 && aligned(args.out, kVectorBytes);
  return launch(decode_kernel<T, Out>,
                over_lines(range.count, (width + kOctet - 1) / kOctet, kAhead, args.exec.stream), saved,
                range, static_cast<Out*>(args.out), vectors);
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

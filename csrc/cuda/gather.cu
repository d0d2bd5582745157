#include "cuda/row_copy.cuh"

namespace rad::cuda {
namespace {

template <class Unit>
__global__ void gather_kernel(MatrixView source, const int64_t* index, int64_t count, Unit* out) {
  copy_rows<Unit>(source, count, [&](int64_t i) { return index[i]; }, out, [](int64_t, Unit v) { return v; });
}

template <class Sum>
struct Scale {
  const float* weight;  // or null
  int64_t split;
  Sum head, tail;
  RAD_DEVICE Sum operator()(int64_t i) const {
    return weight ? static_cast<Sum>(weight[i]) : i >= split ? tail : head;
  }
};

// Count values at a time.
template <class T, class Out, int Count>
__global__ void __launch_bounds__(kThreads)
    gather_scaled_kernel(MatrixView source, const int64_t* index, int64_t count, Scale<Accumulate<T>> scale,
                         Vector<Out, Count>* out) {
  copy_rows<Vector<T, Count>>(
      source, count, [&](int64_t i) { return index[i]; }, out,
      [&](int64_t i, const Vector<T, Count>& from) {
        const Accumulate<T> factor = scale(i);
        Vector<Out, Count> to;
#pragma unroll
        for (int e = 0; e < Count; ++e) to.item[e] = narrow<Out>(widen(from.item[e]) * factor);
        return to;
      });
}

template <class T, class Out, int Count>
int launch_scaled(const GatherArgs& args) {
  using Sum = Accumulate<T>;
  const Scale<Sum> scale{args.weight, args.split, static_cast<Sum>(args.scale[0]),
                         static_cast<Sum>(args.scale[1])};
  const MatrixView source = in_units(args.source, sizeof(T), sizeof(T) * Count);
  return launch(gather_scaled_kernel<T, Out, Count>,
                over_lines(args.count, source.cols, kRowsAhead, args.exec.stream), source, args.index,
                args.count, scale, static_cast<Vector<Out, Count>*>(args.out));
}

// Vectors where rows start and end with whole ones on both sides.
template <class T, class Out>
int gather_scaled(const GatherArgs& args) {
  constexpr int kCount = kPerVector<Out>;
  const bool vectors = rows_aligned(args.source, sizeof(T), sizeof(T) * kCount) &&
                       aligned(args.out, kVectorBytes) && args.source.cols % kCount == 0;
  return vectors ? launch_scaled<T, Out, kCount>(args) : launch_scaled<T, Out, 1>(args);
}

}  // namespace

int gather(const GatherArgs& args) {
  const MatrixView& m = args.source;
  if (args.count == 0 || m.cols == 0) return 0;
  if (args.widen || args.weight || args.scale[0] != 1 || args.scale[1] != 1) {
    return visit_dtype(args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      return args.widen ? gather_scaled<T, Accumulate<T>>(args) : gather_scaled<T, T>(args);
    });
  }
  const int64_t item = item_size(args.dtype), unit = copy_unit(m, item, args.out);
  return visit_unit(unit, [&](auto tag) {
    using Unit = typename decltype(tag)::type;
    const MatrixView source = in_units(m, item, unit);
    return launch(gather_kernel<Unit>, over_lines(args.count, source.cols, kRowsAhead, args.exec.stream),
                  source, args.index, args.count, static_cast<Unit*>(args.out));
  });
}

}  // namespace rad::cuda

#include "cuda/common.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct ScatterParams {
  int64_t rows, count, cols, split;
  const T* packed;
  const int64_t* index;
  T* out;
  Accumulate<T> head, tail;  // scales before and from `split` on
  bool vector_store;
};

// The first j with index[j] >= column.
RAD_DEVICE int64_t lower_bound(const int64_t* index, int64_t count, int64_t column) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    if (index[low + half] < column) {
      low += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

// The sum of the entries of `packed` that belong to `column`, which start at j if there are any.
template <class T>
RAD_DEVICE T column_sum(const ScatterParams<T>& p, const T* packed, int64_t column, int64_t& j) {
  if (j >= p.count || p.index[j] != column) return narrow<T>(0);
  const auto scaled = [&] { return product(widen(packed[j]), j >= p.split ? p.tail : p.head); };
  Accumulate<T> sum = scaled();
  for (++j; j < p.count && p.index[j] == column; ++j) sum += scaled();
  return narrow<T>(sum);
}

// Each thread owns one vector of columns and looks up once where their entries start.
template <class T>
__global__ void scatter_kernel(ScatterParams<T> p) {
  constexpr int kCount = kPerVector<T>;
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x * kCount;
  for (int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount; c < p.cols;
       c += col_step) {
    const int64_t first = lower_bound(p.index, p.count, c);
    for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += row_step) {
      Vector<T, kCount> values;
      int64_t j = first;
#pragma unroll
      for (int e = 0; e < kCount; ++e) values.item[e] = column_sum(p, p.packed + r * p.count, c + e, j);
      T* to = p.out + r * p.cols + c;
      if (p.vector_store) {
        *reinterpret_cast<Vector<T, kCount>*>(to) = values;
      } else {
#pragma unroll
        for (int e = 0; e < kCount; ++e)
          if (c + e < p.cols) to[e] = values.item[e];
      }
    }
  }
}

// Rows per thread: enough to spread the search for the entries, few enough to fill the device.
constexpr int64_t kRowsPerThread = 8;

}  // namespace

int scatter(const ScatterArgs& args) {
  if (args.rows == 0 || args.cols == 0) return 0;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = Accumulate<T>;
    const ScatterParams<T> params{args.rows,
                                  args.count,
                                  args.cols,
                                  args.split,
                                  static_cast<const T*>(args.packed),
                                  args.index,
                                  static_cast<T*>(args.out),
                                  static_cast<Sum>(args.scale[0]),
                                  static_cast<Sum>(args.scale[1]),
                                  aligned(args.out, kVectorBytes) && args.cols % kPerVector<T> == 0};
    const int64_t rows = (args.rows + kRowsPerThread - 1) / kRowsPerThread;
    const int64_t vectors = (args.cols + kPerVector<T> - 1) / kPerVector<T>;
    return launch(scatter_kernel<T>, over_matrix(rows, vectors, args.exec.stream), params);
  });
}

}  // namespace rad::cuda

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

// Where the entries of a vector of columns lie, looked up once for all rows.
template <class T>
struct VectorEntries {
  static constexpr int kCount = kPerVector<T>;
  int64_t first;   // the least entry at or behind the vector's first column
  int at[kCount];  // of each column, counted from `first`; negative where it has none
  Accumulate<T> scale[kCount];
  bool distinct = true;  // no column has two

  RAD_DEVICE VectorEntries(const ScatterParams<T>& p, int64_t column)
      : first(lower_bound(p.index, p.count, column)) {
    int64_t j = first;
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const bool present = j < p.count && p.index[j] == column + e;
      at[e] = present ? static_cast<int>(j - first) : -1;
      scale[e] = j >= p.split ? p.tail : p.head;
      if (!present) continue;
      for (++j; j < p.count && p.index[j] == column + e; ++j) distinct = false;
    }
  }

  RAD_DEVICE T value(const T* packed, int e) const {
    T found = narrow<T>(0);
    if (at[e] >= 0) found = narrow<T>(product(widen(packed[first + at[e]]), scale[e]));
    return found;
  }
};

// Stores the vector of columns at c of this thread's rows: fill(packed row, values).
template <class T, class Fill>
RAD_DEVICE void each_row(const ScatterParams<T>& p, int64_t c, const Fill& fill) {
  constexpr int kCount = kPerVector<T>;
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += row_step) {
    Vector<T, kCount> values;
    fill(p.packed + r * p.count, values);
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

// Each thread owns one vector of columns.
template <class T>
__global__ void scatter_kernel(ScatterParams<T> p) {
  constexpr int kCount = kPerVector<T>;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x * kCount;
  for (int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount; c < p.cols;
       c += col_step) {
    const VectorEntries<T> entries(p, c);
    if (entries.distinct) {
      each_row(p, c, [&](const T* packed, Vector<T, kCount>& values) {
#pragma unroll
        for (int e = 0; e < kCount; ++e) values.item[e] = entries.value(packed, e);
      });
    } else {
      each_row(p, c, [&](const T* packed, Vector<T, kCount>& values) {
        int64_t j = entries.first;
#pragma unroll
        for (int e = 0; e < kCount; ++e) values.item[e] = column_sum(p, packed, c + e, j);
      });
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

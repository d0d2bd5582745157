#include "cuda/row_copy.cuh"
#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

// ---- plain values -----------------------------------------------------------------------------------------

// Which row of the activation line `line` of a tile is; without a list, row `line`.
struct RowList {
  const int64_t* index;
  int64_t lines;
  RAD_DEVICE int64_t operator()(int64_t tile, int64_t line) const {
    return index ? index[tile * lines + line] : line;
  }
};

// Whole rows, or tile by tile of features: out [tiles][lines][width].
struct RowTiles {
  int64_t tiles, width, last_width;  // widths in units
};

template <class Unit>
__global__ void __launch_bounds__(kThreads)
    pack_rows_kernel(MatrixView x, RowList rows, RowTiles shape, Unit* out, TrailerWriter trailer) {
  trailer.write();
  for (int64_t tile = blockIdx.z; tile < shape.tiles; tile += gridDim.z) {
    MatrixView part = x;
    part.data = static_cast<const Unit*>(x.data) + tile * shape.width * x.col_stride;
    part.cols = tile + 1 == shape.tiles ? shape.last_width : shape.width;
    copy_rows<Unit>(
        part, rows.lines, [&](int64_t i) { return rows(tile, i); }, out + tile * rows.lines * shape.width,
        [](int64_t, Unit v) { return v; });
  }
}

// The columns that stored entries j and j + 1 (j even) of row r come from.
struct ListedColumns {
  const int64_t* index;
  int64_t k;
  RAD_DEVICE void operator()(int64_t, int64_t j, int64_t (&column)[2]) const {
    column[0] = index[j];
    column[1] = j + 1 < k ? index[j + 1] : 0;
  }
};
struct DrawnColumns {
  Sampler sampler;
  RAD_DEVICE void operator()(int64_t r, int64_t j, int64_t (&column)[2]) const {
    const Words words = sampler.call(r, j >> 1);
    column[0] = sampler.index(words, j);
    column[1] = sampler.index(words, j + 1);
  }
};

// Stored entries [j, j + Count) of a row, zero past the last; j is even.
template <int Count, class Item, class Columns>
RAD_DEVICE void read_columns(const Item* row, int64_t col_stride, int64_t r, int64_t j, int64_t k,
                             const Columns& columns, Item (&value)[Count]) {
#pragma unroll
  for (int e = 0; e < Count; e += 2) {
    int64_t column[2] = {};
    if (j + e < k) columns(r, j + e, column);
    value[e] = j + e < k ? row[column[0] * col_stride] : Item{};
    value[e + 1] = j + e + 1 < k ? row[column[1] * col_stride] : Item{};
  }
}

// out [x.rows, k]: each thread moves one vector of a row's stored entries.
template <class Item, class Columns>
RAD_DEVICE void pack_columns(const MatrixView& x, int64_t k, const Columns& columns, Item* out) {
  constexpr int kCount = kPerVector<Item>;
  const bool vector_store = k % kCount == 0;
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x * kCount;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < x.rows; r += row_step) {
    const Item* row = static_cast<const Item*>(x.data) + offset_of_row(x, r);
    for (int64_t j = first; j < k; j += col_step) {
      Vector<Item, kCount> values;
      read_columns(row, x.col_stride, r, j, k, columns, values.item);
      Item* to = out + r * k + j;
      if (vector_store) {
        *reinterpret_cast<Vector<Item, kCount>*>(to) = values;
      } else {
#pragma unroll
        for (int e = 0; e < kCount; ++e)
          if (j + e < k) to[e] = values.item[e];
      }
    }
  }
}

template <class Item>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_same_kernel(MatrixView x, const int64_t* index, int64_t k, Item* out, TrailerWriter trailer) {
  trailer.write();
  pack_columns<Item>(x, k, ListedColumns{index, k}, out);
}

template <class Item>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_different_kernel(MatrixView x, Sampler plan, KeySource source, Item* out, TrailerWriter trailer) {
  trailer.write();
  pack_columns<Item>(x, plan.k(), DrawnColumns{keyed(plan, source)}, out);
}

// ---- codes ------------------------------------------------------------------------------------------------

// Where the values to encode come from: octet `first` of a line, to be read up to `width`.
template <class T>
struct RowOctets {
  MatrixView x;
  RowList rows;
  bool vectors;  // rows start at multiples of an octet's bytes

  RAD_DEVICE void operator()(int64_t tile, int64_t line, int64_t first, int64_t width,
                             T (&value)[kOctet]) const {
    const T* from = static_cast<const T*>(x.data) + offset_of_row(x, rows(tile, line)) +
                    (tile * kTileWidth + first) * x.col_stride;
    constexpr int kCount = kPerVector<T>;
    if (vectors && first + kOctet <= width) {
#pragma unroll
      for (int v = 0; v < kOctet / kCount; ++v) {
        const auto part = reinterpret_cast<const Vector<T, kCount>*>(from)[v];
#pragma unroll
        for (int e = 0; e < kCount; ++e) value[v * kCount + e] = part.item[e];
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) value[e] = first + e < width ? from[e * x.col_stride] : narrow<T>(0);
  }
};

template <class T, class Columns>
struct ColumnOctets {
  MatrixView x;
  Columns columns;

  RAD_DEVICE void operator()(int64_t, int64_t line, int64_t first, int64_t width, T (&value)[kOctet]) const {
    const T* row = static_cast<const T*>(x.data) + offset_of_row(x, line);
    read_columns(row, x.col_stride, line, first, width, columns, value);
  }
};

template <class T, class Octets>
RAD_DEVICE void encode_lines(const SavedView& saved, const Seed& seed, const Octets& octets) {
  const SavedLayout& m = saved.layout;
  const int64_t line_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kOctet;
  const int64_t start = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kOctet;
  for (int64_t tile = blockIdx.z; tile < m.tiles; tile += gridDim.z) {
    const int64_t width = m.tile_width(tile);
    for (int64_t line = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; line < m.lines;
         line += line_step) {
      // A team goes through the loop together, past the line's end too.
      for (int64_t first = start; first / kGroup * kGroup < width; first += step) {
        T item[kOctet];
        octets(tile, line, first, width, item);
        Accumulate<T> value[kOctet];
#pragma unroll
        for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
        encode_octet<T>(saved, seed, tile, line, first, value);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    encode_rows_kernel(SavedView saved, KeySource source, RowOctets<T> octets, TrailerWriter trailer) {
  trailer.write();
  encode_lines<T>(saved, source.seed(), octets);
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    encode_same_kernel(SavedView saved, KeySource source, MatrixView x, const int64_t* index,
                       TrailerWriter trailer) {
  trailer.write();
  encode_lines<T>(saved, source.seed(), ColumnOctets<T, ListedColumns>{x, {index, saved.layout.width}});
}

template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    encode_different_kernel(SavedView saved, KeySource source, MatrixView x, Sampler plan,
                            TrailerWriter trailer) {
  trailer.write();
  encode_lines<T>(saved, source.seed(), ColumnOctets<T, DrawnColumns>{x, {keyed(plan, source)}});
}

// ---- launches ---------------------------------------------------------------------------------------------

struct Packing {
  const PackArgs& args;
  SavedView saved;
  KeySource source;
  TrailerWriter trailer;
  const int64_t* index;  // of rows and `same`
};

int pack_rows(const Packing& p) {
  const SavedLayout& m = p.saved.layout;
  const RowList rows{p.index, m.lines};
  if (m.bits) {
    return visit_dtype(p.args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const RowOctets<T> octets{p.args.x, rows, rows_aligned(p.args.x, sizeof(T), kVectorBytes)};
      return launch(encode_rows_kernel<T>,
                    over_matrix(m.lines, octets_of(m.width), p.args.exec.stream, m.tiles), p.saved, p.source,
                    octets, p.trailer);
    });
  }
  const int64_t unit = copy_unit(p.args.x, m.item, p.args.saved);
  return visit_unit(unit, [&](auto tag) {
    using Unit = typename decltype(tag)::type;
    const int64_t ratio = unit / m.item;
    const RowTiles shape{m.tiles, m.width / ratio, m.last_width / ratio};
    return launch(pack_rows_kernel<Unit>, over_matrix(m.lines, shape.width, p.args.exec.stream, m.tiles),
                  in_units(p.args.x, m.item, unit), rows, shape, static_cast<Unit*>(p.args.saved), p.trailer);
  });
}

int pack_columns(const Packing& p, const Sampler& plan) {
  const SavedLayout& m = p.saved.layout;
  const bool same = p.args.spec.sampling == Sampling::kSame;
  if (m.bits) {
    const LaunchConfig config = over_matrix(m.lines, octets_of(m.width), p.args.exec.stream);
    return visit_dtype(p.args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      if (same) return launch(encode_same_kernel<T>, config, p.saved, p.source, p.args.x, p.index, p.trailer);
      return launch(encode_different_kernel<T>, config, p.saved, p.source, p.args.x, plan, p.trailer);
    });
  }
  return visit_item(m.item, [&](auto tag) {
    using Item = typename decltype(tag)::type;
    const int64_t vectors = (m.width + kPerVector<Item> - 1) / kPerVector<Item>;
    const LaunchConfig config = over_matrix(m.lines, vectors, p.args.exec.stream);
    auto* out = static_cast<Item*>(p.args.saved);
    if (same) return launch(pack_same_kernel<Item>, config, p.args.x, p.index, m.width, out, p.trailer);
    return launch(pack_different_kernel<Item>, config, p.args.x, plan, p.source, out, p.trailer);
  });
}

int64_t sampled_length(const PackArgs& args) {
  return samples_rows(args.spec.sampling) ? args.x.rows : args.features;
}

}  // namespace

int64_t pack_workspace(const PackArgs& args) {
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.x.rows, args.features);
  return listed_lines(args.spec, layout) * kept(sampled_length(args), args.spec.num, args.spec.den) * 8;
}

int pack(const PackArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.x.rows, args.features, args.saved);
  const auto salt = static_cast<int64_t>(args.salt);
  Packing p{
      args, saved, {saved.trailer(), salt}, {saved.trailer(), salt, saved.data, saved.layout.gaps}, nullptr};
  const int64_t lists = listed_lines(args.spec, saved.layout), n = sampled_length(args);
  if (lists > 0) {
    auto* index = static_cast<int64_t*>(args.workspace);
    const int status = draw_indices(args.exec, args.spec, p.source, n, 0, lists, index);
    if (status != 0) return status;
    p.index = index;
  }
  if (args.spec.draw == Draw::kNorm) p.index = saved.plane<const int64_t>(saved.layout.index);
  const bool whole = samples_rows(args.spec.sampling) || args.spec.sampling == Sampling::kProject;
  return whole ? pack_rows(p) : pack_columns(p, plan_sample(args.spec, n));
}

}  // namespace rad::cuda

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

// Where the values to encode come from: octet `first` of a line, to be read up to `width`; all of it where
// Whole, which a source may refuse (`wholes`).
template <class T>
struct RowOctets {
  MatrixView x;
  RowList rows;
  static constexpr int kLines = kAhead;  // in flight
  bool wholes;                           // rows have one stride and start at multiples of a vector's bytes

  template <bool Whole>
  RAD_DEVICE void read(int64_t tile, int64_t line, int64_t first, int64_t width, T (&value)[kOctet]) const {
    const int64_t row = rows(tile, line), column = tile * kTileWidth + first;
    const T* data = static_cast<const T*>(x.data);
    if constexpr (Whole) {
      load_whole(data + row * x.stride[2] + column, 0, value);
    } else {
      const T* from = data + offset_of_row(x, row) + column * x.col_stride;
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = first + e < width ? from[e * x.col_stride] : narrow<T>(0);
    }
  }
};

template <class T, class Columns>
struct ColumnOctets {
  MatrixView x;
  Columns columns;
  static constexpr int kLines = 1;
  static constexpr bool wholes = false;  // two copies of the sampler's code would spill

  template <bool Whole>
  RAD_DEVICE void read(int64_t, int64_t line, int64_t first, int64_t width, T (&value)[kOctet]) const {
    const T* row = static_cast<const T*>(x.data) + offset_of_row(x, line);
    read_columns(row, x.col_stride, line, first, Whole ? first + kOctet : width, columns, value);
  }
};

// A thread walks down the lines with one octet, `Ahead` lines at a time.
template <bool Whole, int Ahead, class T, class Octets>
RAD_DEVICE void encode_down(const OctetPlace<T>& place, const Seed& seed, const Octets& octets, int64_t tile,
                            int64_t lines, int64_t width) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y, first = place.octet * kOctet;
  int64_t line = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
#pragma unroll 1
  for (; line + (Ahead - 1) * step < lines; line += Ahead * step) {
    T item[Ahead][kOctet];
#pragma unroll
    for (int a = 0; a < Ahead; ++a) octets.template read<Whole>(tile, line + a * step, first, width, item[a]);
#pragma unroll
    for (int a = 0; a < Ahead; ++a) {
      Accumulate<T> value[kOctet];
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = widen(item[a][e]);
      encode_octet<Whole>(place, seed, line + a * step, value);
    }
  }
  if constexpr (Ahead > 1) {
    for (; line < lines; line += step) {
      T item[kOctet];
      octets.template read<Whole>(tile, line, first, width, item);
      Accumulate<T> value[kOctet];
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
      encode_octet<Whole>(place, seed, line, value);
    }
  }
}

template <class T, class Octets>
RAD_DEVICE void encode_lines(const SavedView& saved, const Seed& seed, const Octets& octets) {
  const SavedLayout& m = saved.layout;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kOctet;
  const int64_t start = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kOctet;
  for (int64_t tile = blockIdx.z; tile < m.tiles; tile += gridDim.z) {
    const int64_t width = m.tile_width(tile);
    // A team goes through the loops together, past the line's end too.
    for (int64_t first = start; first / kGroup * kGroup < width; first += step) {
      const OctetPlace<T> place(saved, tile, first);
      if (octets.wholes && place.whole_group(width))
        encode_down<true, Octets::kLines>(place, seed, octets, tile, m.lines, width);
      else
        encode_down<false, 1>(place, seed, octets, tile, m.lines, width);
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
__global__ void __launch_bounds__(kThreads, 1)  // fp64 needs all registers
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
      const bool wholes =
          p.args.x.size[2] == p.args.x.rows && rows_aligned(p.args.x, sizeof(T), kVectorBytes);
      const RowOctets<T> octets{p.args.x, rows, wholes};
      return launch(encode_rows_kernel<T>,
                    over_lines(m.lines, octets_of(m.width), kAhead, p.args.exec.stream, m.tiles), p.saved,
                    p.source, octets, p.trailer);
    });
  }
  const int64_t unit = copy_unit(p.args.x, m.item, p.args.saved);
  return visit_unit(unit, [&](auto tag) {
    using Unit = typename decltype(tag)::type;
    const int64_t ratio = unit / m.item;
    const RowTiles shape{m.tiles, m.width / ratio, m.last_width / ratio};
    return launch(pack_rows_kernel<Unit>,
                  over_lines(m.lines, shape.width, kRowsAhead, p.args.exec.stream, m.tiles),
                  in_units(p.args.x, m.item, unit), rows, shape, static_cast<Unit*>(p.args.saved), p.trailer);
  });
}

int pack_columns(const Packing& p, const Sampler& plan) {
  const SavedLayout& m = p.saved.layout;
  const bool same = p.args.spec.sampling == Sampling::kSame;
  if (m.bits) {
    const LaunchConfig config = over_lines(m.lines, octets_of(m.width), kAhead, p.args.exec.stream);
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

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

// Stored entries [j, j + Count) of any row, j even: all about them that does not depend on the row. What is
// read past the last one is anything.
template <int Count>
struct ListedEntries {
  int64_t offset[Count];

  RAD_DEVICE ListedEntries(const int64_t* index, const MatrixView& x, int64_t k, int64_t j) {
#pragma unroll
    for (int e = 0; e < Count; ++e) offset[e] = j + e < k ? index[j + e] * x.col_stride : 0;
  }
  RAD_DEVICE bool wide() const { return false; }
  template <bool Wide, class Item>
  RAD_DEVICE void read(const Item* row, int64_t, Item (&value)[Count]) const {
#pragma unroll
    for (int e = 0; e < Count; ++e) value[e] = row[offset[e]];
  }
};

// Drawn row by row. Strata are short, 10^6 at most, so columns are counted in 32 bits from the first entry's;
// only a draw from all of 2^32 columns or more is wide.
template <int Count>
struct DrawnEntries {
  Seed seed;
  Role role;
  int64_t pair, first, col_stride;
  uint64_t columns;
  uint32_t begin[Count], length[Count];

  RAD_DEVICE DrawnEntries(const Sampler& s, const MatrixView& x, int64_t k, int64_t j)
      : seed{s.key, s.salt},
        role(s.role),
        pair(j / 2),
        first(0),
        col_stride(x.col_stride),
        columns(s.draw == Draw::kStratified ? 0 : s.strata.n) {
    if (s.draw == Draw::kStratified && j < k) first = s.strata.begin(j);
#pragma unroll
    for (int e = 0; e < Count; ++e) {
      const bool own = columns == 0 && j + e < k;
      begin[e] = own ? static_cast<uint32_t>(s.strata.begin(j + e) - first) : 0;
      length[e] = static_cast<uint32_t>(own ? s.strata.length(j + e) : columns);
    }
  }
  RAD_DEVICE bool wide() const { return columns >> 32 != 0; }

  template <bool Wide, class Item>
  RAD_DEVICE void read(const Item* row, int64_t r, Item (&value)[Count]) const {
    const Item* from = row + first * col_stride;
#pragma unroll
    for (int e = 0; e < Count; e += 2) {
      const Words words = random_words(seed, role, r, pair + e / 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint64_t word = word64(words, half);
        if constexpr (Wide) {
          value[e + half] = from[static_cast<int64_t>(mulhi64(word, columns)) * col_stride];
        } else {
          const uint32_t place = begin[e + half] + mulhi64_short<WideProduct>(word, length[e + half]);
          value[e + half] = from[place * col_stride];
        }
      }
    }
  }
};

// A thread walks down the rows x.rows with one vector of stored entries: out [x.rows, k].
template <bool Wide, class Item, class Entries>
RAD_DEVICE void pack_down(const MatrixView& x, int64_t k, int64_t j, const Entries& entries, Item* out) {
  constexpr int kCount = kPerVector<Item>;
  const bool vector_store = k % kCount == 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
#pragma unroll 1
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < x.rows; r += step) {
    Vector<Item, kCount> values;
    entries.template read<Wide>(static_cast<const Item*>(x.data) + offset_of_row(x, r), r, values.item);
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

template <class Item, class Entries, class Source>
RAD_DEVICE void pack_columns(const MatrixView& x, int64_t k, const Source& source, Item* out) {
  constexpr int kCount = kPerVector<Item>;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kCount;
  for (int64_t j = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount; j < k; j += step) {
    const Entries entries(source, x, k, j);
    if (entries.wide())
      pack_down<true>(x, k, j, entries, out);
    else
      pack_down<false>(x, k, j, entries, out);
  }
}

template <class Item>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_same_kernel(MatrixView x, const int64_t* index, int64_t k, Item* out, TrailerWriter trailer) {
  trailer.write();
  pack_columns<Item, ListedEntries<kPerVector<Item>>>(x, k, index, out);
}

template <class Item>
__global__ void __launch_bounds__(kThreads, kResident)
    pack_different_kernel(MatrixView x, Sampler plan, KeySource source, Item* out, TrailerWriter trailer) {
  trailer.write();
  pack_columns<Item, DrawnEntries<kPerVector<Item>>>(x, plan.k(), keyed(plan, source), out);
}

// ---- codes ------------------------------------------------------------------------------------------------

// A whole octet as numbers.
template <class T>
RAD_DEVICE void load_numbers(const T* from, Accumulate<T> (&value)[kOctet]) {
  if constexpr (std::is_same_v<T, bf16>) {  // the upper halves of their numbers: two to a word
    const auto words = *reinterpret_cast<const Vector<uint32_t, kOctet / 2>*>(from);
#pragma unroll
    for (int e = 0; e < kOctet; ++e)
      value[e] = bits_float(e % 2 ? words.item[e / 2] & 0xFFFF0000u : words.item[e / 2] << 16);
  } else {
    T item[kOctet];
    load_whole(from, 0, item);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
  }
}

// Where the values to encode come from: at(tile, first, width) reads octet `first` of a tile's lines, which
// end at `width`; all of it where Whole, which a source may refuse (`wholes`).
template <class T>
struct RowOctets {
  MatrixView x;
  RowList rows;
  static constexpr int kLines = kAhead;  // in flight
  bool wholes;                           // rows have one stride and start at multiples of a vector's bytes

  struct Reader {
    const RowOctets& from;
    int64_t tile, first, width;
    const T* column;  // of row 0

    template <bool Whole>
    RAD_DEVICE void read(int64_t line, Accumulate<T> (&value)[kOctet]) const {
      const int64_t row = from.rows(tile, line);
      if constexpr (Whole) return load_numbers(column + row * from.x.stride[2], value);
      const T* item = column + offset_of_row(from.x, row);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = first + e < width ? widen(item[e * from.x.col_stride]) : 0;
    }
  };
  RAD_DEVICE Reader at(int64_t tile, int64_t first, int64_t width) const {
    const int64_t column = (tile * kTileWidth + first) * x.col_stride;
    return {*this, tile, first, width, static_cast<const T*>(x.data) + column};
  }
};

template <class T, class Entries, class Source>
struct ColumnOctets {
  MatrixView x;
  Source source;
  static constexpr int kLines = 1;
  static constexpr bool wholes = false;  // two copies of the sampler's code would spill

  struct Reader {
    const MatrixView& x;
    Entries entries;

    template <bool Whole>
    RAD_DEVICE void read(int64_t line, Accumulate<T> (&value)[kOctet]) const {
      const T* row = static_cast<const T*>(x.data) + offset_of_row(x, line);
      T item[kOctet];
      if (entries.wide())
        entries.template read<true>(row, line, item);
      else
        entries.template read<false>(row, line, item);
#pragma unroll
      for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
    }
  };
  RAD_DEVICE Reader at(int64_t, int64_t first, int64_t width) const {
    return {x, Entries(source, x, width, first)};
  }
};

// A thread walks down the lines with one octet, `Ahead` lines at a time.
template <bool Whole, int Ahead, int Bits, class T, class Reader>
RAD_DEVICE void encode_down(const OctetPlace<T>& place, const Seed& seed, const Reader& octets,
                            int64_t lines) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  int64_t line = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
#pragma unroll 1
  for (; line + (Ahead - 1) * step < lines; line += Ahead * step) {
    Accumulate<T> value[Ahead][kOctet];
#pragma unroll
    for (int a = 0; a < Ahead; ++a) octets.template read<Whole>(line + a * step, value[a]);
#pragma unroll
    for (int a = 0; a < Ahead; ++a) encode_octet<Whole, true, Bits>(place, seed, line + a * step, value[a]);
  }
  if constexpr (Ahead > 1) {
    for (; line < lines; line += step) {
      Accumulate<T> value[kOctet];
      octets.template read<Whole>(line, value);
      encode_octet<Whole, true, Bits>(place, seed, line, value);
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
      const auto reader = octets.at(tile, first, width);
      if (!octets.wholes || !place.whole_group(width))
        encode_down<false, 1, kAnyBits>(place, seed, reader, m.lines);
      else if (place.bits == 4)
        encode_down<true, Octets::kLines, 4>(place, seed, reader, m.lines);
      else
        encode_down<true, Octets::kLines, kAnyBits>(place, seed, reader, m.lines);
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
  encode_lines<T>(saved, source.seed(), ColumnOctets<T, ListedEntries<kOctet>, const int64_t*>{x, index});
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)  // fp64 needs all registers
    encode_different_kernel(SavedView saved, KeySource source, MatrixView x, Sampler plan,
                            TrailerWriter trailer) {
  trailer.write();
  encode_lines<T>(saved, source.seed(),
                  ColumnOctets<T, DrawnEntries<kOctet>, Sampler>{x, keyed(plan, source)});
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
    const LaunchConfig config = over_lines(m.lines, vectors, 1, p.args.exec.stream);
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

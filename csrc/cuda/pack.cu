#include "cuda/row_copy.cuh"

namespace rad::cuda {
namespace {

// What every pack kernel does besides: padding, and the trailer's salt and version (its key lies there already).
struct Header {
  uint16_t* padding;
  Trailer* trailer;
  uint64_t salt;

  RAD_DEVICE void write() const {
    if ((blockIdx.x | blockIdx.y | threadIdx.x | threadIdx.y) != 0) return;
    for (uint16_t* item = padding; item < reinterpret_cast<uint16_t*>(trailer); ++item) *item = 0;
    trailer->salt = salt;
    trailer->version = kFormatVersion;
    for (uint64_t& word : trailer->reserved) word = 0;
  }
};

template <class Unit>
__global__ void pack_rows_kernel(MatrixView x, Sampler plan, KeySource source, Unit* out, Header header) {
  header.write();
  const Sampler sampler = keyed(plan, source);
  copy_rows<Unit>(
      x, sampler.k(), [&](int64_t i) { return sampler.index(0, i); }, out, [](int64_t, Unit v) { return v; });
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
#pragma unroll
      for (int e = 0; e < kCount; e += 2) {
        int64_t column[2] = {};
        if (j + e < k) columns(r, j + e, column);
        values.item[e] = j + e < k ? row[column[0] * x.col_stride] : Item{};
        values.item[e + 1] = j + e + 1 < k ? row[column[1] * x.col_stride] : Item{};
      }
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
__global__ void pack_same_kernel(MatrixView x, const int64_t* index, int64_t k, Item* out, Header header) {
  header.write();
  pack_columns<Item>(x, k, ListedColumns{index, k}, out);
}

template <class Item>
__global__ void pack_different_kernel(MatrixView x, Sampler plan, KeySource source, Item* out,
                                      Header header) {
  header.write();
  pack_columns<Item>(x, plan.k(), DrawnColumns{keyed(plan, source)}, out);
}

int pack_rows(const PackArgs& args, const Sampler& plan, const KeySource& source, const Header& header) {
  const int64_t item = item_size(args.dtype), unit = copy_unit(args.x, item, args.saved);
  return visit_unit(unit, [&](auto tag) {
    using Unit = typename decltype(tag)::type;
    const MatrixView x = in_units(args.x, item, unit);
    return launch(pack_rows_kernel<Unit>, over_matrix(plan.k(), x.cols, args.exec.stream), x, plan, source,
                  static_cast<Unit*>(args.saved), header);
  });
}

int pack_columns(const PackArgs& args, const Sampler& plan, const KeySource& source, const Header& header) {
  auto* index = static_cast<int64_t*>(args.workspace);
  const bool same = args.spec.sampling == Sampling::kSame;
  if (same) {
    const int status = draw_indices(args.exec, args.spec, source, args.x.cols, index);
    if (status != 0) return status;
  }
  return visit_item(item_size(args.dtype), [&](auto tag) {
    using Item = typename decltype(tag)::type;
    const int64_t vectors = (plan.k() + kPerVector<Item> - 1) / kPerVector<Item>;
    const LaunchConfig config = over_matrix(args.x.rows, vectors, args.exec.stream);
    auto* out = static_cast<Item*>(args.saved);
    if (same) return launch(pack_same_kernel<Item>, config, args.x, index, plan.k(), out, header);
    return launch(pack_different_kernel<Item>, config, args.x, plan, source, out, header);
  });
}

}  // namespace

int64_t pack_workspace(const PackArgs& args) {
  return args.spec.sampling == Sampling::kSame ? kept(args.x.cols, args.spec.num, args.spec.den) * 8 : 0;
}

int pack(const PackArgs& args) {
  const bool by_row = args.spec.sampling == Sampling::kRows;
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.x.rows, args.x.cols);
  auto* trailer = reinterpret_cast<Trailer*>(static_cast<char*>(args.saved) + layout.trailer);
  const KeySource source{trailer, static_cast<int64_t>(args.salt)};
  const Sampler plan = plan_sample(args.spec, by_row ? args.x.rows : args.x.cols);
  const int64_t values = values_bytes(layout, args.dtype);
  auto* padding = reinterpret_cast<uint16_t*>(static_cast<char*>(args.saved) + values);
  const Header header{padding, trailer, args.salt};
  return by_row ? pack_rows(args, plan, source, header) : pack_columns(args, plan, source, header);
}

}  // namespace rad::cuda

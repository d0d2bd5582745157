#include "core/signs.h"

#include "cuda/saved.cuh"

namespace rad::cuda {
namespace {

template <class T>
struct UnpackParams {
  int64_t rows, features;
  SavedView saved;
  const int64_t* index;  // lists of a tile each; null for `different` and `project`
  const float* weight;   // of the norm draw, else null
  T* out;
  bool vector_load, vector_store;  // lines and rows are whole vectors
};

template <class T>
RAD_DEVICE void add_to(T& total, Accumulate<T> value) {
  total = narrow<T>(widen(total) + value);
}

// What entry i of a line is multiplied by.
template <class T>
RAD_DEVICE Accumulate<T> weight_of(const UnpackParams<T>& p, const Sampler& sampler, int64_t i) {
  return p.weight ? static_cast<Accumulate<T>>(p.weight[i]) : sampler.template weight<Accumulate<T>>(i);
}

// Adds line `line` of a tile, from its octet on that `place` is of.
template <class T>
RAD_DEVICE void add_line(const UnpackParams<T>& p, const Sampler& sampler, const OctetPlace<T>& place,
                         int64_t tile, int64_t line, T (&total)[kOctet]) {
  const SavedLayout& m = p.saved.layout;
  Accumulate<T> value[kOctet];
  if (m.bits) {
    decode_octet<false>(place, {sampler.key, sampler.salt}, line, value);
  } else {
    T item[kOctet];
    load_octet(p.saved.template plane<const T>(m.line_offset(tile, line)), place.octet * kOctet,
               m.tile_width(tile), p.vector_load, item);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) value[e] = widen(item[e]);
  }
  const Accumulate<T> weight = weight_of(p, sampler, line);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) add_to(total[e], product(value[e], weight));
}

// Adds entries [first, last) of row r, in stored order, to the columns from c on that they are of.
template <class T>
RAD_DEVICE void add_entries(const UnpackParams<T>& p, const Sampler& sampler, int64_t r, int64_t c,
                            int64_t first, int64_t last, T (&total)[kOctet]) {
  const Seed seed{sampler.key, sampler.salt};
  Words words{}, noise{};
#pragma unroll 1
  for (int64_t i = first; i < last; ++i) {
    if (!p.index && (i == first || i % 2 == 0)) words = random_words(seed, sampler.role, r, i / 2);
    const int64_t at = (p.index ? p.index[i] : sampler.index(words, i)) - c;
    if (p.saved.layout.bits && (i == first || i % kOctet == 0))
      noise = random_words(seed, Role::kDither, r, i / kOctet);
    if (at < 0 || at >= kOctet) continue;
    const Accumulate<T> value =
        p.saved.layout.bits ? decode_value<T>(p.saved, noise, 0, r, i)
                            : widen(p.saved.template plane<const T>(p.saved.layout.line_offset(0, r))[i]);
    const Accumulate<T> weighed = product(value, weight_of(p, sampler, i));
#pragma unroll
    for (int e = 0; e < kOctet; ++e)
      if (at == e) add_to(total[e], weighed);
  }
}

// body(tile, column within it) for each octet of columns of this thread.
template <class T, class Body>
RAD_DEVICE void each_octet_column(const UnpackParams<T>& p, const Body& body) {
  const SavedLayout& m = p.saved.layout;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x * kOctet;
  for (int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kOctet; c < p.features;
       c += step) {
    const int64_t tile = m.tiles > 1 ? c / kTileWidth : 0;
    body(tile, c - tile * kTileWidth);
  }
}

// The rows of a stratum are zeros but for the one that was kept. Threads walk down the strata.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) unpack_strata_kernel(UnpackParams<T> p, Sampler plan) {
  const Sampler sampler = keyed(plan, p.saved.key());
  const Strata& strata = sampler.strata;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  each_octet_column(p, [&](int64_t tile, int64_t column) {
    const OctetPlace<T> place(p.saved, tile, column);
    const int64_t c = tile * kTileWidth + column;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < strata.k; i += step) {
      T kept[kOctet] = {};
      add_line(p, sampler, place, tile, i, kept);
      const int64_t begin = strata.begin(i), end = begin + strata.length(i);
      const int64_t row = p.index[tile * strata.k + i];
      for (int64_t r = begin; r < end; ++r) {
        T item[kOctet];
#pragma unroll
        for (int e = 0; e < kOctet; ++e) item[e] = r == row ? kept[e] : narrow<T>(0);
        store_octet(p.out + r * p.features, c, p.features, p.vector_store, item);
      }
    }
  });
}

// start(tile, column within it) for each octet of columns of this thread gives add(row, total), which makes
// the octet of a row from zeros.
template <class T, class Start>
RAD_DEVICE void each_total(const UnpackParams<T>& p, const Start& start) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  each_octet_column(p, [&](int64_t tile, int64_t column) {
    const int64_t c = tile * kTileWidth + column;
    const auto add = start(tile, column);
    for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += step) {
      T total[kOctet] = {};
      add(r, total);
      store_octet(p.out + r * p.features, c, p.features, p.vector_store, total);
    }
  });
}

// Rows from a list in any order, which each row looks through.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident) unpack_rows_kernel(UnpackParams<T> p, Sampler plan) {
  const Sampler sampler = keyed(plan, p.saved.key());
  const int64_t k = sampler.k();
  each_total(p, [&](int64_t tile, int64_t column) {
    return [&, tile, place = OctetPlace<T>(p.saved, tile, column)](int64_t r, T(&total)[kOctet]) {
      for (int64_t i = 0; i < k; ++i)
        if (p.index[tile * k + i] == r) add_line(p, sampler, place, tile, i, total);
    };
  });
}

// Columns: an octet looks through the entries of its strata, or through all.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    unpack_columns_kernel(UnpackParams<T> p, Sampler plan) {
  const Sampler sampler = keyed(plan, p.saved.key());
  const bool strata = sampler.draw == Draw::kStratified;
  each_total(p, [&](int64_t, int64_t c) {
    const int64_t first = strata ? sampler.strata.find(c) : 0;
    const int64_t last = strata ? sampler.strata.find(min(c + kOctet, p.features) - 1) + 1 : sampler.k();
    return [&, c, first, last](int64_t r, T(&total)[kOctet]) {
      add_entries(p, sampler, r, c, first, last, total);
    };
  });
}

// Element (r, c) of x R R^T / k from the stored scale * x R, rounded after every 128 terms as the CPU does.
template <class T>
RAD_DEVICE T projected_element(const UnpackParams<T>& p, const Seed& seed, int64_t r, int64_t c) {
  using Sum = Accumulate<T>;
  constexpr int64_t kTerms = 128;
  const int64_t k = p.saved.layout.width;
  const Sum factor = static_cast<Sum>(1 / (static_cast<double>(k) * project_scale(k)));
  T total = narrow<T>(0);
  for (int64_t first = 0; first < k; first += kTerms) {
    const Words call = sign_call(seed.key, seed.salt, c, first);
    Sum sum = 0;
    for (int64_t j = first; j < min(k, first + kTerms); ++j) {
      const Sum value = stored_value<T>(p.saved, seed, 0, r, j);
      sum += sign_bit(call, j) ? value : -value;
    }
    add_to(total, product(sum, factor));
  }
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads) unpack_projected_kernel(UnpackParams<T> p) {
  const Seed seed = p.saved.key().seed();
  const int64_t row_step = static_cast<int64_t>(gridDim.x) * blockDim.y;
  const int64_t col_step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; r < p.rows; r += row_step)
    for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < p.features;
         c += col_step)
      p.out[r * p.features + c] = projected_element(p, seed, r, c);
}

}  // namespace

int64_t unpack_workspace(const UnpackArgs& args) {
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.rows, args.features);
  const int64_t n = samples_rows(args.spec.sampling) ? args.rows : args.features;
  return listed_lines(args.spec, layout) * kept(n, args.spec.num, args.spec.den) * 8;
}

int unpack(const UnpackArgs& args) {
  if (args.rows == 0 || args.features == 0) return 0;
  const SavedView saved(args.spec, args.dtype, args.rows, args.features, args.saved);
  const int64_t n = samples_rows(args.spec.sampling) ? args.rows : args.features;
  const bool by_norm = args.spec.draw == Draw::kNorm;
  const int64_t lists = listed_lines(args.spec, saved.layout);
  const int64_t* index = by_norm ? saved.plane<const int64_t>(saved.layout.index) : nullptr;
  if (lists > 0) {
    auto* list = static_cast<int64_t*>(args.workspace);
    const int status = draw_indices(args.exec, args.spec, saved.key(), n, 0, lists, list);
    if (status != 0) return status;
    index = list;
  }
  const float* weight = by_norm ? saved.plane<const float>(saved.layout.weight) : nullptr;
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kCount = kPerVector<T>;
    const SavedLayout& m = saved.layout;
    const UnpackParams<T> params{args.rows,
                                 args.features,
                                 saved,
                                 index,
                                 weight,
                                 static_cast<T*>(args.out),
                                 m.last_width % kCount == 0 && aligned(args.saved, kVectorBytes),
                                 args.features % kCount == 0 && aligned(args.out, kVectorBytes)};
    if (args.spec.sampling == Sampling::kProject)
      return launch(unpack_projected_kernel<T>, over_matrix(args.rows, args.features, args.exec.stream),
                    params);
    const int64_t octets = (args.features + kOctet - 1) / kOctet;
    const bool by_row = samples_rows(args.spec.sampling);
    const bool by_strata = by_row && args.spec.draw == Draw::kStratified;
    const auto kernel = by_strata ? unpack_strata_kernel<T>
                        : by_row  ? unpack_rows_kernel<T>
                                  : unpack_columns_kernel<T>;
    return launch(kernel, over_lines(by_strata ? m.lines : args.rows, octets, 1, args.exec.stream), params,
                  plan_sample(args.spec, n));
  });
}

}  // namespace rad::cuda

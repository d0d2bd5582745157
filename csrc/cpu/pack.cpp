#include <cstring>

#include "core/dtype.h"
#include "core/layout.h"
#include "core/matrix_view.h"
#include "cpu/different_row.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void copy_row(const T* row, int64_t col_stride, int64_t cols, T* out) {
  if (col_stride == 1) {
    std::memcpy(out, row, cols * sizeof(T));
  } else {
    for (int64_t c = 0; c < cols; ++c) out[c] = row[c * col_stride];
  }
}

template <class T>
void pack_rows(const PackArgs& args, const Sampler& sampler, T* out) {
  const MatrixView& x = args.x;
  parallel_for(args.exec, sampler.k(), grain_for(x.cols * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = static_cast<const T*>(x.data) + row_offset(x, sampler.index(0, i));
      copy_row(row, x.col_stride, x.cols, out + i * x.cols);
    }
  });
}

template <class T>
void pack_columns(const PackArgs& args, const Trailer* trailer, const Sampler& sampler, T* out) {
  const MatrixView& x = args.x;
  const int64_t k = sampler.k();
  auto* index = static_cast<int64_t*>(args.workspace);
  sample({args.exec, args.spec, trailer, x.cols, index, nullptr});
  parallel_for(args.exec, x.rows, grain_for(k * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* row = static_cast<const T*>(x.data) + row_offset(x, r);
      for (int64_t j = 0; j < k; ++j) out[r * k + j] = row[index[j] * x.col_stride];
    }
  });
}

template <class T>
void pack_different(const PackArgs& args, const Sampler& sampler, T* out) {
  const MatrixView& x = args.x;
  const int64_t k = sampler.k();
  constexpr int64_t kChunk = 256;
  parallel_for(args.exec, x.rows, grain_for(k * sizeof(T)), [&](int64_t begin, int64_t end) {
    int64_t index[kChunk];
    for (int64_t r = begin; r < end; ++r) {
      const T* row = static_cast<const T*>(x.data) + row_offset(x, r);
      for (int64_t j = 0; j < k; j += kChunk) {
        const int64_t stop = std::min(k, j + kChunk);
        different_row(sampler, r, j, stop, index);
        for (int64_t i = j; i < stop; ++i) out[r * k + i] = row[index[i - j] * x.col_stride];
      }
    }
  });
}

}  // namespace

int64_t pack_workspace(const PackArgs& args) {
  return args.spec.sampling == Sampling::kSame ? kept(args.x.cols, args.spec.num, args.spec.den) * 8 : 0;
}

int pack(const PackArgs& args) {
  const MatrixView& x = args.x;
  const auto layout = saved_layout(args.spec, args.dtype, x.rows, x.cols);
  auto* trailer = reinterpret_cast<Trailer*>(static_cast<char*>(args.saved) + layout.trailer);
  *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
  const int64_t values = values_bytes(layout, args.dtype);
  std::memset(static_cast<char*>(args.saved) + values, 0, layout.trailer - values);
  const Sampler sampler(trailer->key, args.salt, args.spec, args.spec.sampling == Sampling::kRows ? x.rows : x.cols);
  return visit_item(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* out = static_cast<T*>(args.saved);
    switch (args.spec.sampling) {
      case Sampling::kRows:
        pack_rows(args, sampler, out);
        return 0;
      case Sampling::kSame:
        pack_columns(args, trailer, sampler, out);
        return 0;
      case Sampling::kDifferent:
        pack_different(args, sampler, out);
        return 0;
    }
    return 1;
  });
}

}  // namespace rad::cpu

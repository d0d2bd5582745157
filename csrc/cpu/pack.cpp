#include <cstring>

#include "core/matrix_view.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void copy_piece(const MatrixView& x, int64_t row, int64_t begin, int64_t count, T* out) {
  const T* first = static_cast<const T*>(x.data) + row_offset(x, row) + begin * x.col_stride;
  if (x.col_stride == 1) {
    std::memcpy(out, first, count * sizeof(T));
  } else {
    for (int64_t c = 0; c < count; ++c) out[c] = first[c * x.col_stride];
  }
}

// fill(line, begin, count, out) writes stored values: plain ones into place, others by way of the coder.
template <class T, class Fill>
void store_lines(const PackArgs& args, const SavedView& saved, int64_t tile, const Fill& fill) {
  const SavedLayout& m = saved.layout;
  const int64_t width = m.tile_width(tile);
  parallel_for(args.exec, m.lines, grain_for(width * sizeof(T)), [&](int64_t first, int64_t last) {
    for (int64_t line = first; line < last; ++line) {
      if (!m.bits) {
        fill(line, 0, width, reinterpret_cast<T*>(saved.line(tile, line)));
        continue;
      }
      for_each_block(width, [&](int64_t begin, int64_t count) {
        T values[kBlock];
        fill(line, begin, count, values);
        encode_block(saved, tile, line, begin, count, values);
      });
    }
  });
}

template <class T>
void pack_rows(const PackArgs& args, const SavedView& saved) {
  const bool by_norm = args.spec.draw == Draw::kNorm;
  auto* list = static_cast<int64_t*>(args.workspace);
  for (int64_t tile = 0; tile < saved.layout.tiles; ++tile) {
    if (!by_norm) sample({args.exec, args.spec, saved.trailer(), args.x.rows, tile, 1, list, nullptr});
    const int64_t* index = by_norm ? saved.index() : list;
    store_lines<T>(args, saved, tile, [&](int64_t line, int64_t begin, int64_t count, T* out) {
      copy_piece(args.x, index[line], tile * kTileWidth + begin, count, out);
    });
  }
}

template <class T>
void pack_same(const PackArgs& args, const SavedView& saved) {
  const MatrixView& x = args.x;
  auto* index = static_cast<int64_t*>(args.workspace);
  sample({args.exec, args.spec, saved.trailer(), x.cols, 0, 1, index, nullptr});
  store_lines<T>(args, saved, 0, [&](int64_t line, int64_t begin, int64_t count, T* out) {
    const T* row = static_cast<const T*>(x.data) + row_offset(x, line);
    for (int64_t j = 0; j < count; ++j) out[j] = row[index[begin + j] * x.col_stride];
  });
}

template <class T>
void pack_different(const PackArgs& args, const SavedView& saved) {
  const MatrixView& x = args.x;
  const Sampler sampler(saved.key, saved.salt, args.spec, x.cols);
  store_lines<T>(args, saved, 0, [&](int64_t line, int64_t begin, int64_t count, T* out) {
    const T* row = static_cast<const T*>(x.data) + row_offset(x, line);
    int64_t index[kBlock];
    for (int64_t j = 0; j < count; j += kBlock) {
      const int64_t stop = std::min(count, j + kBlock);
      different_row(sampler, line, begin + j, begin + stop, index);
      for (int64_t i = j; i < stop; ++i) out[i] = row[index[i - j] * x.col_stride];
    }
  });
}

template <class T>
void pack_projected(const PackArgs& args, const SavedView& saved) {
  store_lines<T>(args, saved, 0, [&](int64_t line, int64_t begin, int64_t count, T* out) {
    copy_piece(args.x, line, begin, count, out);
  });
}

}  // namespace

int64_t pack_workspace(const PackArgs& args) {
  if (args.spec.sampling == Sampling::kDifferent || args.spec.sampling == Sampling::kProject) return 0;
  return kept(samples_rows(args.spec.sampling) ? args.x.rows : args.x.cols, args.spec.num, args.spec.den) * 8;
}

int pack(const PackArgs& args) {
  const SavedLayout layout = saved_layout(args.spec, args.dtype, args.x.rows, args.features);
  auto* trailer = reinterpret_cast<Trailer*>(static_cast<char*>(args.saved) + layout.trailer);
  *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
  for (int plane = 0; plane < Gaps::kCount; ++plane) {
    const Gaps& gaps = layout.gaps;
    std::memset(static_cast<char*>(args.saved) + gaps.begin[plane], 0, gaps.end[plane] - gaps.begin[plane]);
  }
  const SavedView saved(args.spec, args.dtype, args.x.rows, args.features, args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (args.spec.sampling) {
      case Sampling::kRows:
      case Sampling::kTileRows:
        pack_rows<T>(args, saved);
        return 0;
      case Sampling::kSame:
        pack_same<T>(args, saved);
        return 0;
      case Sampling::kDifferent:
        pack_different<T>(args, saved);
        return 0;
      case Sampling::kProject:
        pack_projected<T>(args, saved);
        return 0;
    }
    return 1;
  });
}

}  // namespace rad::cpu

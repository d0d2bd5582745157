#include <type_traits>

#include "cpu/codes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void decode_lines(const DecodeArgs& args, const SavedView& saved) {
  using Sum = Accumulate<T>;
  const int64_t tile = args.begin / saved.layout.lines, width = saved.layout.tile_width(tile);
  const int64_t first = args.begin - tile * saved.layout.lines, count = args.end - args.begin;
  parallel_for(args.exec, count, grain_for(width * sizeof(Sum)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for_each_block(width, [&](int64_t at, int64_t size) {
        if (args.widen || std::is_same_v<T, Sum>) {
          decode_block<T>(saved, tile, first + i, at, size, static_cast<Sum*>(args.out) + i * width + at);
          return;
        }
        Sum values[kBlock];
        decode_block<T>(saved, tile, first + i, at, size, values);
        T* out = static_cast<T*>(args.out) + i * width + at;
        for (int64_t c = 0; c < size; ++c) out[c] = narrow<T>(values[c]);
      });
    }
  });
}

}  // namespace

int decode(const DecodeArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.rows, args.features, args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    decode_lines<typename decltype(tag)::type>(args, saved);
    return 0;
  });
}

}  // namespace rad::cpu

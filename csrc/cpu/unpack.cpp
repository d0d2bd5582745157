#include <cstring>

#include "core/signs.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void add_to(T& target, Accumulate<T> value) {
  target = narrow<T>(widen(target) + value);
}

template <class T>
void unpack_rows(const UnpackArgs& args, const SavedView& saved, int64_t* list) {
  using Sum = Accumulate<T>;
  const Sampler sampler(saved.key, saved.salt, args.spec, args.rows);
  const bool listed = args.spec.draw == Draw::kNorm;
  for (int64_t tile = 0; tile < saved.layout.tiles; ++tile) {
    if (!listed) sample({args.exec, args.spec, saved.trailer(), args.rows, tile, 1, list, nullptr});
    const int64_t width = saved.layout.tile_width(tile);
    for (int64_t line = 0; line < saved.layout.lines; ++line) {
      const Sum weight = listed ? static_cast<Sum>(saved.weight()[line]) : sampler.template weight<Sum>(line);
      T* out = static_cast<T*>(args.out) + (listed ? saved.index() : list)[line] * args.features +
               tile * kTileWidth;
      for_each_block(width, [&](int64_t begin, int64_t count) {
        Sum values[kBlock];
        decode_block<T>(saved, tile, line, begin, count, values);
        for (int64_t c = 0; c < count; ++c) add_to(out[begin + c], values[c] * weight);
      });
    }
  }
}

template <class T>
void unpack_features(const UnpackArgs& args, const SavedView& saved, const int64_t* list) {
  using Sum = Accumulate<T>;
  const Sampler sampler(saved.key, saved.salt, args.spec, args.features);
  const int64_t k = sampler.k();
  parallel_for(args.exec, args.rows, grain_for(args.features * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for_each_block(k, [&](int64_t first, int64_t count) {
        Sum values[kBlock];
        decode_block<T>(saved, 0, r, first, count, values);
        for (int64_t j = first; j < first + count; ++j) {
          const int64_t column = list ? list[j] : sampler.index(r, j);
          add_to(static_cast<T*>(args.out)[r * args.features + column],
                 values[j - first] * sampler.template weight<Sum>(j));
        }
      });
    }
  });
}

// x R R^T / k from the stored scale * x R.
template <class T>
void unpack_projected(const UnpackArgs& args, const SavedView& saved) {
  using Sum = Accumulate<T>;
  const int64_t k = saved.layout.width;
  const Sum factor = static_cast<Sum>(1 / (static_cast<double>(k) * project_scale(k)));
  parallel_for(args.exec, args.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* out = static_cast<T*>(args.out) + r * args.features;
      for_each_block(k, [&](int64_t first, int64_t count) {
        Sum values[kBlock];
        decode_block<T>(saved, 0, r, first, count, values);
        for (int64_t f = 0; f < args.features; ++f) {
          Sum sum = 0;
          for (int64_t j = 0; j < count; ++j) {
            sum +=
                sign_bit(sign_call(saved.key, saved.salt, f, first + j), first + j) ? values[j] : -values[j];
          }
          add_to(out[f], sum * factor);
        }
      });
    }
  });
}

}  // namespace

int64_t unpack_workspace(const UnpackArgs& args) {
  return kept(samples_rows(args.spec.sampling) ? args.rows : args.features, args.spec.num, args.spec.den) * 8;
}

int unpack(const UnpackArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.rows, args.features, args.saved);
  auto* list = static_cast<int64_t*>(args.workspace);
  std::memset(args.out, 0, args.rows * args.features * saved.layout.item);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (args.spec.sampling) {
      case Sampling::kRows:
      case Sampling::kTileRows:
        unpack_rows<T>(args, saved, list);
        return 0;
      case Sampling::kSame:
        sample({args.exec, args.spec, saved.trailer(), args.features, 0, 1, list, nullptr});
        unpack_features<T>(args, saved, list);
        return 0;
      case Sampling::kDifferent:
        unpack_features<T>(args, saved, nullptr);
        return 0;
      case Sampling::kProject:
        unpack_projected<T>(args, saved);
        return 0;
    }
    return 1;
  });
}

}  // namespace rad::cpu

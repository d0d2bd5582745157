#include "core/dtype.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kStep = 4 * kLanes;  // elements that one round of Philox lanes serves

// Loops of one fixed length, so that they vectorise. Function multiversioning takes no templates, so one
// overload a type.
template <class T>
RAD_INLINE void keep_all(const T* x, const uint32_t* words, uint32_t threshold, float scale, T* y) {
  const auto factor = static_cast<Accumulate<T>>(scale);
  for (int i = 0; i < kStep; ++i) {
    const Accumulate<T> kept = widen(x[i]) * factor;
    y[i] = narrow<T>(words[i] >= threshold ? kept : Accumulate<T>(0));
  }
}

#define RAD_LOOP(T)                                                                                       \
  RAD_VECTOR_CLONES void keep(const T* x, const uint32_t* words, uint32_t threshold, float scale, T* y) { \
    keep_all(x, words, threshold, scale, y);                                                              \
  }
RAD_LOOP(float)
RAD_LOOP(double)
RAD_LOOP(BFloat16)
RAD_LOOP(Half)
#undef RAD_LOOP

template <class T>
void dropout_blocks(const DropoutArgs& args, int64_t first, int64_t last) {
  alignas(64) uint32_t words[kStep];
  T tail[kStep] = {};
  for (int64_t block = first; block < last; ++block) {
    const int64_t base = block * kStep, count = std::min(kStep, args.n - base);
    const T* x = static_cast<const T*>(args.x) + base;
    T* y = static_cast<T*>(args.y) + base;
    philox_words(args.trailer->key, args.trailer->salt, Role::kDropout, 0, base / 4, words);
    if (count == kStep) {
      keep(x, words, args.threshold, args.scale, y);
    } else {
      std::copy(x, x + count, tail);
      keep(tail, words, args.threshold, args.scale, tail);
      std::copy(tail, tail + count, y);
    }
  }
}

}  // namespace

int dropout(const DropoutArgs& args) {
  if (args.salt >= 0)
    *args.trailer = Trailer{args.trailer->key, static_cast<uint64_t>(args.salt), kFormatVersion, {}};
  return visit_dtype(args.dtype, [&](auto tag) {
    parallel_for(args.exec, (args.n + kStep - 1) / kStep, 1 << 8, [&](int64_t begin, int64_t end) {
      dropout_blocks<typename decltype(tag)::type>(args, begin, end);
    });
    return 0;
  });
}

}  // namespace rad::cpu

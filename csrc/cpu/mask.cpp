#include "core/dtype.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T>
void relu_words(const ReluArgs& args, int64_t first, int64_t last) {
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  for (int64_t w = first; w < last; ++w) {
    const int64_t base = w * 32, count = std::min<int64_t>(32, args.n - base);
    uint32_t word = 0;
    for (int64_t b = 0; b < count; ++b) {
      const T value = x[base + b];
      y[base + b] = widen(value) < 0 ? T{} : value;
      word |= static_cast<uint32_t>(!(widen(value) <= 0)) << b;
    }
    args.mask[w] = word;
  }
}

template <class T>
void masked_words(const MaskedArgs& args, int64_t first, int64_t last) {
  const auto* dy = static_cast<const T*>(args.dy);
  auto* dx = static_cast<T*>(args.dx);
  for (int64_t w = first; w < last; ++w) {
    const int64_t base = w * 32, count = std::min<int64_t>(32, args.n - base);
    for (int64_t b = 0; b < count; ++b) dx[base + b] = args.mask[w] >> b & 1u ? dy[base + b] : T{};
  }
}

constexpr int64_t kWordGrain = 1 << 10;

}  // namespace

int relu(const ReluArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    parallel_for(args.exec, (args.n + 31) / 32, kWordGrain, [&](int64_t begin, int64_t end) {
      relu_words<typename decltype(tag)::type>(args, begin, end);
    });
    return 0;
  });
}

int masked(const MaskedArgs& args) {
  return visit_item(args.dtype, [&](auto tag) {
    parallel_for(args.exec, (args.n + 31) / 32, kWordGrain, [&](int64_t begin, int64_t end) {
      masked_words<typename decltype(tag)::type>(args, begin, end);
    });
    return 0;
  });
}

}  // namespace rad::cpu

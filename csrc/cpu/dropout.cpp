#include "core/dtype.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kBlock = 4 * kLanes;  // elements that one round of Philox lanes serves

template <class T>
void dropout_blocks(const DropoutArgs& args, int64_t first, int64_t last) {
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  uint32_t words[4][kLanes];
  for (int64_t block = first; block < last; ++block) {
    const int64_t base = block * kBlock, count = std::min(kBlock, args.n - base);
    philox_lanes(args.trailer->key, args.trailer->salt, Role::kDropout, 0, base / 4, words);
    for (int64_t i = 0; i < count; ++i) {
      const bool keeps = words[i & 3][i >> 2] >= args.threshold;
      y[base + i] = keeps ? narrow<T>(widen(x[base + i]) * static_cast<Accumulate<T>>(args.scale)) : T{};
    }
  }
}

}  // namespace

int dropout(const DropoutArgs& args) {
  if (args.salt >= 0)
    *args.trailer = Trailer{args.trailer->key, static_cast<uint64_t>(args.salt), kFormatVersion, {}};
  return visit_dtype(args.dtype, [&](auto tag) {
    parallel_for(args.exec, (args.n + kBlock - 1) / kBlock, 1 << 8, [&](int64_t begin, int64_t end) {
      dropout_blocks<typename decltype(tag)::type>(args, begin, end);
    });
    return 0;
  });
}

}  // namespace rad::cpu

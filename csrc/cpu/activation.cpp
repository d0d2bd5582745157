#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>

#include "cpu/codes.h"
#include "cpu/derivative.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kGrain = 1 << 7;
constexpr int kGroups = kBlock / kGroup;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

// Blocks [first, last) of x; true where a derivative is NaN.
template <class T>
bool encode_blocks(const ActivationArgs& args, const RangeCode<Accumulate<T>>& code, const Trailer& trailer,
                   int64_t first, int64_t last) {
  const DerivativeLayout layout(args.n, args.bits);
  auto* codes = static_cast<uint8_t*>(args.saved);
  Block<Accumulate<T>> value;
  uint16_t noise[kBlock];
  alignas(64) uint8_t bytes[kBlock];
  bool nan = false;
  for (int64_t block = first; block < last; ++block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, args.n - begin);
    load_block(static_cast<const T*>(args.x) + begin, count, value);
    if (derivative_block(args.activation, value, value)) nan = true;
    dither_block(trailer.key, trailer.salt, 0, begin, noise, Role::kDerivative);
    for (int g = 0; g < kGroups; ++g)
      encode_group(code, value.value + g * kGroup, noise + g * kGroup, args.bits,
                   bytes + g * kGroup * args.bits / 8);
    clear_bits(bytes, count * args.bits, kBlock * args.bits / 8);
    const int64_t at = begin * args.bits / 8;
    std::memcpy(codes + at, bytes, std::min<int64_t>(kBlock * args.bits / 8, layout.codes - at));
  }
  return nan;
}

template <class T>
void multiply_blocks(const ActivationBackwardArgs& args, const Dither<Accumulate<T>>& dither,
                     const Trailer& trailer, int64_t first, int64_t last) {
  const DerivativeLayout layout(args.n, args.bits);
  const auto* codes = static_cast<const uint8_t*>(args.saved);
  Block<Accumulate<T>> value;
  uint16_t noise[kBlock];
  alignas(64) uint8_t bytes[kBlock] = {};
  for (int64_t block = first; block < last; ++block) {
    const int64_t begin = block * kBlock, count = std::min(kBlock, args.n - begin);
    const int64_t at = begin * args.bits / 8;
    std::memcpy(bytes, codes + at, std::min<int64_t>(kBlock * args.bits / 8, layout.codes - at));
    dither_block(trailer.key, trailer.salt, 0, begin, noise, Role::kDerivative);
    for (int g = 0; g < kGroups; ++g)
      decode_group(dither, bytes + g * kGroup * args.bits / 8, noise + g * kGroup, args.bits,
                   value.value + g * kGroup);
    multiply_block(static_cast<const T*>(args.dy) + begin, value, count, static_cast<T*>(args.dx) + begin);
  }
}

}  // namespace

int activation(const ActivationArgs& args) {
  const DerivativeLayout layout(args.n, args.bits);
  auto* data = static_cast<char*>(args.saved);
  auto* trailer = reinterpret_cast<Trailer*>(data + layout.trailer);
  std::fill(data + layout.codes, data + layout.trailer, 0);
  *trailer = Trailer{trailer->key, args.salt, kFormatVersion, {}};
  std::atomic<bool> nan = false;
  visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto code = derivative_code<Accumulate<T>>(args.activation, args.bits);
    parallel_for(args.exec, blocks_of(args.n), kGrain, [&](int64_t begin, int64_t end) {
      if (encode_blocks<T>(args, code, *trailer, begin, end)) nan = true;
    });
    return 0;
  });
  trailer->reserved[kSpoiled] = nan;
  return 0;
}

int activation_backward(const ActivationBackwardArgs& args) {
  const DerivativeLayout layout(args.n, args.bits);
  const auto* trailer =
      reinterpret_cast<const Trailer*>(static_cast<const char*>(args.saved) + layout.trailer);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto dither = derivative_code<Accumulate<T>>(args.activation, args.bits).dither;
    if (trailer->reserved[kSpoiled]) dither.step = std::numeric_limits<Accumulate<T>>::quiet_NaN();
    parallel_for(args.exec, blocks_of(args.n), kGrain,
                 [&](int64_t begin, int64_t end) { multiply_blocks<T>(args, dither, *trailer, begin, end); });
    return 0;
  });
}

}  // namespace rad::cpu

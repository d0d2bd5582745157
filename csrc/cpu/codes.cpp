#include "cpu/codes.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/dither.h"
#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

// The loops of one group: fixed length and no branches, so that they vectorise.
template <class Real>
struct Group {
  static constexpr int kWidth = 16;

  static inline __attribute__((always_inline)) void range(const Real* v, Real* lo, Real* hi) {
    Real least[kWidth], most[kWidth], rest[kWidth];
    for (int i = 0; i < kWidth; ++i) least[i] = most[i] = v[i], rest[i] = v[i] - v[i];
    for (int j = kWidth; j < kGroup; j += kWidth) {
      for (int i = 0; i < kWidth; ++i) {
        const Real value = v[j + i];
        least[i] = value < least[i] ? value : least[i];
        most[i] = value > most[i] ? value : most[i];
        rest[i] += value - value;  // NaN where a value is not finite
      }
    }
    Real finite = 0;
    for (int i = 0; i < kWidth; ++i) {
      least[0] = least[i] < least[0] ? least[i] : least[0];
      most[0] = most[i] > most[0] ? most[i] : most[0];
      finite += rest[i];
    }
    *lo = least[0] + finite;
    *hi = most[0] + finite;
  }

  static inline __attribute__((always_inline)) void encode(Dither<Real> dither, const Real* v,
                                                           const uint16_t* noise, uint8_t* codes) {
    for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(dither.encode(v[i], noise[i]));
  }

  static inline __attribute__((always_inline)) void decode(Dither<Real> dither, const uint8_t* codes,
                                                           const uint16_t* noise, Real* out) {
    for (int i = 0; i < kGroup; ++i) out[i] = dither.decode(codes[i], noise[i]);
  }
};

RAD_VECTOR_CLONES void encode_codes(const Dither<float>& d, const float* v, const uint16_t* noise,
                                    uint8_t* codes) {
  Group<float>::encode(d, v, noise, codes);
}
RAD_VECTOR_CLONES void encode_codes(const Dither<double>& d, const double* v, const uint16_t* noise,
                                    uint8_t* codes) {
  Group<double>::encode(d, v, noise, codes);
}
RAD_VECTOR_CLONES void decode_codes(const Dither<float>& d, const uint8_t* codes, const uint16_t* noise,
                                    float* out) {
  Group<float>::decode(d, codes, noise, out);
}
RAD_VECTOR_CLONES void decode_codes(const Dither<double>& d, const uint8_t* codes, const uint16_t* noise,
                                    double* out) {
  Group<double>::decode(d, codes, noise, out);
}

// The fewest codes that fill whole bytes are packed at a time.
template <int kBits>
struct Unit {
  static constexpr int kBytes = kBits == 3 ? 3 : 1, kCodes = 8 * kBytes / kBits;
};

template <int kBits>
void pack_codes(const uint8_t* codes, uint8_t* bytes) {
  constexpr int kCodes = Unit<kBits>::kCodes, kBytes = Unit<kBits>::kBytes;
  for (int i = 0; i < kGroup / kCodes; ++i) {
    uint32_t word = 0;
    for (int j = 0; j < kCodes; ++j) word |= static_cast<uint32_t>(codes[i * kCodes + j]) << (kBits * j);
    for (int j = 0; j < kBytes; ++j) bytes[i * kBytes + j] = static_cast<uint8_t>(word >> (8 * j));
  }
}

template <int kBits>
void unpack_codes(const uint8_t* bytes, uint8_t* codes) {
  constexpr int kCodes = Unit<kBits>::kCodes, kBytes = Unit<kBits>::kBytes, kMask = (1 << kBits) - 1;
  for (int i = 0; i < kGroup / kCodes; ++i) {
    uint32_t word = 0;
    for (int j = 0; j < kBytes; ++j) word |= static_cast<uint32_t>(bytes[i * kBytes + j]) << (8 * j);
    for (int j = 0; j < kCodes; ++j) codes[i * kCodes + j] = word >> (kBits * j) & kMask;
  }
}

template <class F>
void with_bits(int64_t bits, const F& f) {
  switch (bits) {
    case 8:
      return f(std::integral_constant<int, 8>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    default:
      return f(std::integral_constant<int, 1>{});
  }
}

// Bytes of the codes of the group that starts at `at`; the last one of a line ends with its last word.
int64_t code_bytes(const SavedLayout& m, int64_t tile, int64_t at) {
  return std::min<int64_t>(kGroup * m.bits / 8, m.pitch(tile) - at * m.bits / 8);
}

}  // namespace

RAD_VECTOR_CLONES void range_of(const float* v, float* lo, float* hi) { Group<float>::range(v, lo, hi); }
RAD_VECTOR_CLONES void range_of(const double* v, double* lo, double* hi) { Group<double>::range(v, lo, hi); }

template <class Real>
void encode_group(const Dither<Real>& dither, const Real* values, const uint16_t* noise, int bits,
                  uint8_t* bytes) {
  alignas(64) uint8_t codes[kGroup];
  encode_codes(dither, values, noise, codes);
  with_bits(bits, [&](auto b) { pack_codes<decltype(b)::value>(codes, bytes); });
}

template <class Real>
void decode_group(const Dither<Real>& dither, const uint8_t* bytes, const uint16_t* noise, int bits,
                  Real* values) {
  alignas(64) uint8_t codes[kGroup];
  with_bits(bits, [&](auto b) { unpack_codes<decltype(b)::value>(bytes, codes); });
  decode_codes(dither, codes, noise, values);
}

template <class T, class Lo>
void encode_block(const SavedView& saved, int64_t tile, int64_t line, int64_t begin, int64_t count,
                  const T* values) {
  using Real = Accumulate<T>;
  const SavedLayout& m = saved.layout;
  const int64_t bits = m.bits, end = begin + count;
  uint16_t noise[kBlock];
  alignas(64) Real group[kGroup];
  alignas(64) uint8_t codes[kGroup], bytes[kGroup];
  dither_block(saved.key, saved.salt, tile * m.lines + line, begin, noise);
  for (int64_t at = begin; at < end; at += kGroup, values += kGroup) {
    const int64_t used = std::min<int64_t>(kGroup, end - at);
    for (int64_t i = 0; i < used; ++i) group[i] = widen(values[i]);
    std::fill(group + used, group + kGroup, group[0]);
    Real lo, hi;
    range_of(group, &lo, &hi);
    if constexpr (std::is_same_v<Lo, BFloat16>) lo = down_to_bf16(lo);
    const float step = Dither<Real>::step_for(lo, hi, static_cast<int>(bits));
    encode_codes(Dither<Real>(lo, step, static_cast<int>(bits)), group, noise + (at - begin), codes);
    std::fill(codes + used, codes + kGroup, uint8_t{0});
    with_bits(bits, [&](auto b) { pack_codes<decltype(b)::value>(codes, bytes); });
    std::memcpy(saved.line(tile, line) + at * bits / 8, bytes, code_bytes(m, tile, at));
    const int64_t place = m.group_place(tile, at / kGroup, line);
    const auto kept = static_cast<Accumulate<Lo>>(Dither<Real>::stored_lo(lo, step));
    reinterpret_cast<Lo*>(saved.data + m.lo)[place] = narrow<Lo>(kept);
    reinterpret_cast<uint16_t*>(saved.data + m.step)[place] = bf16_bits(step);
  }
}

template <class T, class Real>
void decode_block(const SavedView& saved, int64_t tile, int64_t line, int64_t begin, int64_t count,
                  Real* out) {
  const SavedLayout& m = saved.layout;
  const int64_t bits = m.bits, end = begin + count;
  if (!bits) {
    const T* values = reinterpret_cast<const T*>(saved.line(tile, line)) + begin;
    for (int64_t i = 0; i < count; ++i) out[i] = widen(values[i]);
    return;
  }
  uint16_t noise[kBlock];
  alignas(64) Real group[kGroup];
  alignas(64) uint8_t bytes[kGroup] = {};
  dither_block(saved.key, saved.salt, tile * m.lines + line, begin, noise);
  for (int64_t at = begin; at < end; at += kGroup, out += kGroup) {
    std::memcpy(bytes, saved.line(tile, line) + at * bits / 8, code_bytes(m, tile, at));
    const int64_t place = m.group_place(tile, at / kGroup, line);
    const Real lo = widen(reinterpret_cast<const T*>(saved.data + m.lo)[place]);
    const float step = bf16_value(reinterpret_cast<const uint16_t*>(saved.data + m.step)[place]);
    const auto width = static_cast<int>(bits);
    decode_group(Dither<Real>(lo, step, width), bytes, noise + (at - begin), width, group);
    std::copy(group, group + std::min<int64_t>(kGroup, end - at), out);
  }
}

template void encode_group<float>(const Dither<float>&, const float*, const uint16_t*, int, uint8_t*);
template void encode_group<double>(const Dither<double>&, const double*, const uint16_t*, int, uint8_t*);
template void decode_group<float>(const Dither<float>&, const uint8_t*, const uint16_t*, int, float*);
template void decode_group<double>(const Dither<double>&, const uint8_t*, const uint16_t*, int, double*);

#define RAD_INSTANTIATE(T)                                                                       \
  template void encode_block<T>(const SavedView&, int64_t, int64_t, int64_t, int64_t, const T*); \
  template void decode_block<T>(const SavedView&, int64_t, int64_t, int64_t, int64_t, Accumulate<T>*);
RAD_INSTANTIATE(float)
RAD_INSTANTIATE(double)
RAD_INSTANTIATE(BFloat16)
RAD_INSTANTIATE(Half)
#undef RAD_INSTANTIATE
template void encode_block<float, BFloat16>(const SavedView&, int64_t, int64_t, int64_t, int64_t,
                                            const float*);
template void encode_block<double, BFloat16>(const SavedView&, int64_t, int64_t, int64_t, int64_t,
                                             const double*);
template void decode_block<BFloat16, double>(const SavedView&, int64_t, int64_t, int64_t, int64_t, double*);

}  // namespace rad::cpu

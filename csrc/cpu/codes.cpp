#include "cpu/codes.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "core/dither.h"
#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

// Codes of `kBits` bits side by side in bytes, the first one lowest. Bytes of as many codes as fit one are
// read as one little-endian word, whose parts then close up.
static_assert(std::endian::native == std::endian::little);
template <int kBits>
struct Packing {
  using Word = std::conditional_t<kBits == 4, uint16_t, std::conditional_t<kBits == 2, uint32_t, uint64_t>>;
  static constexpr int kCodes = sizeof(Word), kWords = kGroup / kCodes, kMask = (1 << kBits) - 1;
  static constexpr int kBytes = kCodes * kBits / 8;

  RAD_INLINE static void pack(const uint8_t* codes, uint8_t* bytes) {
    Word words[kWords];
    std::memcpy(words, codes, kGroup);
    for (int i = 0; i < kWords; ++i) {
      Word closed = 0;
      for (int j = 0; j < kCodes; ++j)
        closed = static_cast<Word>(closed | (words[i] >> (8 - kBits) * j & Word{kMask} << kBits * j));
      for (int j = 0; j < kBytes; ++j) bytes[i * kBytes + j] = static_cast<uint8_t>(closed >> 8 * j);
    }
  }
  RAD_INLINE static void unpack(const uint8_t* bytes, uint8_t* codes) {
    Word words[kWords];
    for (int i = 0; i < kWords; ++i) {
      Word closed = 0, word = 0;
      for (int j = 0; j < kBytes; ++j)
        closed = static_cast<Word>(closed | Word{bytes[i * kBytes + j]} << 8 * j);
      for (int j = 0; j < kCodes; ++j)
        word = static_cast<Word>(word | (closed & Word{kMask} << kBits * j) << (8 - kBits) * j);
      words[i] = word;
    }
    std::memcpy(codes, words, kGroup);
  }
};
template <>
struct Packing<8> {
  RAD_INLINE static void pack(const uint8_t* codes, uint8_t* bytes) { std::memcpy(bytes, codes, kGroup); }
  RAD_INLINE static void unpack(const uint8_t* bytes, uint8_t* codes) { std::memcpy(codes, bytes, kGroup); }
};

template <class F>
RAD_INLINE void with_bits(int64_t bits, const F& f) {
  switch (bits) {
    case 8:
      return f(Packing<8>{});
    case 4:
      return f(Packing<4>{});
    case 3:
      return f(Packing<3>{});
    case 2:
      return f(Packing<2>{});
    default:
      return f(Packing<1>{});
  }
}

// The loops of one group: fixed length and no branches, so that they vectorise.
template <class Real>
struct Group {
  RAD_INLINE static void range(const Real* v, Real* lo, Real* hi) {
    using W = Wide<Real>;
    typename W::Vector least = W(v).v, most = least, rest = least - least;
    for (int i = W::kCount; i < kGroup; i += W::kCount) {
      const typename W::Vector value = W(v + i).v;
      least = value < least ? value : least;
      most = value > most ? value : most;
      rest += value - value;  // NaN where a value is not finite
    }
    const Real finite =
        W::joined(rest, [](auto& a, const auto& b) __attribute__((always_inline)) { a += b; });
    *lo = finite +
          W::joined(least, [](auto& a, const auto& b) __attribute__((always_inline)) { a = b < a ? b : a; });
    *hi = finite +
          W::joined(most, [](auto& a, const auto& b) __attribute__((always_inline)) { a = b > a ? b : a; });
  }

  template <class Code>
  RAD_INLINE static void encode(Code code, const Real* v, const uint16_t* noise, int bits, uint8_t* bytes) {
    alignas(64) uint8_t codes[kGroup];
    for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<uint8_t>(code.encode(v[i], noise[i]));
    with_bits(bits, [&](auto packing) __attribute__((always_inline)) { packing.pack(codes, bytes); });
  }

  RAD_INLINE static void decode(Dither<Real> dither, const uint8_t* bytes, const uint16_t* noise, int bits,
                                Real* out) {
    alignas(64) uint8_t codes[kGroup];
    with_bits(bits, [&](auto packing) __attribute__((always_inline)) { packing.unpack(bytes, codes); });
    for (int i = 0; i < kGroup; ++i) out[i] = dither.decode(codes[i], noise[i]);
  }
};

// Bytes of the codes of the group that starts at `at`; the last one of a line ends with its last word.
int64_t code_bytes(const SavedLayout& m, int64_t tile, int64_t at) {
  return std::min<int64_t>(kGroup * m.bits / 8, m.pitch(tile) - at * m.bits / 8);
}

// `used` values as a group of numbers, the first repeated after the last; in place where nothing changes.
template <class T>
const Accumulate<T>* whole_group(const T* values, int64_t used, Accumulate<T>* buffer) {
  if constexpr (std::is_same_v<T, Accumulate<T>>)
    if (used == kGroup) return values;
  for (int64_t i = 0; i < used; ++i) buffer[i] = widen(values[i]);
  std::fill(buffer + used, buffer + kGroup, buffer[0]);
  return buffer;
}

}  // namespace

// Function multiversioning takes no templates, so one overload a type.
#define RAD_LOOPS(Real)                                                                                      \
  RAD_VECTOR_CLONES void range_of(const Real* v, Real* lo, Real* hi) { Group<Real>::range(v, lo, hi); }      \
  RAD_VECTOR_CLONES void encode_group(const Dither<Real>& dither, const Real* values, const uint16_t* noise, \
                                      int bits, uint8_t* bytes) {                                            \
    Group<Real>::encode(dither, values, noise, bits, bytes);                                                 \
  }                                                                                                          \
  RAD_VECTOR_CLONES void encode_group(const RangeCode<Real>& code, const Real* values,                       \
                                      const uint16_t* noise, int bits, uint8_t* bytes) {                     \
    Group<Real>::encode(code, values, noise, bits, bytes);                                                   \
  }                                                                                                          \
  RAD_VECTOR_CLONES void decode_group(const Dither<Real>& dither, const uint8_t* bytes,                      \
                                      const uint16_t* noise, int bits, Real* values) {                       \
    Group<Real>::decode(dither, bytes, noise, bits, values);                                                 \
  }
RAD_LOOPS(float)
RAD_LOOPS(double)
#undef RAD_LOOPS

void clear_bits(uint8_t* bytes, int64_t first, int64_t size) {
  const int64_t byte = first / 8;
  if (byte == size) return;
  bytes[byte] = static_cast<uint8_t>(bytes[byte] & ((1 << first % 8) - 1));
  std::fill(bytes + byte + 1, bytes + size, uint8_t{0});
}

template <class T, class Lo>
void encode_block(const SavedView& saved, int64_t tile, int64_t line, int64_t begin, int64_t count,
                  const T* values) {
  using Real = Accumulate<T>;
  const SavedLayout& m = saved.layout;
  const int64_t bits = m.bits, end = begin + count;
  uint16_t noise[kBlock];
  alignas(64) Real buffer[kGroup];
  alignas(64) uint8_t bytes[kGroup];
  dither_block(saved.key, saved.salt, tile * m.lines + line, begin, noise);
  for (int64_t at = begin; at < end; at += kGroup, values += kGroup) {
    const int64_t used = std::min<int64_t>(kGroup, end - at);
    const Real* group = whole_group(values, used, buffer);
    Real lo, hi;
    range_of(group, &lo, &hi);
    if constexpr (std::is_same_v<Lo, BFloat16>) lo = down_to_bf16(lo);
    const float step = Dither<Real>::step_for(lo, hi, static_cast<int>(bits));
    const auto width = static_cast<int>(bits);
    encode_group(Dither<Real>(lo, step, width), group, noise + (at - begin), width, bytes);
    clear_bits(bytes, used * bits, kGroup);
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

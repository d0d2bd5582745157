// Stored values on the device, plain or dithered. A thread handles an octet, the eight values whose noise is
// one Philox call; eight threads side by side, a team, make a group.
#pragma once
#include "core/dither.h"
#include "cuda/octets.cuh"

namespace rad::cuda {

constexpr int kTeam = kGroup / kOctet;

inline float level_below(int bits) {
  const float levels = static_cast<float>((1 << bits) - 1), level = 1 / levels;
  return bits && static_cast<double>(level) * levels > 1 ? std::nextafter(level, 0.0f) : level;
}

struct SavedView {
  SavedLayout layout;
  char* data;
  float level;  // the greatest number that is at most 1 / (2^bits - 1)

  SavedView(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features, const void* saved)
      : layout(saved_layout(spec, dtype, rows, features)),
        data(static_cast<char*>(const_cast<void*>(saved))),
        level(level_below(spec.bits)) {}

  template <class T>
  RAD_HD T* plane(int64_t offset) const {
    return reinterpret_cast<T*>(data + offset);
  }
  RAD_HD Trailer* trailer() const { return plane<Trailer>(layout.trailer); }
  RAD_HD KeySource key() const { return {trailer(), -1}; }
};

// Threads for every octet of a line's groups, teams complete.
RAD_HD int64_t octets_of(int64_t width) { return (width + kGroup - 1) / kGroup * kTeam; }

// ---- codes as bits ----------------------------------------------------------------------------------------

// Values [first, first + 8) of the lines of one tile: all about them that does not depend on the line.
template <class T>
struct OctetPlace {
  char* codes;     // line 0's
  T* lo;           // of their group, line 0's
  uint16_t* step;  // likewise
  int64_t pitch, first_line, octet;
  int bits, count;  // how many of the values exist
  int bytes;        // of their codes to the line's end
  float level;      // SavedView's

  // Whether the group has all its values: all its teams' threads agree.
  RAD_DEVICE bool whole_group(int64_t width) const { return (octet / kTeam + 1) * kGroup <= width; }

  // `first` is a multiple of 8, and not beyond the line's last group.
  RAD_DEVICE OctetPlace(const SavedView& saved, int64_t tile, int64_t first) {
    const SavedLayout& m = saved.layout;
    const int64_t at = first / kOctet * m.bits, left = m.tile_width(tile) - first;
    const int64_t place = m.group_place(tile, first / kGroup, 0);
    pitch = m.pitch(tile);
    codes = saved.data + m.line_offset(tile, 0) + at;
    lo = saved.plane<T>(m.lo) + place;
    step = saved.plane<uint16_t>(m.step) + place;
    first_line = tile * m.lines;
    octet = first / kOctet;
    bits = static_cast<int>(m.bits);
    count = static_cast<int>(left < 0 ? 0 : left < kOctet ? left : kOctet);
    bytes = static_cast<int>(pitch - at < kOctet ? pitch - at : kOctet);
    level = saved.level;
  }

  RAD_DEVICE Words noise(const Seed& seed, int64_t line) const {
    return random_words(seed, Role::kDither, first_line + line, octet);
  }

  // An octet's codes from the low end. The words of a line are written to their end and not beyond.
  template <bool Whole, int Bits>
  RAD_DEVICE void store_codes(int64_t line, uint64_t value) const {
    if (!Whole && bytes <= 0) return;
    char* to = codes + line * pitch;
    switch (Bits ? Bits : opaque(bits)) {
      case 8:
        reinterpret_cast<uint32_t*>(to)[0] = static_cast<uint32_t>(value);
        if (Whole || bytes > 4) reinterpret_cast<uint32_t*>(to)[1] = static_cast<uint32_t>(value >> 32);
        break;
      case 4:
        *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(value);
        break;
      case 3:
#pragma unroll
        for (int byte = 0; byte < 3; ++byte)
          if (Whole || byte < bytes) to[byte] = static_cast<char>(value >> (8 * byte));
        break;
      case 2:
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(value);
        break;
      default:
        *reinterpret_cast<uint8_t*>(to) = static_cast<uint8_t>(value);
    }
  }

  RAD_DEVICE uint64_t load_codes(int64_t line) const {
    const char* from = codes + line * pitch;
    switch (opaque(bits)) {
      case 8: {
        const uint64_t high = bytes > 4 ? reinterpret_cast<const uint32_t*>(from)[1] : 0;
        return high << 32 | reinterpret_cast<const uint32_t*>(from)[0];
      }
      case 4:
        return *reinterpret_cast<const uint32_t*>(from);
      case 3: {
        uint64_t value = 0;
#pragma unroll
        for (int byte = 0; byte < 3; ++byte)
          if (byte < bytes) value |= static_cast<uint64_t>(static_cast<uint8_t>(from[byte])) << (8 * byte);
        return value;
      }
      case 2:
        return *reinterpret_cast<const uint16_t*>(from);
      default:
        return *reinterpret_cast<const uint8_t*>(from);
    }
  }
};

// ---- numbers ----------------------------------------------------------------------------------------------

// T is the type of values, and of each group's least one; Real that of numbers.
template <class T, class Real = Accumulate<T>>
RAD_DEVICE Dither<Real> group_dither(const SavedView& saved, int64_t tile, int64_t line, int64_t column) {
  const SavedLayout& m = saved.layout;
  const int64_t place = m.group_place(tile, column / kGroup, line);
  const uint32_t step = saved.plane<const uint16_t>(m.step)[place];
  return {static_cast<Real>(widen(saved.plane<const T>(m.lo)[place])), bits_float(step << 16),
          static_cast<int>(m.bits)};
}

// Range of a team's values; false where one of them is not finite.
template <class Real>
RAD_DEVICE bool team_range(unsigned team, const Real (&value)[kOctet], Real& lo, Real& hi) {
  lo = hi = value[0];
#pragma unroll
  for (int e = 1; e < kOctet; ++e) {
    lo = min_or_nan(lo, value[e]);
    hi = max_or_nan(hi, value[e]);
  }
#pragma unroll
  for (int step = 1; step < kTeam; step *= 2) {
    lo = min_or_nan(lo, __shfl_xor_sync(team, lo, step));
    hi = max_or_nan(hi, __shfl_xor_sync(team, hi, step));
  }
  lo += Real(0);  // either zero becomes +0
  hi += Real(0);
  return product(hi - lo, Real(0)) == 0;
}

// Dither<Real>::step_for; NaN where lo or hi is no finite number.
RAD_DEVICE float group_step(double lo, double hi, int bits, float) {
  return Dither<double>::step_for(lo, hi, bits);
}
// Without its quotients. One that is not above range / levels, rounded up to bf16, is the step or the bf16
// number before it; the latter times `levels`, which is exact, is less than the range.
RAD_DEVICE float group_step(float lo, float hi, int bits, float level) {
  const float range = hi - lo;
  float step = step_up_to_bf16(multiply_toward_zero(range, level));
  if (range > product(step, static_cast<float>((1 << bits) - 1)))
    step = bits_float(float_bits(step) + 0x10000u);
  return step;
}

// The team's group of one line -> codes, lo and step. Every thread of the team calls; values past the line's
// end are anything. Whole: the group has all its values. Stored: they are numbers of type T. Bits: of a code,
// or any.
constexpr int kAnyBits = 0;
template <bool Whole, bool Stored, int Bits, class T, class Real>
RAD_DEVICE void encode_octet(const OctetPlace<T>& place, const Seed& seed, int64_t line,
                             Real (&value)[kOctet]) {
  const int lane = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x) % 32;
  const unsigned team = 0xFFu << (lane / kTeam * kTeam);
  if constexpr (!Whole) {
    const Real filler = __shfl_sync(team, value[0], 0, kTeam);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) value[e] = e < place.count ? value[e] : filler;
  }
  Real lo, hi;
  team_range(team, value, lo, hi);
  if constexpr (std::is_same_v<T, bf16> && !Stored) lo = down_to_bf16(lo);
  const int bits = Bits ? Bits : place.bits;
  const float step = group_step(lo, hi, bits, place.level);
  const uint64_t codes = OctetDither<Real>(lo, step).encode(value, place.noise(seed, line), bits);
  place.template store_codes<Whole, Bits>(line, Whole ? codes : first_codes(codes, place.count, bits));
  if (place.octet % kTeam == 0) {
    place.lo[line] = narrow<T>(static_cast<Accumulate<T>>(Dither<Real>::stored_lo(lo, step)));
    place.step[line] = static_cast<uint16_t>(float_bits(step) >> 16);
  }
}
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void encode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  encode_octet<false, false, kAnyBits>(OctetPlace<T>(saved, tile, first), seed, line, value);
}

// One line's values of a place as numbers; those past its end are anything. Nibbles: their codes have four
// bits.
template <bool Nibbles, class T, class Real>
RAD_DEVICE void decode_octet(const OctetPlace<T>& place, const Seed& seed, int64_t line,
                             Real (&value)[kOctet]) {
  const float step = bits_float(static_cast<uint32_t>(place.step[line]) << 16);
  const OctetDither<Real> dither(static_cast<Real>(widen(place.lo[line])), step);
  if constexpr (Nibbles && std::is_same_v<Real, float>)
    dither.decode_nibbles(*reinterpret_cast<const uint32_t*>(place.codes + line * place.pitch),
                          place.noise(seed, line), value);
  else
    dither.decode(place.load_codes(line), place.noise(seed, line), place.bits, value);
}
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void decode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  decode_octet<false>(OctetPlace<T>(saved, tile, first), seed, line, value);
}

// Coded value `column`, whose noise is in `noise`.
template <class T, class Real = Accumulate<T>>
RAD_DEVICE Real decode_value(const SavedView& saved, const Words& noise, int64_t tile, int64_t line,
                             int64_t column) {
  const int bits = static_cast<int>(saved.layout.bits), within = static_cast<int>(column * bits % 8);
  const auto* bytes = saved.plane<const uint8_t>(saved.layout.line_offset(tile, line) + column * bits / 8);
  int content = bytes[0];
  if (within + bits > 8) content |= bytes[1] << 8;  // three bits across two bytes
  const int code = content >> within & ((1 << bits) - 1);
  return group_dither<T, Real>(saved, tile, line, column).decode(code, dither_noise(noise, column));
}

// Any one stored value.
template <class T, class Real = Accumulate<T>>
RAD_DEVICE Real stored_value(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t column) {
  const SavedLayout& m = saved.layout;
  if (!m.bits) return widen(saved.plane<const T>(m.line_offset(tile, line))[column]);
  const Words noise = dither_call(seed.key, seed.salt, tile * m.lines + line, column);
  return decode_value<T, Real>(saved, noise, tile, line, column);
}

}  // namespace rad::cuda

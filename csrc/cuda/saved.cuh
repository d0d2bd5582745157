// Stored values on the device, plain or dithered. A thread handles an octet, the eight values whose noise is
// one Philox call; eight threads side by side, a team, make a group.
#pragma once
#include "core/dither.h"
#include "cuda/octets.cuh"

namespace rad::cuda {

constexpr int kTeam = kGroup / kOctet;

struct SavedView {
  SavedLayout layout;
  char* data;

  SavedView(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features, const void* saved)
      : layout(saved_layout(spec, dtype, rows, features)),
        data(static_cast<char*>(const_cast<void*>(saved))) {}

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
  }

  RAD_DEVICE Words noise(const Seed& seed, int64_t line) const {
    return random_words(seed, Role::kDither, first_line + line, octet);
  }

  // An octet's codes from the low end. The words of a line are written to their end and not beyond.
  template <bool Whole>
  RAD_DEVICE void store_codes(int64_t line, uint64_t value) const {
    if (!Whole && bytes <= 0) return;
    char* to = codes + line * pitch;
    switch (opaque(bits)) {
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

// Range of a team's values, of no meaning where one of them is not finite; false there.
template <class Real>
RAD_DEVICE bool team_range(unsigned team, const Real (&value)[kOctet], Real& lo, Real& hi) {
  Real poison = 0;
  lo = hi = value[0];
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    lo = min(lo, value[e]);
    hi = max(hi, value[e]);
    poison += product(value[e], Real(0));  // infinity and NaN make it NaN
  }
#pragma unroll
  for (int step = 1; step < kTeam; step *= 2) {
    lo = min(lo, __shfl_xor_sync(team, lo, step));
    hi = max(hi, __shfl_xor_sync(team, hi, step));
  }
  lo += Real(0);  // either zero becomes +0
  hi += Real(0);
  return __all_sync(team, static_cast<int>(poison == 0)) != 0;
}

// The team's group of one line -> codes, lo and step. Every thread of the team calls; values past the line's
// end are anything. Whole: the group has all its values.
template <bool Whole, class T, class Real>
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
  const bool finite = team_range(team, value, lo, hi);
  if constexpr (std::is_same_v<T, bf16>) lo = down_to_bf16(lo);
  const float step = finite ? Dither<Real>::step_for(lo, hi, place.bits) : bits_float(0x7FC00000u);
  const uint64_t codes = OctetDither<Real>(lo, step).encode(value, place.noise(seed, line), place.bits);
  place.template store_codes<Whole>(line, Whole ? codes : first_codes(codes, place.count, place.bits));
  if (place.octet % kTeam == 0) {
    place.lo[line] = narrow<T>(static_cast<Accumulate<T>>(Dither<Real>::stored_lo(lo, step)));
    place.step[line] = static_cast<uint16_t>(float_bits(step) >> 16);
  }
}
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void encode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  encode_octet<false>(OctetPlace<T>(saved, tile, first), seed, line, value);
}

// One line's values of a place as numbers; those past its end are anything.
template <class T, class Real>
RAD_DEVICE void decode_octet(const OctetPlace<T>& place, const Seed& seed, int64_t line,
                             Real (&value)[kOctet]) {
  const float step = bits_float(static_cast<uint32_t>(place.step[line]) << 16);
  const OctetDither<Real> dither(static_cast<Real>(widen(place.lo[line])), step);
  dither.decode(place.load_codes(line), place.noise(seed, line), place.bits, value);
}
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void decode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  decode_octet(OctetPlace<T>(saved, tile, first), seed, line, value);
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

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

// An octet's codes from the low end. The words of a line are written to their end and not beyond.
RAD_DEVICE void store_codes(const SavedView& saved, int64_t tile, int64_t line, int64_t first,
                            uint64_t codes) {
  const int64_t bits = saved.layout.bits, at = first / kOctet * bits, pitch = saved.layout.pitch(tile);
  char* to = saved.data + saved.layout.line_offset(tile, line) + at;
  if (at >= pitch) return;
  switch (bits) {
    case 8:
      reinterpret_cast<uint32_t*>(to)[0] = static_cast<uint32_t>(codes);
      if (at + 4 < pitch) reinterpret_cast<uint32_t*>(to)[1] = static_cast<uint32_t>(codes >> 32);
      break;
    case 4:
      *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(codes);
      break;
    case 3:
#pragma unroll
      for (int byte = 0; byte < 3; ++byte)
        if (at + byte < pitch)
          reinterpret_cast<uint8_t*>(to)[byte] = static_cast<uint8_t>(codes >> (8 * byte));
      break;
    case 2:
      *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(codes);
      break;
    default:
      *reinterpret_cast<uint8_t*>(to) = static_cast<uint8_t>(codes);
  }
}

RAD_DEVICE uint64_t load_codes(const SavedView& saved, int64_t tile, int64_t line, int64_t first) {
  const int64_t bits = saved.layout.bits, at = first / kOctet * bits, pitch = saved.layout.pitch(tile);
  const char* from = saved.data + saved.layout.line_offset(tile, line) + at;
  switch (bits) {
    case 8: {
      const uint64_t high = at + 4 < pitch ? reinterpret_cast<const uint32_t*>(from)[1] : 0;
      return high << 32 | reinterpret_cast<const uint32_t*>(from)[0];
    }
    case 4:
      return *reinterpret_cast<const uint32_t*>(from);
    case 3: {
      uint64_t codes = 0;
#pragma unroll
      for (int byte = 0; byte < 3; ++byte)
        if (at + byte < pitch) codes |= static_cast<uint64_t>(static_cast<uint8_t>(from[byte])) << (8 * byte);
      return codes;
    }
    case 2:
      return *reinterpret_cast<const uint16_t*>(from);
    default:
      return *reinterpret_cast<const uint8_t*>(from);
  }
}

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
  bool finite = true;
  lo = hi = value[0];
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    lo = value[e] < lo ? value[e] : lo;
    hi = value[e] > hi ? value[e] : hi;
    finite = finite && value[e] - value[e] == 0;
  }
#pragma unroll
  for (int step = 1; step < kTeam; step *= 2) {
    const Real low = __shfl_xor_sync(team, lo, step), high = __shfl_xor_sync(team, hi, step);
    lo = low < lo ? low : lo;
    hi = high > hi ? high : hi;
  }
  lo += Real(0);  // either zero becomes +0
  hi += Real(0);
  return __all_sync(team, static_cast<int>(finite)) != 0;
}

// The team's group -> codes, lo and step. Every thread of the team calls; values past the line's end are
// anything.
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void encode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  const SavedLayout& m = saved.layout;
  const int bits = static_cast<int>(m.bits);
  const int lane = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x) % 32;
  const unsigned team = 0xFFu << (lane / kTeam * kTeam);
  const int64_t left = m.tile_width(tile) - first;
  const Real filler = __shfl_sync(team, value[0], 0, kTeam);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) value[e] = e < left ? value[e] : filler;
  Real lo, hi;
  const bool finite = team_range(team, value, lo, hi);
  if constexpr (std::is_same_v<T, bf16>) lo = down_to_bf16(lo);
  const float step = finite ? Dither<Real>::step_for(lo, hi, bits) : bits_float(0x7FC00000u);
  const Dither<Real> dither(lo, step, bits);
  const Words noise = dither_call(seed.key, seed.salt, tile * m.lines + line, first);
  uint64_t codes = 0;
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    const auto code = static_cast<uint64_t>(dither.encode(value[e], dither_noise(noise, e)));
    codes |= e < left ? code << (bits * e) : 0;
  }
  store_codes(saved, tile, line, first, codes);
  if (first % kGroup == 0) {
    const int64_t place = m.group_place(tile, first / kGroup, line);
    saved.plane<T>(m.lo)[place] = narrow<T>(static_cast<Accumulate<T>>(Dither<Real>::stored_lo(lo, step)));
    saved.plane<uint16_t>(m.step)[place] = static_cast<uint16_t>(float_bits(step) >> 16);
  }
}

// Values [first, first + 8) of a line as numbers; `first`, a multiple of 8, is below its width.
template <class T, class Real = Accumulate<T>>
RAD_DEVICE void decode_octet(const SavedView& saved, const Seed& seed, int64_t tile, int64_t line,
                             int64_t first, Real (&value)[kOctet]) {
  const SavedLayout& m = saved.layout;
  const auto dither = group_dither<T, Real>(saved, tile, line, first);
  const Words noise = dither_call(seed.key, seed.salt, tile * m.lines + line, first);
  const uint64_t codes = load_codes(saved, tile, line, first);
  const int bits = static_cast<int>(m.bits);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) {
    const int code = static_cast<int>(codes >> (bits * e) & ((1u << bits) - 1));
    value[e] = dither.decode(code, dither_noise(noise, e));
  }
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

// 64 elements of one time step of a recurrent layer, held by a team of eight lanes: loading and storing them
// and their factors. A thread has eight consecutive elements, so one Philox call a stream.
#pragma once
#include "core/rnn_cell.h"
#include "cuda/common.cuh"

namespace rad::cuda {

constexpr int kOctet = 8;                 // elements of a thread
constexpr int kTeam = kGroup / kOctet;    // lanes of a group
constexpr int kTeams = kThreads / kTeam;  // of a block

template <class T>
struct RoundTo {
  RAD_DEVICE Accumulate<T> operator()(Accumulate<T> v) const { return widen(narrow<T>(v)); }
};

// Elements [first, first + count) of a [rows, hidden] matrix in row-major order.
struct RnnOctet {
  int64_t first, row, column, hidden;
  int count;

  RAD_DEVICE RnnOctet(int64_t group, int64_t elements, int64_t hidden_)
      : first(group * kGroup + static_cast<int64_t>(threadIdx.x) % kTeam * kOctet),
        row(first / hidden_),
        column(first % hidden_),
        hidden(hidden_) {
    const int64_t rest = elements - first;
    count = rest < 0 ? 0 : rest < kOctet ? static_cast<int>(rest) : kOctet;
  }

  // body(e, row, column) for each of the elements.
  template <class Body>
  RAD_DEVICE void for_each(const Body& body) const {
    int64_t r = row, c = column;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e < count) body(e, r, c);
      if (++c == hidden) c = 0, ++r;
    }
  }
  // Columns [part * hidden, (part + 1) * hidden) of a matrix whose rows are `stride` apart; zeros past the
  // end.
  template <class T>
  RAD_DEVICE void load(const void* matrix, int64_t stride, int64_t part, Accumulate<T>* out) const {
#pragma unroll
    for (int e = 0; e < kOctet; ++e) out[e] = 0;
    for_each([&](int e, int64_t r, int64_t c) {
      out[e] = widen(static_cast<const T*>(matrix)[r * stride + part * hidden + c]);
    });
  }
  template <class T>
  RAD_DEVICE void store(const Accumulate<T>* values, void* matrix, int64_t stride, int64_t part) const {
    for_each([&](int e, int64_t r, int64_t c) {
      static_cast<T*>(matrix)[r * stride + part * hidden + c] = narrow<T>(values[e]);
    });
  }
};

// `bits` bytes at `at` as one number, and back; `at` is a multiple of them.
RAD_DEVICE uint64_t load_codes(const void* at, int bits) {
  switch (bits) {
    case 8:
      return *static_cast<const uint64_t*>(at);
    case 4:
      return *static_cast<const uint32_t*>(at);
    case 2:
      return *static_cast<const uint16_t*>(at);
    default:
      return *static_cast<const uint8_t*>(at);
  }
}
RAD_DEVICE void store_codes(void* at, int bits, uint64_t codes) {
  switch (bits) {
    case 8:
      *static_cast<uint64_t*>(at) = codes;
      break;
    case 4:
      *static_cast<uint32_t*>(at) = static_cast<uint32_t>(codes);
      break;
    case 2:
      *static_cast<uint16_t*>(at) = static_cast<uint16_t>(codes);
      break;
    default:
      *static_cast<uint8_t*>(at) = static_cast<uint8_t>(codes);
  }
}

// One stream's factors of an octet, decoded one by one.
template <class T>
struct StoredFactor {
  using Real = Accumulate<T>;
  Words noise;
  uint64_t codes;
  Real lo, step;
  const T* plain;
  int bits;

  RAD_DEVICE Real at(int e) const {
    if (plain) return widen(plain[e]);
    const int code = static_cast<int>(codes >> (e * bits) & ((1u << bits) - 1));
    return Dither<Real>(lo, step, bits).decode(code, dither_noise(noise, e));
  }
};

// The streams of factors of one step.
template <class T>
struct RnnFactorStore {
  using Real = Accumulate<T>;
  RnnFactors f;
  int64_t step_bytes;
  int fixed;  // streams of known range come first
  Real lo[kMaxRnnStreams], step[kMaxRnnStreams];

  RnnFactorStore(const RnnFactors& factors, RnnCell cell, DType dtype, int64_t elements)
      : f(factors), step_bytes(rnn_step_bytes(elements, rnn_factor_bits(cell, factors.bits, dtype))) {
    const RnnStreams streams = rnn_streams(cell);
    fixed = streams.count - streams.ranged;
    for (int s = 0; s < kMaxRnnStreams; ++s) {
      const auto dither = rnn_fixed_dither<Real>(cell, s, factors.bits ? factors.bits : 8);
      lo[s] = dither.lo, step[s] = dither.step;
    }
  }

  RAD_DEVICE char* codes(int stream) const { return static_cast<char*>(f.codes) + stream * f.codes_pitch; }
  RAD_DEVICE Real* group_lo(int stream, int64_t group) const {
    return reinterpret_cast<Real*>(static_cast<char*>(f.lo) + (stream - fixed) * f.lo_pitch) + group;
  }
  RAD_DEVICE uint16_t* group_step(int stream, int64_t group) const {
    return reinterpret_cast<uint16_t*>(static_cast<char*>(f.step) + (stream - fixed) * f.step_pitch) + group;
  }
  RAD_DEVICE Words noise(int stream, int64_t first) const {
    return dither_call(f.trailer->key, f.trailer->salt, f.line, first, rnn_role(stream));
  }

  // The range of the team's group, which its first lane stores. All eight lanes come here together.
  RAD_DEVICE Dither<Real> group_dither(int stream, const RnnOctet& octet, const Real* values) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned team = 0xFFu << (lane & ~(kTeam - 1));
    Real least = __shfl_sync(team, values[0], lane & ~(kTeam - 1)), most = least, finite = least - least;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e >= octet.count) continue;
      least = values[e] < least ? values[e] : least;
      most = values[e] > most ? values[e] : most;
      finite += values[e] - values[e];  // NaN where a value is not finite
    }
#pragma unroll
    for (int distance = 1; distance < kTeam; distance *= 2) {
      const Real other_least = __shfl_xor_sync(team, least, distance);
      const Real other_most = __shfl_xor_sync(team, most, distance);
      finite += __shfl_xor_sync(team, finite, distance);
      least = other_least < least ? other_least : least;
      most = other_most > most ? other_most : most;
    }
    least += finite, most += finite;
    const float size = Dither<Real>::step_for(least, most, f.bits);
    if (octet.first % kGroup == 0) {
      *group_lo(stream, octet.first / kGroup) = Dither<Real>::stored_lo(least, size);
      *group_step(stream, octet.first / kGroup) = static_cast<uint16_t>(float_bits(size) >> 16);
    }
    return Dither<Real>(least, static_cast<Real>(size), f.bits);
  }

  // NaN has no place in a fixed range: the layer's output carries it.
  RAD_DEVICE void store(int stream, const RnnOctet& octet, const Real* values) const {
    if (!f.codes) return;
    if (!f.bits) {
      T* to = reinterpret_cast<T*>(codes(stream)) + octet.first;
      const int64_t room = step_bytes / static_cast<int64_t>(sizeof(T)) - octet.first;
#pragma unroll
      for (int e = 0; e < kOctet; ++e)
        if (e < room) to[e] = narrow<T>(e < octet.count ? values[e] : Real(0));
      return;
    }
    const bool ranged = stream >= fixed;
    const Dither<Real> dither =
        ranged ? group_dither(stream, octet, values) : Dither<Real>(lo[stream], step[stream], f.bits);
    const Words words = noise(stream, octet.first);
    uint64_t packed = 0;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const Real value = ranged || values[e] == values[e] ? values[e] : dither.lo;
      const auto code = static_cast<uint64_t>(dither.encode(value, dither_noise(words, e)));
      if (e < octet.count) packed |= code << (e * f.bits);
    }
    const int64_t at = octet.first / kOctet * f.bits;
    if (at < step_bytes) store_codes(codes(stream) + at, f.bits, packed);
  }

  RAD_DEVICE StoredFactor<T> load(int stream, const RnnOctet& octet) const {
    StoredFactor<T> out{};
    out.bits = f.bits;
    if (!f.bits) {
      out.plain = reinterpret_cast<const T*>(codes(stream)) + octet.first;
      return out;
    }
    out.codes = load_codes(codes(stream) + octet.first / kOctet * f.bits, f.bits);
    out.noise = noise(stream, octet.first);
    const bool ranged = stream >= fixed;
    out.lo = ranged ? *group_lo(stream, octet.first / kGroup) : lo[stream];
    out.step = ranged ? static_cast<Real>(bits_float(
                            static_cast<uint32_t>(*group_step(stream, octet.first / kGroup)) << 16))
                      : step[stream];
    return out;
  }
};

}  // namespace rad::cuda

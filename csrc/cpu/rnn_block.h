// 128 elements of one time step of a recurrent layer: loading and storing them and their factors.
#pragma once
#include <algorithm>
#include <cstring>

#include "core/dtype.h"
#include "core/rnn_cell.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {

// Elements [begin, begin + count) of a [rows, hidden] matrix in row-major order.
struct RnnBlock {
  int64_t begin, count, hidden;

  // body(at, row, column, length) for the pieces that lie in one row; `at` counts within the block.
  template <class Body>
  void for_each_run(const Body& body) const {
    int64_t row = begin / hidden, column = begin % hidden;
    for (int64_t at = 0; at < count; ++row, column = 0) {
      const int64_t length = std::min(count - at, hidden - column);
      body(at, row, column, length);
      at += length;
    }
  }

  // Columns [part * hidden, (part + 1) * hidden) of a matrix whose rows are `stride` apart.
  template <class T>
  void load(const void* matrix, int64_t stride, int64_t part, Accumulate<T>* out) const {
    for_each_run([&](int64_t at, int64_t row, int64_t column, int64_t length) {
      const T* from = static_cast<const T*>(matrix) + row * stride + part * hidden + column;
      for (int64_t i = 0; i < length; ++i) out[at + i] = widen(from[i]);
    });
  }
  template <class T>
  void store(const Accumulate<T>* values, void* matrix, int64_t stride, int64_t part) const {
    for_each_run([&](int64_t at, int64_t row, int64_t column, int64_t length) {
      T* to = static_cast<T*>(matrix) + row * stride + part * hidden + column;
      for (int64_t i = 0; i < length; ++i) to[i] = narrow<T>(values[at + i]);
    });
  }
};

// body(block) over `elements` elements, on the caller's threads.
template <class Body>
void for_each_rnn_block(const Exec& exec, int64_t elements, int64_t hidden, const Body& body) {
  parallel_for(exec, (elements + kBlock - 1) / kBlock, 64, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b)
      body(RnnBlock{b * kBlock, std::min(kBlock, elements - b * kBlock), hidden});
  });
}

// The streams of factors of one step.
template <class T>
class RnnFactorStore {
 public:
  using Real = Accumulate<T>;

  RnnFactorStore(const RnnFactors& factors, RnnCell cell, DType dtype, int64_t elements)
      : f_(factors),
        cell_(cell),
        elements_(elements),
        step_bytes_(rnn_step_bytes(elements, rnn_factor_bits(cell, factors.bits, dtype))) {}

  // values [kBlock], of which block.count count; the rest is overwritten.
  void store(int stream, const RnnBlock& block, Real* values) const {
    if (!f_.codes) return;
    if (!f_.bits) return store_plain(stream, block, values);
    uint16_t noise[kBlock];
    uint8_t bytes[kGroup];
    dither_block(f_.trailer->key, f_.trailer->salt, f_.line, block.begin, noise, rnn_role(stream));
    for (int64_t at = 0; at < block.count; at += kGroup) {
      Real* group = values + at;
      const int64_t used = std::min<int64_t>(kGroup, block.count - at), place = (block.begin + at) / kGroup;
      const Dither<Real> dither = dither_for(stream, group, used, place);
      std::fill(group + used, group + kGroup, dither.lo);  // code 0
      encode_group(dither, group, noise + at, f_.bits, bytes);
      std::memcpy(codes(stream) + place * kGroup * f_.bits / 8, bytes, group_bytes(place));
    }
  }

  void load(int stream, const RnnBlock& block, Real* values) const {
    if (!f_.bits) {
      const T* from = reinterpret_cast<const T*>(codes(stream)) + block.begin;
      for (int64_t i = 0; i < block.count; ++i) values[i] = widen(from[i]);
      return;
    }
    uint16_t noise[kBlock];
    uint8_t bytes[kGroup] = {};
    dither_block(f_.trailer->key, f_.trailer->salt, f_.line, block.begin, noise, rnn_role(stream));
    for (int64_t at = 0; at < block.count; at += kGroup) {
      const int64_t place = (block.begin + at) / kGroup;
      std::memcpy(bytes, codes(stream) + place * kGroup * f_.bits / 8, group_bytes(place));
      decode_group(stored_dither(stream, place), bytes, noise + at, f_.bits, values + at);
    }
  }

 private:
  char* codes(int stream) const { return static_cast<char*>(f_.codes) + stream * f_.codes_pitch; }
  int ranged(int stream) const {
    const RnnStreams streams = rnn_streams(cell_);
    return stream - (streams.count - streams.ranged);
  }
  Real* lo(int stream) const {
    return reinterpret_cast<Real*>(static_cast<char*>(f_.lo) + ranged(stream) * f_.lo_pitch);
  }
  uint16_t* step(int stream) const {
    return reinterpret_cast<uint16_t*>(static_cast<char*>(f_.step) + ranged(stream) * f_.step_pitch);
  }
  int64_t group_bytes(int64_t place) const {
    return std::min<int64_t>(kGroup * f_.bits / 8, step_bytes_ - place * kGroup * f_.bits / 8);
  }

  // The range of a group, stored where it is not a fixed one. NaN has no place in a fixed range: the layer's
  // output carries it.
  Dither<Real> dither_for(int stream, Real* group, int64_t used, int64_t place) const {
    if (ranged(stream) < 0) {
      const auto fixed = rnn_fixed_dither<Real>(cell_, stream, f_.bits);
      for (int64_t i = 0; i < used; ++i) group[i] = group[i] == group[i] ? group[i] : fixed.lo;
      return fixed;
    }
    std::fill(group + used, group + kGroup, group[0]);
    Real least, most;
    range_of(group, &least, &most);
    const float size = Dither<Real>::step_for(least, most, f_.bits);
    lo(stream)[place] = Dither<Real>::stored_lo(least, size);
    step(stream)[place] = static_cast<uint16_t>(float_bits(size) >> 16);
    return Dither<Real>(least, static_cast<Real>(size), f_.bits);
  }
  Dither<Real> stored_dither(int stream, int64_t place) const {
    if (ranged(stream) < 0) return rnn_fixed_dither<Real>(cell_, stream, f_.bits);
    const float size = bits_float(static_cast<uint32_t>(step(stream)[place]) << 16);
    return Dither<Real>(lo(stream)[place], static_cast<Real>(size), f_.bits);
  }

  void store_plain(int stream, const RnnBlock& block, const Real* values) const {
    T* to = reinterpret_cast<T*>(codes(stream));
    for (int64_t i = 0; i < block.count; ++i) to[block.begin + i] = narrow<T>(values[i]);
    if (block.begin + block.count == elements_)
      std::memset(static_cast<void*>(to + elements_), 0, step_bytes_ - elements_ * sizeof(T));
  }

  RnnFactors f_;
  RnnCell cell_;
  int64_t elements_, step_bytes_;
};

}  // namespace rad::cpu

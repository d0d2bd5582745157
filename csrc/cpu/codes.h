// One stored line of `saved`, written and read as numbers, plain or dithered.
#pragma once
#include "core/derivative.h"
#include "core/dtype.h"
#include "core/layout.h"
#include "cpu/block.h"

namespace rad::cpu {

// `saved` with its layout and random state.
struct SavedView {
  SavedLayout layout;
  SketchSpec spec;
  char* data;
  uint64_t key, salt;

  SavedView(const SketchSpec& spec_, DType dtype, int64_t rows, int64_t features, const void* saved)
      : layout(saved_layout(spec_, dtype, rows, features)),
        spec(spec_),
        data(static_cast<char*>(const_cast<void*>(saved))),
        key(trailer()->key),
        salt(trailer()->salt) {}

  Trailer* trailer() const { return reinterpret_cast<Trailer*>(data + layout.trailer); }
  const int64_t* index() const { return reinterpret_cast<const int64_t*>(data + layout.index); }
  const float* weight() const { return reinterpret_cast<const float*>(data + layout.weight); }
  char* line(int64_t tile, int64_t number) const { return data + layout.line_offset(tile, number); }
};

// A step as it is stored, and back.
inline uint16_t bf16_bits(float step) { return static_cast<uint16_t>(float_bits(step) >> 16); }
inline float bf16_value(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }

// Least and greatest of a group's values; NaN where one is not finite.
void range_of(const float* values, float* lo, float* hi);
void range_of(const double* values, double* lo, double* hi);

// One group of 64 values to packed codes, 8 bytes a bit, and back.
void encode_group(const Dither<float>& dither, const float* values, const uint16_t* noise, int bits,
                  uint8_t* bytes);
void encode_group(const Dither<double>& dither, const double* values, const uint16_t* noise, int bits,
                  uint8_t* bytes);
void encode_group(const RangeCode<float>& code, const float* values, const uint16_t* noise, int bits,
                  uint8_t* bytes);
void encode_group(const RangeCode<double>& code, const double* values, const uint16_t* noise, int bits,
                  uint8_t* bytes);
void decode_group(const Dither<float>& dither, const uint8_t* bytes, const uint16_t* noise, int bits,
                  float* values);
void decode_group(const Dither<double>& dither, const uint8_t* bytes, const uint16_t* noise, int bits,
                  double* values);

// Zeros from bit `first` to the end of `size` bytes of codes.
void clear_bits(uint8_t* bytes, int64_t first, int64_t size);

// values [count <= kBlock] -> codes, lo (kept as Lo) and step of positions begin... of that line.
template <class T, class Lo = T>
void encode_block(const SavedView& saved, int64_t tile, int64_t line, int64_t begin, int64_t count,
                  const T* values);

// Those positions as numbers: decoded, or copied when values are plain.
template <class T, class Real = Accumulate<T>>
void decode_block(const SavedView& saved, int64_t tile, int64_t line, int64_t begin, int64_t count,
                  Real* out);

}  // namespace rad::cpu

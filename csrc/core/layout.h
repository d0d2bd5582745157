// The one place that knows how `saved` is laid out: planes at 128-byte offsets, then the trailer.
#pragma once
#include "core/sampler.h"
#include "kernels.h"

namespace rad {

constexpr int64_t kPlaneAlign = 128;

RAD_HD int64_t item_size(DType dtype) { return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2; }

RAD_HD int64_t align_plane(int64_t bytes) { return (bytes + kPlaneAlign - 1) / kPlaneAlign * kPlaneAlign; }

constexpr int64_t kTileWidth = 128;  // features of one `tile_rows` tile

// Bytes between the content of a plane and the next plane. A pack writes zeros there: equal samples are equal
// buffers.
struct Gaps {
  static constexpr int kCount = 5;
  int64_t begin[kCount], end[kCount];
};

// Stored values form `tiles` blocks of `lines` lines, `width` values each (`last_width` in the last tile).
// All samplings but tile_rows have one tile. Offsets are in bytes. Codes fill 32-bit words from the low end,
// each line starting a new word; lo and step are planes [tile][group][line].
struct SavedLayout {
  int64_t tiles, lines, width, last_width;
  int64_t item, bits;               // bytes of a plain value; bits of a code, 0 for plain values
  int64_t lo, step, index, weight;  // planes
  int64_t trailer, bytes;
  Gaps gaps;

  RAD_HD int64_t tile_width(int64_t tile) const { return tile + 1 == tiles ? last_width : width; }
  RAD_HD int64_t pitch(int64_t tile) const { return line_bytes(tile_width(tile)); }
  RAD_HD int64_t line_bytes(int64_t values) const {
    return bits ? (values * bits + 31) / 32 * 4 : values * item;
  }
  RAD_HD int64_t line_offset(int64_t tile, int64_t line) const {
    return tile * lines * line_bytes(width) + line * pitch(tile);
  }
  // Where lo and step of a group stand in their planes, counted in groups.
  RAD_HD int64_t group_place(int64_t tile, int64_t group, int64_t line) const {
    return (tile * ((width + 63) / 64) + group) * lines + line;
  }
};

// rad_kernels/sketch.py has the same rule for traced shapes; a test holds the two together.
RAD_HD SavedLayout saved_layout(const SketchSpec& spec, DType dtype, int64_t rows, int64_t features) {
  const bool tiled = spec.sampling == Sampling::kTileRows;
  SavedLayout m{};
  m.lines = samples_rows(spec.sampling) ? kept(rows, spec.num, spec.den) : rows;
  const int64_t stored = samples_rows(spec.sampling) ? features : kept(features, spec.num, spec.den);
  m.tiles = tiled ? (features + kTileWidth - 1) / kTileWidth : 1;
  m.width = tiled ? kTileWidth : stored;
  m.last_width = stored - (m.tiles - 1) * m.width;
  m.item = item_size(dtype);
  m.bits = spec.bits;
  const int64_t groups =
      m.bits ? m.lines * ((m.tiles - 1) * ((m.width + 63) / 64) + (m.last_width + 63) / 64) : 0;
  const int64_t by_norm = spec.draw == Draw::kNorm ? m.lines : 0;
  const int64_t content[Gaps::kCount] = {m.line_offset(m.tiles - 1, m.lines), groups * m.item, groups * 2,
                                         by_norm * 8, by_norm * 4};
  int64_t* next[Gaps::kCount] = {&m.lo, &m.step, &m.index, &m.weight, &m.trailer};
  int64_t at = 0;
  for (int plane = 0; plane < Gaps::kCount; ++plane) {
    m.gaps.begin[plane] = at + content[plane];
    at += align_plane(content[plane]);
    m.gaps.end[plane] = *next[plane] = at;
  }
  m.bytes = m.trailer + static_cast<int64_t>(sizeof(Trailer));
  return m;
}

}  // namespace rad

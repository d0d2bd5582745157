// What a block of a tensor-core product works on, and how its operands lie in shared memory.
//
// dW [outputs, features] = sum over rows of a[row, output] * b[row, feature]: both operands arrive as rows
// with their items side by side, so neither needs a transposition in memory; ldmatrix and wgmma transpose in
// passing.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda::gemm {

constexpr int kOutputs = 128, kFeatures = 128;  // of a tile
constexpr int kChunk = 8;                       // items of 16 bytes
constexpr int kPanel = 64;                      // items of a row that lie together: 128 bytes
static_assert(kFeatures == kTileWidth, "a tile of tile_rows is a tile of the product");

// `Depth` rows of `Width` 16-bit items, one panel of 64 items after the other. The chunks of a row change
// places by the row's last three bits (the 128-byte swizzle of wgmma and TMA): eight rows of one chunk, which
// ldmatrix reads, and eight chunks of one row, which a copy writes, each meet all banks.
template <int Width, int Depth>
struct Operand {
  static constexpr int kChunks = Width / kChunk, kPanelBytes = Depth * kPanel * 2;
  static constexpr int kBytes = Width / kPanel * kPanelBytes;
  static_assert(kPanelBytes % 1024 == 0, "the swizzle repeats every 1024 bytes");

  RAD_DEVICE static int chunk_at(int row, int chunk) {
    return chunk / (kPanel / kChunk) * kPanelBytes + row * (kPanel * 2) + ((chunk ^ row) & 7) * 16;
  }
};

// The reduction in steps of `Depth` rows: the rows before `split`, then those from there on, so that the sums
// can take a factor between the two.
template <int Depth>
struct Steps {
  int64_t split, rows;
  int head, count;  // steps before the split, and all

  RAD_DEVICE Steps(int64_t split_, int64_t rows_)
      : split(split_),
        rows(rows_),
        head(static_cast<int>((split + Depth - 1) / Depth)),
        count(head + static_cast<int>((rows - split + Depth - 1) / Depth)) {}
  RAD_DEVICE int64_t begin(int step) const {
    return step < head ? int64_t{step} * Depth : split + int64_t{step - head} * Depth;
  }
  RAD_DEVICE int64_t end(int step) const { return step < head ? split : rows; }
};

// The order in which blocks take tiles: strips of a few tiles of outputs, so that tiles in work at one time
// share their operands in the L2 cache.
struct Tiles {
  static constexpr int64_t kStrip = 8;
  int64_t outputs, features;  // tiles

  Tiles(int64_t outputs_, int64_t features_, int64_t height = kOutputs)
      : outputs((outputs_ + height - 1) / height), features((features_ + kFeatures - 1) / kFeatures) {}
  RAD_HD int64_t count() const { return outputs * features; }
  RAD_DEVICE void find(int64_t tile, int64_t& output, int64_t& feature) const {
    const int64_t strip = tile / (kStrip * features), within = tile % (kStrip * features);
    const int64_t height = min(kStrip, outputs - strip * kStrip);
    output = strip * kStrip + within % height;
    feature = within / height;
  }
};

}  // namespace rad::cuda::gemm

// How the weight gradient of a convolution becomes one product: what of it is laid out anew, how its
// reduction is cut, and where all of it lies in the workspace.
#pragma once
#include "cuda/conv_positions.cuh"
#include "cuda/gemm/mma.cuh"
#include "cuda/gemm/wgmma.cuh"
#include "cuda/saved.cuh"

namespace rad::cuda {

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The kept lines, cut where the weight changes and then into slices of `size` lines. A block sums one slice
// of one tile; slices are weighed and added in their order.
struct Slices {
  int64_t lines, split;       // lines before the split have weight[0], the others weight[1]
  int64_t count[2], size[2];  // on either side
  float weight[2];

  RAD_HD int64_t total() const { return count[0] + count[1]; }
  RAD_HD int64_t begin(int64_t slice) const {
    return slice < count[0] ? slice * size[0] : split + (slice - count[0]) * size[1];
  }
  RAD_HD int64_t end(int64_t slice) const {
    const int side = slice < count[0] ? 0 : 1;
    const int64_t all = side ? lines : split, whole = begin(slice) + size[side];
    return whole < all ? whole : all;
  }

  // Cuts both sides into whole steps of `depth` lines, some `wanted` slices in all.
  void cut(int64_t wanted, int64_t depth) {
    const int64_t length[2] = {split, lines - split};
    for (int side = 0; side < 2; ++side) {
      const int64_t share = (wanted * length[side] + lines / 2) / lines;
      const int64_t pieces = share < 1 ? 1 : share;
      size[side] = round_up((length[side] + pieces - 1) / pieces, depth);
      count[side] = size[side] ? (length[side] + size[side] - 1) / size[side] : 0;
    }
  }
};

// What a block multiplies at a time.
struct ConvTile {
  int64_t outputs, features, depth;
  int threads, blocks;  // of a multiprocessor

  static ConvTile narrow() { return {gemm::kOutputs, 64, gemm::kDepth, 128, 2}; }
  static ConvTile wide() { return {gemm::kOutputs, gemm::kFeatures, gemm::kDepth, 128, 2}; }
  static ConvTile warpgroups() {
    namespace wg = gemm::warpgroups;
    return {wg::kOutputs, gemm::kFeatures, wg::kDepth, wg::kThreads, 1};
  }
  int64_t rows(int64_t n) const { return (n + outputs - 1) / outputs; }
};

// One group's product is [taps * outputs, channels], outputs and channels padded to whole chunks.
struct ConvPlan {
  AxisMeetings axis[3];
  SavedLayout layout;
  int64_t outputs, channels, taps;
  int64_t tiles_m, tiles_n, units;  // tiles of a group; tiles in all slices and groups
  ConvTile tile;
  bool move_x, move_dy;  // whether they are laid out anew
  Slices slices;
  int64_t spots, decoded, x, dy, parts, bytes;  // offsets in the workspace

  ConvPlan(const ConvWgradArgs& a, bool wgmma)
      : layout(saved_layout(a.spec, a.dtype, packed_rows(a), packed_cols(a))),
        outputs(round_up(a.outputs / a.groups, gemm::kChunk)),
        channels(round_up(a.channels / a.groups, gemm::kChunk)),
        taps(tap_count(a.axis)),
        tile(best_tile(taps * outputs, channels, wgmma)) {
    tiles_m = tile.rows(taps * outputs);
    tiles_n = (channels + tile.features - 1) / tile.features;
    for (int d = 0; d < 3; ++d) axis[d] = AxisMeetings(a.axis[d]);
    weigh(a);
  }

  // By wgmma unless it would multiply more than half as much again, or half its columns were not there.
  static ConvTile best_tile(int64_t rows, int64_t channels, bool wgmma) {
    const ConvTile narrow = ConvTile::narrow(), wide = ConvTile::wide(), large = ConvTile::warpgroups();
    if (channels <= narrow.features) return narrow;
    const bool pays = 2 * large.rows(rows) * large.outputs <= 3 * wide.rows(rows) * wide.outputs;
    return wgmma && pays ? large : wide;
  }

  int64_t tiles(const ConvWgradArgs& a) const { return tiles_m * tiles_n * a.groups; }
  int64_t padded_sums(const ConvWgradArgs& a) const { return a.groups * taps * outputs * channels; }

  // All that depends on the device and on where the operands lie.
  void lay_out(const ConvWgradArgs& a) {
    slices.cut(best_cut(tiles(a)), tile.depth);
    units = tiles(a) * slices.total();
    move_x = must_move_x(a);
    move_dy = must_move_dy(a);
    int64_t at = 0;
    const auto take = [&](int64_t size) {
      const int64_t place = at;
      at += align_plane(size);
      return place;
    };
    spots = take(slices.lines * static_cast<int64_t>(sizeof(Spot)));
    decoded = take(layout.bits ? layout.lines * layout.width * 2 : 0);
    x = take(move_x ? slices.lines * a.groups * channels * 2 : 0);
    dy = take(move_dy ? a.images * output_positions(a.axis) * a.groups * outputs * 2 : 0);
    parts = take(slices.total() * padded_sums(a) * 4);
    bytes = at;
  }

 private:
  void weigh(const ConvWgradArgs& a) {
    const Sampler sampler = plan_sample(a.spec, a.by_channel ? packed_cols(a) : packed_rows(a));
    const int64_t each = a.by_channel ? a.images : 1;  // lines of an entry of the sample
    slices.lines = each * sampler.k();
    slices.split = a.spec.draw == Draw::kStratified ? each * sampler.strata.longer : 0;
    slices.weight[0] = sampler.weight<float>(0);
    slices.weight[1] = sampler.weight<float>(sampler.k() - 1);
  }

  bool must_move_x(const ConvWgradArgs& a) const {
    bool skips = false;
    for (const AxisMeetings& d : axis) skips = skips || d.skips();
    return skips || a.by_channel || a.channels / a.groups % gemm::kChunk != 0 ||
           !aligned(a.saved, kVectorBytes);
  }
  bool must_move_dy(const ConvWgradArgs& a) const {
    bool fits = a.dy_output == 1 && aligned(a.dy, kVectorBytes) && a.outputs / a.groups % gemm::kChunk == 0;
    fits = fits && (a.images == 1 || a.dy_image % gemm::kChunk == 0);
    for (const ConvAxis& d : a.axis) fits = fits && (d.output == 1 || d.dy_stride % gemm::kChunk == 0);
    return !fits;
  }

  // How many slices take least time, in steps of the reduction, of which some eight go by while a block
  // stores its sums.
  int64_t best_cut(int64_t tiles) const {
    constexpr int64_t kStore = 8, kMost = 64;
    const int64_t resident = int64_t{multiprocessors()} * tile.blocks;
    const int64_t steps = (slices.lines + tile.depth - 1) / tile.depth;
    int64_t best = 1, least = INT64_MAX;
    for (int64_t cut = 1; cut <= kMost && cut <= steps; ++cut) {
      const int64_t waves = (tiles * cut + resident - 1) / resident;
      const int64_t time = waves * ((steps + cut - 1) / cut + kStore);
      if (time < least) {
        least = time;
        best = cut;
      }
    }
    return best;
  }
};

}  // namespace rad::cuda

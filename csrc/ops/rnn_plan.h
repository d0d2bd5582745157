#pragma once
#include "core/rnn_cell.h"
#include "ops/saved.h"

namespace rad::ops {

// What the caller tells of one recurrent layer: the numbers that forward and backward share.
struct RnnSpec {
  RnnCell cell;
  DType dtype;
  int64_t steps, batch, inputs, hidden, directions;
  int32_t bits;                      // of factors; 0: plain
  std::optional<SketchSpec> x, h;    // absent: not kept
  std::vector<int64_t> batch_sizes;  // [steps], descending; empty: all are `batch`
};
RnnSpec decode_rnn(std::vector<int64_t> sizes, std::vector<int64_t> batch_sizes, int64_t cell, DType dtype,
                   const std::vector<int64_t>& spec_x, const std::vector<int64_t>& spec_h, int64_t bits);

// Consecutive steps whose inputs are packed together.
struct RnnChunk {
  int64_t number, begin, end;  // steps
  int64_t first_row, rows;     // of the layer's input
};

// The layout of `saved`: of each direction its streams of factors, and lo and step of the ranged ones, at
// multiples of 128 bytes; then the packs of x, the packs of the hidden states, and a trailer for the factors.
// rad_kernels/ops/rnn.py has the total for traced shapes.
class RnnPlan {
 public:
  explicit RnnPlan(RnnSpec spec);

  const RnnSpec& spec() const { return spec_; }
  int64_t gates() const { return rnn_gates(spec_.cell); }
  int64_t bytes() const { return trailer_ + static_cast<int64_t>(sizeof(Trailer)); }
  int64_t rows(int64_t step) const { return first_row_[step + 1] - first_row_[step]; }
  int64_t first_row(int64_t step) const { return first_row_[step]; }
  int64_t total_rows() const { return first_row_.back(); }
  int64_t most_rows() const;  // of a chunk
  const std::vector<RnnChunk>& chunks() const { return chunks_; }
  int64_t keys() const;

  // A new buffer: every key in place, the trailer of the factors complete, gaps zero.
  Tensor create(const Tensor& like, int64_t salt, const std::optional<Tensor>& keys) const;
  void check(const Tensor& saved) const;

  Saved x_pack(const Tensor& saved, const RnnChunk& chunk) const;
  Saved h_pack(const Tensor& saved, int64_t direction, const RnnChunk& chunk) const;
  RnnFactors factors(const Tensor& saved, int64_t direction, int64_t step) const;

 private:
  // Planes of one direction.
  struct Planes {
    int64_t codes, lo, step;                    // offsets of the first
    int64_t codes_pitch, lo_pitch, step_pitch;  // from one stream to the next
  };

  Planes planes(int64_t direction) const;
  Saved pack_at(const Tensor& saved, const SketchSpec& spec, int64_t at, int64_t rows,
                int64_t features) const;

  RnnSpec spec_;
  std::vector<int64_t> first_row_;                 // [steps + 1]
  std::vector<int64_t> first_byte_, first_group_;  // [steps + 1], within a stream
  std::vector<RnnChunk> chunks_;
  std::vector<int64_t> x_at_, h_at_;  // [chunks], [directions * chunks]
  int64_t trailer_;
};

}  // namespace rad::ops

#pragma once
#include "ops/tensor.h"

namespace rad::ops {

// One saved buffer and what it holds, read through the layout function of core.
class Saved {
 public:
  // An existing buffer. Throws when its size is not what the layout says.
  Saved(const Tensor& buffer, const SketchSpec& spec, DType dtype, int64_t rows, int64_t features);
  // A new buffer beside `like` with its key in place: `key` (int64, one element), or drawn from torch's
  // generator of that device.
  static Saved create(const Tensor& like, const SketchSpec& spec, DType dtype, int64_t rows, int64_t features,
                      const std::optional<Tensor>& key);

  const Tensor& buffer() const { return buffer_; }
  void* data() const { return buffer_.mutable_data_ptr(); }
  const SketchSpec& spec() const { return spec_; }
  DType dtype() const { return dtype_; }
  int64_t features() const { return features_; }
  const SavedLayout& layout() const { return layout_; }
  Trailer* trailer() const {
    return reinterpret_cast<Trailer*>(static_cast<char*>(data()) + layout_.trailer);
  }

  // Sizes and weights of the sample. Not its indices: the key lies on the device.
  Sampler sampler() const { return Sampler(0, 0, spec_, sampled_length()); }
  // The kept indices of some tiles, one after the other, int64, on the device: drawn again, or the norm
  // draw's own plane.
  Tensor sample(int64_t tile, int64_t tiles = 1) const;
  // The norm draw's weights on the device, else null.
  const float* weights() const;
  // Stored lines [begin, end) of a tile as numbers: over the buffer's own memory, or decoded.
  Tensor lines(int64_t tile, int64_t begin, int64_t end, bool widen) const;
  // Rows [begin, end) of the sign matrix of `project`.
  Tensor signs(int64_t begin, int64_t end, DType dtype) const;

 private:
  int64_t sampled_length() const { return samples_rows(spec_.sampling) ? rows_ : features_; }

  Tensor buffer_;
  SketchSpec spec_;
  DType dtype_;
  int64_t rows_, features_;
  SavedLayout layout_;
};

void check_salt(int64_t salt);
int32_t checked_bits(int64_t bits);

// `key` or a fresh draw into the int64 at `target` on `like`'s device.
void place_key(const Tensor& like, uint64_t* target, const std::optional<Tensor>& key);

}  // namespace rad::ops

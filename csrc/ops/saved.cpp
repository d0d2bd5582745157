#include "ops/saved.h"

namespace rad::ops {

void check_salt(int64_t salt) {
  RAD_CHECK(0 <= salt && salt < int64_t{1} << 32, "salt must be in [0, 2^32), got ", salt);
}

int32_t checked_bits(int64_t bits) {
  RAD_CHECK(bits == 1 || bits == 2 || bits == 4 || bits == 8, "bits must be 1, 2, 4 or 8, got ", bits);
  return static_cast<int32_t>(bits);
}

void place_key(const Tensor& like, uint64_t* target, const std::optional<Tensor>& key) {
  Tensor slot = view_of(like, target, {1}, {1}, ScalarType::Long);
  if (key) {
    RAD_CHECK(key->scalar_type() == ScalarType::Long && key->numel() == 1 && key->is_cuda() == like.is_cuda(),
              "key must be one int64 on the device of x");
    torch::stable::copy_(slot, torch::stable::reshape(*key, {1}));
    return;
  }
  // On the device, by torch's own generator: manual_seed, fork_rng, checkpointing and graph capture all
  // apply.
  random_(slot);
}

Saved::Saved(const Tensor& buffer, const SketchSpec& spec, DType dtype, int64_t rows, int64_t features)
    : buffer_(buffer),
      spec_(spec),
      dtype_(dtype),
      rows_(rows),
      features_(features),
      layout_(saved_layout(spec, dtype, rows, features)) {
  RAD_CHECK(
      buffer.scalar_type() == ScalarType::Byte && buffer.is_contiguous() && buffer.numel() == layout_.bytes,
      "saved must be a contiguous uint8 tensor of ", layout_.bytes, " bytes for a matrix of ", rows, " x ",
      features, ", got ", buffer.numel(), " elements");
}

Saved Saved::create(const Tensor& like, const SketchSpec& spec, DType dtype, int64_t rows, int64_t features,
                    const std::optional<Tensor>& key) {
  const auto layout = saved_layout(spec, dtype, rows, features);
  Saved saved(scratch(like, layout.bytes), spec, dtype, rows, features);
  place_key(like, &saved.trailer()->key, key);
  return saved;
}

Tensor Saved::sample(int64_t tile, int64_t tiles) const {
  const int64_t k = sampler().k();
  if (spec_.draw == Draw::kNorm) {
    return view_of(buffer_, static_cast<char*>(data()) + layout_.index, {k}, {1}, ScalarType::Long);
  }
  const Execution run(buffer_);
  const Backend& backend = backend_of(buffer_);
  Tensor index = empty_like_device(buffer_, {tiles * k}, ScalarType::Long);
  SampleArgs args{
      run.exec(), spec_, trailer(), sampled_length(), tile, tiles, index.mutable_data_ptr<int64_t>(),
      nullptr};
  const Tensor workspace = scratch(buffer_, backend.sample_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(buffer_, backend.sample(args), "sample");
  return index;
}

const float* Saved::weights() const {
  if (spec_.draw != Draw::kNorm) return nullptr;
  return reinterpret_cast<const float*>(static_cast<const char*>(data()) + layout_.weight);
}

Tensor Saved::lines(int64_t tile, int64_t begin, int64_t end, bool widen) const {
  const int64_t width = layout_.tile_width(tile), count = end - begin;
  if (!layout_.bits) {
    char* first = static_cast<char*>(data()) + layout_.line_offset(tile, begin);
    const Tensor plain = view_of(buffer_, first, {count, width}, {width, 1}, scalar_type_of(dtype_));
    return widen ? torch::stable::to(plain, ScalarType::Float) : plain;
  }
  const Execution run(buffer_);
  Tensor out = empty_like_device(buffer_, {count, width}, widen ? ScalarType::Float : scalar_type_of(dtype_));
  const int64_t first = tile * layout_.lines + begin;
  check_status(buffer_,
               backend_of(buffer_).decode({run.exec(), spec_, dtype_, widen, rows_, features_, data(), first,
                                           first + count, out.mutable_data_ptr()}),
               "decode");
  return out;
}

Tensor Saved::signs(int64_t begin, int64_t end, DType dtype) const {
  const Execution run(buffer_);
  Tensor out = empty_like_device(buffer_, {end - begin, layout_.width}, scalar_type_of(dtype));
  check_status(buffer_,
               backend_of(buffer_).signs(
                   {run.exec(), spec_, dtype, trailer(), features_, begin, end, out.mutable_data_ptr()}),
               "signs");
  return out;
}

}  // namespace rad::ops

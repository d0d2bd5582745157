#include "ops/saved.h"

#include <array>

namespace rad::ops {

void place_key(const Tensor& like, uint64_t* target, const std::optional<Tensor>& key) {
  Tensor slot = view_of(like, target, {1}, {1}, ScalarType::Long);
  if (key) {
    RAD_CHECK(key->scalar_type() == ScalarType::Long && key->numel() == 1 && key->is_cuda() == like.is_cuda(),
              "key must be one int64 on the device of x");
    torch::stable::copy_(slot, torch::stable::reshape(*key, {1}));
    return;
  }
  // On the device, by torch's own generator: manual_seed, fork_rng, checkpointing and capture all apply.
  using torch::stable::detail::from;
  std::array<StableIValue, 2> stack{from(slot), from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::random_", "", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes ownership of the returned handle
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

Tensor Saved::sample() const {
  const Execution run(buffer_);
  const Backend& backend = backend_of(buffer_);
  const int64_t k = sampler().k();
  Tensor index = empty_like_device(buffer_, {k}, ScalarType::Long);
  SampleArgs args{run.exec(), spec_, trailer(), sampled_length(), index.mutable_data_ptr<int64_t>(), nullptr};
  const Tensor workspace = scratch(buffer_, backend.sample_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(buffer_, backend.sample(args), "sample");
  return index;
}

Tensor Saved::values(int64_t row, int64_t col, int64_t rows, int64_t cols) const {
  const int64_t pitch = layout_.stored_cols;
  char* first = static_cast<char*>(data()) + (row * pitch + col) * item_size(dtype_);
  return view_of(buffer_, first, {rows, cols}, {pitch, 1}, scalar_type_of(dtype_));
}

Tensor Saved::rows(int64_t begin, int64_t end) const {
  return values(begin, 0, end - begin, layout_.stored_cols);
}

Tensor Saved::columns(int64_t begin, int64_t end) const {
  return values(0, begin, layout_.stored_rows, end - begin);
}

}  // namespace rad::ops

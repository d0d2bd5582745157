#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "core/derivative.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

// Every element of the tensor's memory range belongs to it once.
bool is_dense(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dims.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// A new tensor of that shape with these strides, which must leave no gaps: elements are numbered in memory.
Tensor dense_like(const Tensor& tensor, const std::vector<int64_t>& stride) {
  using torch::stable::detail::from;
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
  std::array<StableIValue, 7> stack{from(tensor),       from(sizes),        from(stride),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt),
                                    from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::new_empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor made = torch::stable::detail::to<Tensor>(stack[0]);
  RAD_CHECK(is_dense(made) || made.numel() == 0, "stride must be that of a dense tensor of dy's shape");
  return made;
}

int64_t words_for(int64_t n) { return (n + 31) / 32; }

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

void run_relu(const Tensor& x, const Tensor& y, const Tensor& mask) {
  if (x.numel() == 0) return;
  const Execution run(x);
  check_status(x,
               backend_of(x).relu({run.exec(), dtype_of(x), x.const_data_ptr(), y.mutable_data_ptr(),
                                   static_cast<uint32_t*>(mask.mutable_data_ptr()), x.numel()}),
               "relu");
}

Tensor new_mask(const Tensor& x) { return empty_like_device(x, {words_for(x.numel())}, ScalarType::Int); }

// empty_like keeps the strides of a dense tensor; any other one is copied into that dense layout first.
std::tuple<Tensor, Tensor> relu(const Tensor& x) {
  Tensor y = torch::stable::empty_like(x), mask = new_mask(x);
  const bool dense = same_layout(x, y);
  if (!dense) torch::stable::copy_(y, x);
  run_relu(dense ? x : y, y, mask);
  return {y, mask};
}

Tensor relu_(Tensor x) {
  if (is_dense(x)) {
    Tensor mask = new_mask(x);
    run_relu(x, x, mask);
    return mask;
  }
  auto [y, mask] = relu(x);
  torch::stable::copy_(x, y);
  return mask;
}

void check_mask(const Tensor& mask, const Tensor& dy) {
  RAD_CHECK(mask.scalar_type() == ScalarType::Int && mask.numel() == words_for(dy.numel()), "mask must hold ",
            words_for(dy.numel()), " int32 words for ", dy.numel(), " elements, got ", mask.numel());
}

// dy with the layout `stride`: itself, or copied into dx, a new tensor of that layout.
const Tensor& laid_out(const Tensor& dy, Tensor& dx) {
  if (same_layout(dy, dx)) return dy;
  torch::stable::copy_(dx, dy);
  return dx;
}

Tensor masked(const Tensor& dy, const Tensor& mask, std::vector<int64_t> stride) {
  check_mask(mask, dy);
  Tensor dx = dense_like(dy, stride);
  if (dy.numel() == 0) return dx;
  const Tensor& from = laid_out(dy, dx);
  const Execution run(dy);
  check_status(dy,
               backend_of(dy).masked({run.exec(), dtype_of(dy), from.const_data_ptr(),
                                      static_cast<const uint32_t*>(mask.const_data_ptr()),
                                      dx.mutable_data_ptr(), dy.numel()}),
               "masked");
  return dx;
}

// A dense tensor with the elements of `tensor` in the memory order of empty_like: itself, or a copy.
Tensor in_memory_order(const Tensor& tensor) {
  Tensor dense = torch::stable::empty_like(tensor);
  if (same_layout(tensor, dense)) return tensor;
  torch::stable::copy_(dense, tensor);
  return dense;
}

Tensor kink(const Tensor& x, int64_t rule, double lo, double hi) {
  RAD_CHECK(0 <= rule && rule <= static_cast<int64_t>(Rule::kOutside), "unknown rule ", rule);
  Tensor mask = new_mask(x);
  if (x.numel() == 0) return mask;
  const Tensor dense = in_memory_order(x);
  const Execution run(x);
  check_status(
      x,
      backend_of(x).kink({run.exec(), dtype_of(x), static_cast<Rule>(rule), lo, hi, dense.const_data_ptr(),
                          static_cast<uint32_t*>(mask.mutable_data_ptr()), x.numel()}),
      "kink");
  return mask;
}

Tensor sloped(const Tensor& dy, const Tensor& mask, double on, double off, std::vector<int64_t> stride) {
  check_mask(mask, dy);
  Tensor dx = dense_like(dy, stride);
  if (dy.numel() == 0) return dx;
  const Tensor& from = laid_out(dy, dx);
  const Execution run(dy);
  check_status(dy,
               backend_of(dy).sloped({run.exec(), dtype_of(dy), on, off, from.const_data_ptr(),
                                      static_cast<const uint32_t*>(mask.const_data_ptr()),
                                      dx.mutable_data_ptr(), dy.numel()}),
               "sloped");
  return dx;
}

Activation decode_activation(int64_t function, const std::vector<double>& parameters) {
  RAD_CHECK(0 <= function && function <= static_cast<int64_t>(Function::kRelu), "unknown function ",
            function);
  RAD_CHECK(parameters.size() == 3, "parameters must be three numbers, got ", parameters.size());
  return {static_cast<Function>(function), parameters[0], parameters[1], parameters[2]};
}

Tensor derivative_codes(const Tensor& x, int64_t function, std::vector<double> parameters, int64_t bits,
                        int64_t salt, const std::optional<Tensor>& key) {
  RAD_CHECK(0 <= salt && salt < int64_t{1} << 32, "salt must be in [0, 2^32), got ", salt);
  const Activation activation = decode_activation(function, parameters);
  const DerivativeLayout layout(x.numel(), checked_bits(bits));
  Tensor saved = scratch(x, layout.bytes);
  auto* data = static_cast<char*>(saved.mutable_data_ptr());
  place_key(x, &reinterpret_cast<Trailer*>(data + layout.trailer)->key, key);
  const Tensor dense = in_memory_order(x);
  const Execution run(x);
  check_status(
      x,
      backend_of(x).activation({run.exec(), dtype_of(x), activation, static_cast<int32_t>(bits),
                                static_cast<uint64_t>(salt), dense.const_data_ptr(), data, x.numel()}),
      "activation");
  return saved;
}

Tensor derivative_product(const Tensor& dy, const Tensor& saved, int64_t function,
                          std::vector<double> parameters, int64_t bits, std::vector<int64_t> stride) {
  const Activation activation = decode_activation(function, parameters);
  const DerivativeLayout layout(dy.numel(), checked_bits(bits));
  RAD_CHECK(saved.scalar_type() == ScalarType::Byte && saved.numel() == layout.bytes, "saved must be ",
            layout.bytes, " bytes for ", dy.numel(), " elements, got ", saved.numel());
  Tensor dx = dense_like(dy, stride);
  if (dy.numel() == 0) return dx;
  const Tensor& from = laid_out(dy, dx);
  const Execution run(dy);
  check_status(dy,
               backend_of(dy).activation_backward(
                   {run.exec(), dtype_of(dy), activation, static_cast<int32_t>(bits), from.const_data_ptr(),
                    saved.const_data_ptr(), dx.mutable_data_ptr(), dy.numel()}),
               "activation_backward");
  return dx;
}

constexpr int64_t kTrailerBytes = sizeof(Trailer);

// The kernel that forward and backward share; `to` may be `from`.
void run_dropout(const Tensor& from, const Tensor& to, const Tensor& saved, int64_t threshold, int64_t salt) {
  RAD_CHECK(0 <= threshold && threshold < int64_t{1} << 32, "threshold must be in [0, 2^32), got ",
            threshold);
  if (from.numel() == 0) return;
  const Execution run(from);
  const double scale = 4294967296.0 / static_cast<double>((int64_t{1} << 32) - threshold);
  check_status(
      from,
      backend_of(from).dropout({run.exec(), dtype_of(from), static_cast<Trailer*>(saved.mutable_data_ptr()),
                                salt, static_cast<uint32_t>(threshold), static_cast<float>(scale),
                                from.const_data_ptr(), to.mutable_data_ptr(), from.numel()}),
      "dropout");
}

std::tuple<Tensor, Tensor> dropout(const Tensor& x, int64_t threshold, int64_t salt,
                                   const std::optional<Tensor>& key) {
  check_salt(salt);
  Tensor y = torch::stable::empty_like(x), saved = scratch(x, kTrailerBytes);
  place_key(x, &static_cast<Trailer*>(saved.mutable_data_ptr())->key, key);
  const bool dense = same_layout(x, y);
  if (!dense) torch::stable::copy_(y, x);
  run_dropout(dense ? x : y, y, saved, threshold, salt);
  return {y, saved};
}

Tensor dropout_backward(const Tensor& dy, const Tensor& saved, int64_t threshold,
                        std::vector<int64_t> stride) {
  RAD_CHECK(saved.scalar_type() == ScalarType::Byte && saved.numel() == kTrailerBytes, "saved must be ",
            kTrailerBytes, " bytes, got ", saved.numel(), " elements");
  Tensor dx = dense_like(dy, stride);
  const bool aligned = same_layout(dy, dx);
  if (!aligned) torch::stable::copy_(dx, dy);
  run_dropout(aligned ? dy : dx, dx, saved, threshold, -1);
  return dx;
}

}  // namespace

void register_activation(Library& m) {
  m.impl("dropout", TORCH_BOX(&dropout));
  m.impl("dropout_backward", TORCH_BOX(&dropout_backward));
  m.impl("relu", TORCH_BOX(&relu));
  m.impl("relu_", TORCH_BOX(&relu_));
  m.impl("masked", TORCH_BOX(&masked));
  m.impl("kink", TORCH_BOX(&kink));
  m.impl("sloped", TORCH_BOX(&sloped));
  m.impl("derivative_codes", TORCH_BOX(&derivative_codes));
  m.impl("derivative_product", TORCH_BOX(&derivative_product));
}

}  // namespace rad::ops

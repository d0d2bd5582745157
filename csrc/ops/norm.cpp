#include <array>
#include <tuple>

#include "core/norm.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;
using OptionalTensor = std::optional<Tensor>;

ScalarType statistics_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_bits(int64_t bits) {
  RAD_CHECK(bits == 8 || (1 <= bits && bits <= 4), "bits must be 8, 4, 3, 2 or 1, got ", bits);
}

// Codes of the normalised x, whose memory is in the order of `shape`, and rstd: made here, or given with the
// means.
std::tuple<Tensor, Tensor> pack_normalised(const Tensor& x, const NormShape& shape, bool centred, double eps,
                                           int64_t bits, int64_t salt, const OptionalTensor& key,
                                           const OptionalTensor& mean, const OptionalTensor& given_rstd) {
  check_bits(bits);
  RAD_CHECK(0 <= salt && salt < int64_t{1} << 32, "salt must be in [0, 2^32), got ", salt);
  const DType dtype = dtype_of(x);
  const SavedLayout layout = norm_layout(shape, static_cast<int32_t>(bits));
  const Tensor saved = scratch(x, layout.bytes);
  char* data = static_cast<char*>(saved.mutable_data_ptr());
  place_key(x, &reinterpret_cast<Trailer*>(data + layout.trailer)->key, key);
  const Tensor rstd =
      given_rstd ? *given_rstd : empty_like_device(x, {shape.n / shape.set}, statistics_type(x));
  const Execution run(x);
  check_status(
      x,
      backend_of(x).norm_pack({run.exec(), shape, dtype, static_cast<int32_t>(bits), centred, eps,
                               static_cast<uint64_t>(salt), x.const_data_ptr(),
                               mean ? mean->const_data_ptr() : nullptr, rstd.mutable_data_ptr(), data}),
      "norm_pack");
  return {saved, rstd};
}

// Elements in the order that parameters with `inner` elements each stand in: channels last for a batch of
// planes with inner = 1.
Tensor ordered(const Tensor& x, int64_t inner) {
  using torch::headeronly::MemoryFormat;
  const bool last = inner == 1 && x.dim() > 3 && x.numel() > x.size(0) * x.size(1);
  return torch::stable::contiguous(x, !last          ? MemoryFormat::Contiguous
                                      : x.dim() == 4 ? MemoryFormat::ChannelsLast
                                                     : MemoryFormat::ChannelsLast3d);
}

// Sets of `set` consecutive elements.
NormShape consecutive(const Tensor& x, int64_t set, int64_t params, int64_t inner) {
  const int64_t n = x.numel();
  RAD_CHECK(set > 0 && n % set == 0 && n % (params * inner) == 0, "x of ", n, " elements has no sets of ",
            set);
  return {n, set, params, inner, false};
}

int64_t product_of(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (const int64_t s : shape) size *= s;
  return size;
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& x, std::vector<int64_t> shape,
                                              const OptionalTensor& weight, const OptionalTensor& bias,
                                              double eps, int64_t bits, int64_t salt,
                                              const OptionalTensor& key) {
  std::array<StableIValue, 6> stack{from(x), from(shape), from(weight), from(bias), from(eps), from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::layer_norm", "", stack.data(), TORCH_ABI_VERSION));
  const int64_t set = product_of(shape);
  auto [saved, rstd] = pack_normalised(torch::stable::contiguous(x), consecutive(x, set, set, 1), true, eps,
                                       bits, salt, key, {}, {});
  return {to<Tensor>(stack[0]), saved, rstd};
}

std::tuple<Tensor, Tensor, Tensor> rms_norm(const Tensor& x, std::vector<int64_t> shape,
                                            const OptionalTensor& weight, double eps, int64_t bits,
                                            int64_t salt, const OptionalTensor& key) {
  std::array<StableIValue, 4> stack{from(x), from(shape), from(weight), from(std::optional<double>(eps))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::rms_norm", "", stack.data(), TORCH_ABI_VERSION));
  const int64_t set = product_of(shape);
  auto [saved, rstd] = pack_normalised(torch::stable::contiguous(x), consecutive(x, set, set, 1), false, eps,
                                       bits, salt, key, {}, {});
  return {to<Tensor>(stack[0]), saved, rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm(const Tensor& x, int64_t groups, const OptionalTensor& weight,
                                              const OptionalTensor& bias, double eps, int64_t bits,
                                              int64_t salt, const OptionalTensor& key) {
  std::array<StableIValue, 6> stack{from(x), from(groups), from(weight), from(bias), from(eps), from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::group_norm", "", stack.data(), TORCH_ABI_VERSION));
  const int64_t channels = x.size(1), inner = x.numel() / (x.size(0) * channels);
  auto [saved, rstd] = pack_normalised(torch::stable::contiguous(x),
                                       consecutive(x, channels / groups * inner, channels, inner), true, eps,
                                       bits, salt, key, {}, {});
  return {to<Tensor>(stack[0]), saved, rstd};
}

// The running statistics come back new: an op that changed them in place would not survive a compiler. Of
// torch's kernels this is its own; cuDNN's, which F.batch_norm may take on a GPU, rounds otherwise.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm(
    const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum, double eps,
    int64_t inner, int64_t bits, int64_t salt, const OptionalTensor& key) {
  const auto copy_of = [&](const OptionalTensor& t) {
    return t ? OptionalTensor(torch::stable::clone(*t)) : std::nullopt;
  };
  const OptionalTensor mean_after = copy_of(running_mean), var_after = copy_of(running_var);
  std::array<StableIValue, 8> stack{from(x),         from(weight), from(bias),     from(mean_after),
                                    from(var_after), from(true),   from(momentum), from(eps)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::native_batch_norm", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor y = to<Tensor>(stack[0]), mean = torch::stable::to(to<Tensor>(stack[1]), statistics_type(x)),
               rstd = torch::stable::to(to<Tensor>(stack[2]), statistics_type(x));
  const int64_t params = x.size(1), n = x.numel();
  const NormShape shape{n, n / params, params, inner, true};
  auto [saved, kept_rstd] = pack_normalised(ordered(x, inner), shape, true, eps, bits, salt, key, mean, rstd);
  const auto or_empty = [&](const OptionalTensor& t) {
    return t ? *t : empty_like_device(x, {0}, statistics_type(x));
  };
  return {y, saved, kept_rstd, or_empty(mean_after), or_empty(var_after)};
}

std::tuple<Tensor, Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor& saved, const Tensor& rstd,
                                                 const OptionalTensor& weight, int64_t set, int64_t params,
                                                 int64_t inner, bool by_channel, bool centred, int64_t bits,
                                                 bool input_grad, bool param_grads) {
  check_bits(bits);
  const NormShape shape{dy.numel(), set, params, inner, by_channel};
  const DType dtype = dtype_of(dy);
  const SavedLayout layout = norm_layout(shape, static_cast<int32_t>(bits));
  const ScalarType type = statistics_type(dy);
  RAD_CHECK(saved.numel() == layout.bytes && saved.is_contiguous(), "saved must be ", layout.bytes,
            " contiguous bytes, got ", saved.numel());
  RAD_CHECK(rstd.scalar_type() == type && rstd.numel() == shape.n / set, "rstd must hold ", shape.n / set,
            " statistics, got ", rstd.numel());
  RAD_CHECK(
      !weight || (weight->scalar_type() == type && weight->numel() == params && weight->is_contiguous()),
      "weight must be ", params, " contiguous parameters in the statistics' dtype");
  Tensor dx = input_grad ? torch::stable::empty_like(dy) : empty_like_device(dy, {0}, dy.scalar_type());
  const int64_t count = param_grads ? params : 0;
  Tensor weight_grad = empty_like_device(dy, {count}, type), bias_grad = empty_like_device(dy, {count}, type);
  const Execution run(dy);
  const Backend& backend = backend_of(dy);
  NormBackwardArgs args{run.exec(),
                        shape,
                        dtype,
                        static_cast<int32_t>(bits),
                        centred,
                        dy.const_data_ptr(),
                        saved.const_data_ptr(),
                        rstd.const_data_ptr(),
                        weight ? weight->const_data_ptr() : nullptr,
                        input_grad ? dx.mutable_data_ptr() : nullptr,
                        param_grads ? weight_grad.mutable_data_ptr() : nullptr,
                        param_grads ? bias_grad.mutable_data_ptr() : nullptr,
                        nullptr};
  const Tensor workspace = scratch(dy, backend.norm_backward_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(dy, backend.norm_backward(args), "norm_backward");
  return {dx, weight_grad, bias_grad};
}

}  // namespace

void register_norm(Library& m) {
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("rms_norm", TORCH_BOX(&rms_norm));
  m.impl("group_norm", TORCH_BOX(&group_norm));
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("norm_backward", TORCH_BOX(&norm_backward));
}

}  // namespace rad::ops

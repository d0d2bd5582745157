// Convolutions of any kind: torch's own product with a sketch of its input, and the weight gradient from it.
#include <tuple>

#include "core/conv.h"
#include "ops/pack.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

using Numbers = std::vector<int64_t>;

// x [images, channels, *positions] as the tensor [..., cols] that is packed: positions side by side, or
// channels. A view unless positions have no common stride.
Tensor packed_view(const Tensor& x, bool by_channel) {
  const int64_t images = x.size(0), channels = x.size(1);
  const Tensor flat = torch::stable::reshape(x, {images, channels, x.numel() / (images * channels)});
  return by_channel ? flat : torch::stable::transpose(flat, 1, 2);
}

// Whether a window of one tap steps over positions, which it then never reads.
bool steps_over(int64_t taps, int64_t stride, int64_t padding, bool transposed) {
  return !transposed && taps == 1 && padding == 0 && stride > 1;
}

// x at the positions that the convolution reads, over the same memory.
Tensor positions_read(const Tensor& x, const Tensor& weight, const Numbers& stride, const Numbers& padding,
                      bool transposed) {
  Numbers sizes, strides;
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    const size_t d = static_cast<size_t>(dim - 2);
    const bool over = dim >= 2 && steps_over(weight.size(dim), stride[d], padding[d], transposed);
    sizes.push_back(over ? (x.size(dim) - 1) / stride[d] + 1 : x.size(dim));
    strides.push_back(over ? x.stride(dim) * stride[d] : x.stride(dim));
  }
  if (sizes == Numbers(x.sizes().begin(), x.sizes().end())) return x;
  return view_of(x, const_cast<void*>(x.const_data_ptr()), sizes, strides, x.scalar_type());
}

std::tuple<Tensor, Tensor> conv(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                Numbers stride, Numbers padding, Numbers dilation, bool transposed,
                                Numbers output_padding, int64_t groups, Numbers spec, bool by_channel,
                                int64_t salt, const std::optional<Tensor>& key) {
  Tensor y = aten_convolution(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
  const Tensor read = positions_read(x, weight, stride, padding, transposed);
  return {y, pack(packed_view(read, by_channel), decode_spec(spec), salt, key)};
}

struct Geometry {
  const Numbers &x_shape, &stride, &padding, &dilation;
  bool transposed;
};

ConvAxis axis_of(const Geometry& g, const Tensor& dy, const Numbers& weight_shape, size_t d) {
  const int64_t padding = g.padding[d], dilation = g.dilation[d];
  const bool only_read = steps_over(weight_shape[2 + d], g.stride[d], padding, g.transposed);
  const int64_t stride = only_read ? 1 : g.stride[d];
  ConvAxis axis{};
  axis.output = dy.size(static_cast<int64_t>(2 + d));
  axis.input = only_read ? axis.output : g.x_shape[2 + d];
  axis.taps = weight_shape[2 + d];
  axis.scale = g.transposed ? stride : 1;
  axis.offset = g.transposed ? -padding : padding;
  axis.step = g.transposed ? dilation : -dilation;
  axis.divisor = g.transposed ? 1 : stride;
  axis.dy_stride = dy.stride(static_cast<int64_t>(2 + d));
  for (const int64_t size : {axis.input, axis.output, axis.taps, stride, padding, dilation})
    RAD_CHECK(size < int64_t{1} << 31, "conv_wgrad: a spatial size of ", size, " is 2^31 or more");
  return axis;
}

void place_weight(ConvWgradArgs& args, const Numbers& weight_shape, int64_t taps, bool transposed) {
  // [outputs, channels / groups, taps], transposed [channels, outputs / groups, taps].
  const int64_t inner = weight_shape[1] * taps;
  args.dw_output = transposed ? taps : inner;
  args.dw_channel = transposed ? inner : taps;
  args.dw_group = weight_shape[0] / args.groups * inner;
}

Tensor conv_wgrad(const Tensor& dy, const Tensor& buffer, Numbers x_shape, Numbers weight_shape,
                  Numbers stride, Numbers padding, Numbers dilation, bool transposed, int64_t groups,
                  Numbers spec_numbers, bool by_channel) {
  const size_t spatial = x_shape.size() - 2;
  RAD_CHECK(
      1 <= spatial && spatial <= 3 && weight_shape.size() == x_shape.size() &&
          static_cast<size_t>(dy.dim()) == x_shape.size() && stride.size() == spatial &&
          padding.size() == spatial && dilation.size() == spatial,
      "conv_wgrad: dy, x_shape, weight_shape, stride, padding and dilation disagree on their dimensions");
  Tensor dw = torch::stable::new_zeros(dy, weight_shape);
  ConvWgradArgs args{};
  args.spec = decode_spec(spec_numbers);
  args.dtype = dtype_of(dy);
  args.by_channel = by_channel;
  args.images = x_shape[0];
  args.channels = x_shape[1];
  args.outputs = dy.size(1);
  args.groups = groups;
  for (ConvAxis& axis : args.axis) axis = {1, 1, 1, 1, 0, 0, 1, 0};
  const Geometry geometry{x_shape, stride, padding, dilation, transposed};
  for (size_t d = 0; d < spatial; ++d) args.axis[3 - spatial + d] = axis_of(geometry, dy, weight_shape, d);
  place_weight(args, weight_shape, tap_count(args.axis), transposed);
  const int64_t rows = packed_rows(args), cols = packed_cols(args);
  if (dy.numel() == 0 || dw.numel() == 0 || rows * cols == 0) return dw;
  const Saved saved(buffer, args.spec, args.dtype, rows, cols);
  const bool listed = args.spec.num < args.spec.den && args.spec.sampling != Sampling::kDifferent;
  const std::optional<Tensor> index = listed ? std::optional(saved.sample(0)) : std::nullopt;
  const Execution run(dy);
  const Backend& backend = backend_of(dy);
  args.exec = run.exec();
  args.dy = dy.const_data_ptr();
  args.dy_image = dy.stride(0);
  args.dy_output = dy.stride(1);
  args.saved = saved.data();
  args.index = index ? index->const_data_ptr<int64_t>() : nullptr;
  args.dw = dw.mutable_data_ptr();
  const Tensor workspace = scratch(dy, backend.conv_wgrad_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(dy, backend.conv_wgrad(args), "conv_wgrad");
  return dw;
}

}  // namespace

void register_conv(Library& m) {
  m.impl("conv", TORCH_BOX(&conv));
  m.impl("conv_wgrad", TORCH_BOX(&conv_wgrad));
}

}  // namespace rad::ops

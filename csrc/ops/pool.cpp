#include <tuple>

#include "core/pool.h"
#include "ops/register.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

// geometry = windows, strides, paddings and dilations of three dimensions each.
PoolShape make_shape(int64_t planes, int64_t lanes, const std::vector<int64_t>& in,
                     const std::vector<int64_t>& out, const std::vector<int64_t>& geometry) {
  RAD_CHECK(in.size() == 3 && out.size() == 3 && geometry.size() == 12,
            "pooling needs three sizes and twelve numbers of geometry");
  PoolShape s{planes, lanes, {}, {}, {}, {}, {}, {}};
  for (size_t d = 0; d < 3; ++d) {
    s.in[d] = in[d];
    s.out[d] = out[d];
    s.window[d] = geometry[d];
    s.stride[d] = geometry[3 + d];
    s.pad[d] = geometry[6 + d];
    s.dilation[d] = geometry[9 + d];
    RAD_CHECK(s.window[d] > 0 && s.stride[d] > 0 && s.dilation[d] > 0 && s.pad[d] >= 0,
              "windows, strides and dilations must be positive");
    const int64_t reach = (s.window[d] - 1) * s.dilation[d], last = (out[d] - 1) * s.stride[d] - s.pad[d];
    RAD_CHECK(out[d] > 0 && 2 * s.pad[d] <= reach + 1 && last < in[d] && reach - s.pad[d] >= 0,
              "a window lies outside the input");
  }
  return s;
}

std::vector<int64_t> middle(const Tensor& t) { return {t.size(1), t.size(2), t.size(3)}; }

int64_t code_words(const PoolShape& s) { return (pool_outputs(s) + 31) / 32 * pool_bits(s); }

void check_matrix(const Tensor& t, const char* name) {
  RAD_CHECK(t.dim() == 5 && t.is_contiguous(), name, " must be contiguous, [planes, three sizes, lanes]");
}

std::tuple<Tensor, Tensor> max_pool(const Tensor& x, std::vector<int64_t> output,
                                    std::vector<int64_t> geometry) {
  check_matrix(x, "x");
  const PoolShape s = make_shape(x.size(0), x.size(4), middle(x), output, geometry);
  Tensor y = empty_like_device(x, {s.planes, s.out[0], s.out[1], s.out[2], s.lanes}, x.scalar_type());
  Tensor codes = empty_like_device(x, {code_words(s)}, ScalarType::Int);
  if (y.numel() == 0) return {y, codes};
  const Execution run(x);
  check_status(x,
               backend_of(x).max_pool({run.exec(), dtype_of(x), s, x.const_data_ptr(), y.mutable_data_ptr(),
                                       static_cast<uint32_t*>(codes.mutable_data_ptr())}),
               "max_pool");
  return {y, codes};
}

Tensor max_pool_backward(const Tensor& dy, const Tensor& codes, std::vector<int64_t> input,
                         std::vector<int64_t> geometry) {
  check_matrix(dy, "dy");
  const PoolShape s = make_shape(dy.size(0), dy.size(4), input, middle(dy), geometry);
  RAD_CHECK(codes.scalar_type() == ScalarType::Int && codes.numel() == code_words(s), "codes must hold ",
            code_words(s), " int32 words, got ", codes.numel());
  Tensor dx = empty_like_device(dy, {s.planes, s.in[0], s.in[1], s.in[2], s.lanes}, dy.scalar_type());
  if (dx.numel() == 0) return dx;
  const Execution run(dy);
  check_status(dy,
               backend_of(dy).max_pool_backward({run.exec(), dtype_of(dy), s, dy.const_data_ptr(),
                                                 static_cast<const uint32_t*>(codes.const_data_ptr()),
                                                 dx.mutable_data_ptr()}),
               "max_pool_backward");
  return dx;
}

}  // namespace

void register_pool(Library& m) {
  m.impl("max_pool", TORCH_BOX(&max_pool));
  m.impl("max_pool_backward", TORCH_BOX(&max_pool_backward));
}

}  // namespace rad::ops

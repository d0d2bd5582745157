// The torch side of every op: LibTorch's stable ABI only, so one binary serves every torch >= 2.11.
#pragma once
#include "ops/error.h"  // first

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "core/layout.h"
#include "kernels.h"

#define RAD_CHECK(...) STD_TORCH_CHECK(__VA_ARGS__)

namespace rad::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The contractions of the device that holds a tensor.
struct Backend {
#define RAD_MEMBER(result, name, arguments) result (*name)(const arguments&);
  RAD_CONTRACTIONS(RAD_MEMBER)
#undef RAD_MEMBER
};
const Backend& backend_of(const Tensor& tensor);

// Throws with the backend's words when a contraction did not succeed.
void check_status(const Tensor& on, int status, const char* what);

// The caller's threads or stream. Holds the device current while it lives.
class Execution {
 public:
  explicit Execution(const Tensor& tensor);
  const Exec& exec() const { return exec_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Exec exec_;
};

DType dtype_of(const Tensor& tensor);
ScalarType scalar_type_of(DType dtype);

// A tensor [..., cols] as a matrix, and what keeps its memory alive (a copy where more than three strides
// would be needed).
struct Matrix {
  MatrixView view;
  Tensor owner;
};
Matrix as_matrix(const Tensor& tensor);

// `count` fresh elements beside `like`, uninitialised.
Tensor empty_like_device(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype);
Tensor scratch(const Tensor& like, int64_t bytes);

// A non-owning tensor over memory that outlives the call.
Tensor view_of(const Tensor& device_of, void* data, std::vector<int64_t> sizes, std::vector<int64_t> strides,
               ScalarType dtype);

Tensor aten_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias);
Tensor aten_convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, bool transposed,
                        const std::vector<int64_t>& output_padding, int64_t groups);
// Elementwise, in place or new, by torch's own kernels.
void sigmoid_(const Tensor& tensor);
void tanh_(const Tensor& tensor);
Tensor tanh(const Tensor& tensor);
void random_(const Tensor& tensor);
Tensor transposed(const Tensor& matrix);
// Entries [start, start + length) of one dimension, over the same memory.
Tensor slice_of(Tensor tensor, int64_t dim, int64_t start, int64_t length);
// out = beta * out + alpha * a @ b, by the BLAS that torch itself uses; beta = 0 ignores what out holds.
void addmm(Tensor& out, const Tensor& a, const Tensor& b, double beta, double alpha);
// a @ b summed and returned in fp32 for 16-bit a, b (CUDA only).
Tensor mm_fp32(const Tensor& a, const Tensor& b);

// spec = [num, den, sampling, draw, bits], as rad_kernels.Sketch encodes it.
SketchSpec decode_spec(const std::vector<int64_t>& spec);

}  // namespace rad::ops

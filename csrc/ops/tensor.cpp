#include "ops/tensor.h"

#include <dlfcn.h>

#include <array>
#include <stdexcept>
#include <string>

namespace rad::ops {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

void call(const char* op, const char* overload, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, overload, stack, TORCH_ABI_VERSION));
}

// Symbols of libtorch_cuda are looked up at run time: linking them would tie the binary to CUDA builds of
// torch, and a weak reference stays null there because that library is outside this one's link scope.
template <class Function>
Function torch_symbol(const char* library, const char* name) {
  void* handle = dlopen(library, RTLD_NOLOAD | RTLD_LAZY);
  return handle ? reinterpret_cast<Function>(dlsym(handle, name)) : nullptr;
}

void run_parallel(int64_t n, int64_t grain, RangeBody body, const void* closure) {
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { body(closure, begin, end); });
}

void* current_stream(int32_t device) {
  using Lookup = AOTITorchError (*)(int32_t, void**);
  static const auto lookup = torch_symbol<Lookup>("libtorch_cuda.so", "aoti_torch_get_current_cuda_stream");
  RAD_CHECK(lookup != nullptr, "rad_kernels: this PyTorch build has no CUDA support");
  void* stream = nullptr;
  RAD_CHECK(lookup(device, &stream) == AOTI_TORCH_SUCCESS, "rad_kernels: cannot get the current CUDA stream");
  return stream;
}

#define RAD_ENTRY(result, name, arguments) .name = &ns::name,

Backend cpu_contractions() {
  namespace ns = cpu;
  return {RAD_CONTRACTIONS(RAD_ENTRY)};
}

#ifdef RAD_WITH_CUDA
Backend cuda_contractions() {
  namespace ns = cuda;
  return {RAD_CONTRACTIONS(RAD_ENTRY)};
}
#endif

}  // namespace

void throw_torch_error(const char* call) {
  // Since torch 2.13; before, all that is known is the call.
  static const auto what =
      torch_symbol<const char* (*)()>("libtorch_cpu.so", "torch_exception_get_what_without_backtrace");
  const char* text = what ? what() : nullptr;
  throw std::runtime_error(text && *text ? text : std::string(call) + " failed");
}

const Backend& backend_of(const Tensor& tensor) {
  static const Backend cpu_backend = cpu_contractions();
#ifdef RAD_WITH_CUDA
  static const Backend cuda_backend = cuda_contractions();
  return tensor.is_cuda() ? cuda_backend : cpu_backend;
#else
  RAD_CHECK(!tensor.is_cuda(),
            "rad_kernels was built without CUDA kernels: rebuild with RAD_KERNELS_WITH_CUDA=1");
  return cpu_backend;
#endif
}

void check_status(const Tensor& on, int status, const char* what) {
  if (status == 0) return;
#ifdef RAD_WITH_CUDA
  RAD_CHECK(!on.is_cuda(), "rad_kernels: ", what, ": ", cuda::error_string(status));
#endif
  RAD_CHECK(false, "rad_kernels: ", what, " failed with status ", status);
}

Execution::Execution(const Tensor& tensor) {
  if (tensor.is_cuda()) {
    guard_.emplace(tensor.get_device_index());
    exec_.stream = current_stream(tensor.get_device_index());
  } else {
    exec_.parallel = &run_parallel;
    exec_.threads = static_cast<int>(torch::stable::get_num_threads());
  }
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kF32;
    case ScalarType::Double:
      return DType::kF64;
    case ScalarType::BFloat16:
      return DType::kBF16;
    case ScalarType::Half:
      return DType::kF16;
    default:
      RAD_CHECK(false, "rad_kernels supports float32, float64, bfloat16 and float16");
  }
}

ScalarType scalar_type_of(DType dtype) {
  constexpr std::array<ScalarType, 4> types{ScalarType::Float, ScalarType::Double, ScalarType::BFloat16,
                                            ScalarType::Half};
  return types[static_cast<size_t>(dtype)];
}

Matrix as_matrix(const Tensor& tensor) {
  const int64_t dims = tensor.dim(), cols = tensor.size(dims - 1);
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {0, 0, 0};
  int used = 0;  // filled from the innermost leading dimension outwards
  for (int64_t d = dims - 2; d >= 0; --d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (used && stride == strides[3 - used] * sizes[3 - used]) {
      sizes[3 - used] *= size;
    } else if (used == 3) {
      return as_matrix(torch::stable::contiguous(tensor));
    } else {
      ++used;
      sizes[3 - used] = size;
      strides[3 - used] = stride;
    }
  }
  const int64_t rows = sizes[0] * sizes[1] * sizes[2];
  MatrixView view{tensor.const_data_ptr(), rows, cols, tensor.stride(dims - 1), {}, {}};
  for (int i = 0; i < 3; ++i) view.size[i] = sizes[i], view.stride[i] = strides[i];
  return {view, tensor};
}

Tensor empty_like_device(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

Tensor scratch(const Tensor& like, int64_t bytes) {
  return empty_like_device(like, {bytes}, ScalarType::Byte);
}

Tensor view_of(const Tensor& device_of, void* data, std::vector<int64_t> sizes, std::vector<int64_t> strides,
               ScalarType dtype) {
  return torch::stable::from_blob(data, sizes, strides, device_of.device(), dtype);
}

Tensor aten_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  call("aten::linear", "", stack.data());
  return to<Tensor>(stack[0]);
}

Tensor aten_convolution(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                        const std::vector<int64_t>& dilation, bool transposed,
                        const std::vector<int64_t>& output_padding, int64_t groups) {
  std::array<StableIValue, 9> stack{from(x),          from(weight),         from(bias),
                                    from(stride),     from(padding),        from(dilation),
                                    from(transposed), from(output_padding), from(groups)};
  call("aten::convolution", "", stack.data());
  return to<Tensor>(stack[0]);
}

namespace {

Tensor call_unary(const char* op, const Tensor& tensor) {
  std::array<StableIValue, 1> stack{from(tensor)};
  call(op, "", stack.data());
  return to<Tensor>(stack[0]);
}

}  // namespace

void sigmoid_(const Tensor& tensor) { call_unary("aten::sigmoid_", tensor); }
void tanh_(const Tensor& tensor) { call_unary("aten::tanh_", tensor); }
Tensor tanh(const Tensor& tensor) { return call_unary("aten::tanh", tensor); }

void random_(const Tensor& tensor) {
  std::array<StableIValue, 2> stack{from(tensor), from(std::nullopt)};
  call("aten::random_", "", stack.data());
  to<Tensor>(stack[0]);  // takes ownership of the returned handle
}

Tensor transposed(const Tensor& matrix) { return torch::stable::transpose(matrix, 0, 1); }

Tensor slice_of(Tensor tensor, int64_t dim, int64_t start, int64_t length) {
  return torch::stable::narrow(tensor, dim, start, length);
}

void addmm(Tensor& out, const Tensor& a, const Tensor& b, double beta, double alpha) {
  // The dispatcher's boxed call cannot carry a Scalar from the stable ABI; this C shim takes doubles.
  using Shim = AOTITorchError (*)(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, AtenTensorHandle,
                                  double, double);
  static const auto cpu_shim = torch_symbol<Shim>("libtorch_cpu.so", "aoti_torch_cpu_addmm_out");
  static const auto cuda_shim = torch_symbol<Shim>("libtorch_cuda.so", "aoti_torch_cuda_addmm_out");
  const Shim shim = out.is_cuda() ? cuda_shim : cpu_shim;
  RAD_CHECK(shim != nullptr, "rad_kernels: this PyTorch build exports no addmm for the tensor's device");
  TORCH_ERROR_CODE_CHECK(shim(out.get(), out.get(), a.get(), b.get(), beta, alpha));
}

Tensor mm_fp32(const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{from(a), from(b), from(ScalarType::Float)};
  call("aten::mm", "dtype", stack.data());
  return to<Tensor>(stack[0]);
}

SketchSpec decode_spec(const std::vector<int64_t>& spec) {
  RAD_CHECK(spec.size() == 5, "spec must be [num, den, sampling, draw, bits], got ", spec.size(), " numbers");
  const int64_t num = spec[0], den = spec[1], bits = spec[4];
  RAD_CHECK(0 < num && num <= den && den <= 1000000, "spec: keep = ", num, "/", den, " is not in (0, 1]");
  RAD_CHECK(0 <= spec[2] && spec[2] <= 4, "spec: unknown sampling ", spec[2]);
  RAD_CHECK(0 <= spec[3] && spec[3] <= 4, "spec: unknown draw ", spec[3]);
  RAD_CHECK(bits == 0 || bits == 1 || bits == 2 || bits == 4 || bits == 8,
            "spec: bits must be 0, 1, 2, 4 or 8, got ", bits);
  return {num, den, static_cast<Sampling>(spec[2]), static_cast<Draw>(spec[3]), static_cast<int32_t>(bits)};
}

}  // namespace rad::ops

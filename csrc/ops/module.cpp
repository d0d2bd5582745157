// pybind11: facts that are not tensors. Tensors reach C++ only as torch ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "core/layout.h"
#include "ops/tensor.h"

namespace py = pybind11;

namespace {

constexpr const char* kDTypes[] = {"float32", "float64", "bfloat16", "float16"};

rad::DType dtype_named(const std::string& name) {
  for (int i = 0; i < 4; ++i) {
    if (name == kDTypes[i]) return static_cast<rad::DType>(i);
  }
  throw py::value_error("dtype must be float32, float64, bfloat16 or float16, got " + name);
}

int64_t saved_nbytes(const std::vector<int64_t>& spec, const std::string& dtype, int64_t rows, int64_t features) {
  return rad::saved_layout(rad::ops::decode_spec(spec), dtype_named(dtype), rows, features).bytes;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const rad::Words words = rad::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.w[0], words.w[1], words.w[2], words.w[3]};
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the compiled kernels; the kernels themselves are torch ops.";
  m.attr("built_with_torch") = RAD_BUILT_WITH_TORCH;
  m.attr("format_version") = rad::kFormatVersion;
#ifdef RAD_WITH_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_archs") = RAD_CUDA_ARCHS;
#else
  m.attr("has_cuda") = false;
  m.attr("cuda_archs") = "";
#endif
  m.def("saved_nbytes", &saved_nbytes, py::arg("spec"), py::arg("dtype"), py::arg("rows"), py::arg("features"),
        "Bytes of the buffer that keeps a [rows, features] activation.");
  m.def("philox4x32", &philox, py::arg("counter"), py::arg("key"), "Philox4x32-10 of one 128-bit counter.");
}

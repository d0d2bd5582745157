// pybind11: facts that are not tensors. Tensors reach C++ only as torch ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "core/derivative.h"
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

int64_t saved_nbytes(const std::vector<int64_t>& spec, const std::string& dtype, int64_t rows,
                     int64_t features) {
  return rad::saved_layout(rad::ops::decode_spec(spec), dtype_named(dtype), rows, features).bytes;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const rad::Words words =
      rad::philox4x32({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.w[0], words.w[1], words.w[2], words.w[3]};
}

// The two halves of the index map, apart, so that tests reach coordinates and words that no tensor can.
std::array<uint32_t, 4> random_words(uint64_t key, uint64_t salt, uint32_t role, uint64_t outer,
                                     uint64_t inner) {
  const rad::Words words = rad::random_words(key, salt, static_cast<rad::Role>(role), outer, inner);
  return {words.w[0], words.w[1], words.w[2], words.w[3]};
}

int64_t sampled_index(int32_t draw, int64_t n, int64_t k, int64_t i, uint64_t word) {
  return rad::sampled_index(static_cast<rad::Draw>(draw), rad::Strata(n, k), i, word);
}

// By the number of the function and its parameters, as ops take them.
double derivative_step(int32_t function, std::array<double, 3> parameters, int bits) {
  const rad::Activation f{static_cast<rad::Function>(function), parameters[0], parameters[1], parameters[2]};
  return rad::derivative_code<double>(f, bits).dither.step;
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
  m.def("saved_nbytes", &saved_nbytes, py::arg("spec"), py::arg("dtype"), py::arg("rows"),
        py::arg("features"), "Bytes of the buffer that keeps a [rows, features] activation.");
  m.def("philox4x32", &philox, py::arg("counter"), py::arg("key"), "Philox4x32-10 of one 128-bit counter.");
  m.def("random_words", &random_words, py::arg("key"), py::arg("salt"), py::arg("role"), py::arg("outer"),
        py::arg("inner"), "The 128 bits of one logical coordinate.");
  m.def("sampled_index", &sampled_index, py::arg("draw"), py::arg("n"), py::arg("k"), py::arg("i"),
        py::arg("word"), "Number i of a sample of k out of n from its 64-bit random word.");
  m.def("derivative_step", &derivative_step, py::arg("function"), py::arg("parameters"), py::arg("bits"),
        "Step of the codes of a function's derivative.");
}

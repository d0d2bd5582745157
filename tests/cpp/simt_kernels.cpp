// The CUDA contractions, executed by the harness, behind a C interface for Python's ctypes: the Args structs
// of kernels.h by address. Pointers are ordinary host pointers; this build has no checker.
#include <exception>
#include <string>

#include "core/layout.h"
#include "kernels.h"
#include "simt/simt.h"

namespace {

std::string message;

// 0, or 1 with a message: a fault that the harness found, or a status.
template <class F>
int guarded(const F& call) {
  try {
    const int status = call();
    if (status != 0) message = rad::cuda::error_string(status);
    return status;
  } catch (const std::exception& e) {
    message = e.what();
    return 1;
  }
}

}  // namespace

extern "C" {

const char* simt_message() { return message.c_str(); }

// order: 0 forward, 1 reverse, 2 random
void simt_schedule(int order, uint64_t seed) {
  simt::options.order = static_cast<simt::Order>(order);
  simt::options.seed = seed;
}

#define SIMT_EXPORT(name, Args)                             \
  int simt_##name(const rad::Args* args) {                  \
    return guarded([&] { return rad::cuda::name(*args); }); \
  }
#define SIMT_EXPORT_WORKSPACE(name, Args) \
  int64_t simt_##name##_workspace(const rad::Args* args) { return rad::cuda::name##_workspace(*args); }

SIMT_EXPORT(sample, SampleArgs)
SIMT_EXPORT(norm_sample, NormSampleArgs)
SIMT_EXPORT(pack, PackArgs)
SIMT_EXPORT(unpack, UnpackArgs)
SIMT_EXPORT(decode, DecodeArgs)
SIMT_EXPORT(signs, SignsArgs)
SIMT_EXPORT(hadamard, HadamardArgs)
SIMT_EXPORT(gather, GatherArgs)
SIMT_EXPORT(scatter, ScatterArgs)
SIMT_EXPORT(linear_wgrad, LinearWgradArgs)
SIMT_EXPORT(relu, ReluArgs)
SIMT_EXPORT(masked, MaskedArgs)
SIMT_EXPORT(dropout, DropoutArgs)
SIMT_EXPORT_WORKSPACE(sample, SampleArgs)
SIMT_EXPORT_WORKSPACE(norm_sample, NormSampleArgs)
SIMT_EXPORT_WORKSPACE(pack, PackArgs)
SIMT_EXPORT_WORKSPACE(hadamard, HadamardArgs)
SIMT_EXPORT_WORKSPACE(unpack, UnpackArgs)
SIMT_EXPORT_WORKSPACE(linear_wgrad, LinearWgradArgs)

void simt_saved_layout(const rad::SketchSpec* spec, int dtype, int64_t rows, int64_t features,
                       rad::SavedLayout* out) {
  *out = rad::saved_layout(*spec, static_cast<rad::DType>(dtype), rows, features);
}

// sizeof of each struct, so that Python's twins can be compared with it.
int64_t simt_sizeof(int which) {
  constexpr int64_t kSizes[] = {
      sizeof(rad::SampleArgs), sizeof(rad::NormSampleArgs), sizeof(rad::PackArgs),
      sizeof(rad::UnpackArgs), sizeof(rad::DecodeArgs),     sizeof(rad::SignsArgs),
      sizeof(rad::GatherArgs), sizeof(rad::ScatterArgs),    sizeof(rad::LinearWgradArgs),
      sizeof(rad::ReluArgs),   sizeof(rad::MaskedArgs),     sizeof(rad::DropoutArgs),
      sizeof(rad::SavedLayout)};
  return kSizes[which];
}

}  // extern "C"

// Included before torch's other headers, whose inline functions check their calls by this macro. Torch's own
// version of it would tell the user which call failed, but not that, say, memory has run out.
#pragma once
#include <torch/headeronly/util/shim_utils.h>

namespace rad::ops {

// Throws what torch says of the last failure in this thread.
[[noreturn]] void throw_torch_error(const char* call);

}  // namespace rad::ops

#undef TORCH_ERROR_CODE_CHECK
#define TORCH_ERROR_CODE_CHECK(call)    \
  if ((call) != TORCH_SUCCESS) {        \
    rad::ops::throw_torch_error(#call); \
  }

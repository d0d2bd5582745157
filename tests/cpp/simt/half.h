#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt.h"

namespace simt {

inline float half_to_float(Half type, uint32_t bits) {
  if (type == Half::kF16) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
  return __bfloat162float(__ushort_as_bfloat16(static_cast<uint16_t>(bits)));
}

}  // namespace simt

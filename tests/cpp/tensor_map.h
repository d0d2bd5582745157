// A two-dimensional TMA descriptor for tests: the driver's under nvcc, the harness's under g++.
#pragma once
#include "cuda/ptx.cuh"
#include "testing.h"

namespace testing {

// Row-major [rows, cols] of 16-bit items; loads bring [box_rows, box_cols] with the 128-byte swizzle or none.
inline rad::cuda::TensorMap tensor_map(const void* data, int rows, int cols, int box_rows, int box_cols,
                                       bool swizzle) {
#ifdef __CUDACC__
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found);
  const auto encode = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(symbol);
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[1] = {static_cast<cuuint64_t>(cols) * 2};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_cols), static_cast<cuuint32_t>(box_rows)},
                   step[2] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(data), size, row_bytes, box, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) throw Failure("cuTensorMapEncodeTiled");
  return map;
#else
  return {data,
          {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)},
          static_cast<uint64_t>(cols) * 2,
          {static_cast<uint32_t>(box_cols), static_cast<uint32_t>(box_rows)},
          2,
          swizzle ? 128 : 0};
#endif
}

}  // namespace testing

// Through shared memory, so that both sides are walked along what lies side by side there.
#include "cuda/regroup.cuh"

namespace rad::cuda {
namespace {

constexpr int kRows = 32, kCols = 64;  // of a tile

struct Regrouping {
  Regroup plan;
  int64_t row_tiles, col_tiles;
};

// Column `col` of the padded matrix in the source; -1: padding.
RAD_DEVICE int64_t source_column(const Regroup& plan, int64_t col) {
  const int64_t group = col / plan.padded, within = col % plan.padded;
  return group < plan.groups && within < plan.group_cols ? group * plan.group_cols + within : -1;
}

RAD_DEVICE uint16_t item_of(const Regroup& plan, int64_t image, int64_t row, int64_t col) {
  const MatrixView& m = plan.source;
  const int64_t from = source_column(plan, col);
  if (row >= m.rows || from < 0) return 0;
  if (plan.spots && !plan.spots[image * plan.out_image + row * plan.out_row].read()) return 0;
  return static_cast<const uint16_t*>(
      m.data)[image * plan.image_stride + offset_of_row(m, row) + from * m.col_stride];
}

__global__ void __launch_bounds__(kThreads, kResident) regroup_kernel(const __grid_constant__ Regrouping p) {
  CUDA_SHARED(uint16_t[kRows][kCols + 2], tile);
  const Regroup& plan = p.plan;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t columns = plan.groups * plan.padded, tiles = plan.images * p.row_tiles * p.col_tiles;
  const bool across = plan.source.col_stride == 1;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t col = number % p.col_tiles * kCols, row = number / p.col_tiles % p.row_tiles * kRows,
                  image = number / p.col_tiles / p.row_tiles;
#pragma unroll 4
    for (int i = thread; i < kRows * kCols; i += kThreads) {
      const int r = across ? i / kCols : i % kRows, c = across ? i % kCols : i / kRows;
      tile[r][c] = item_of(plan, image, row + r, col + c);
    }
    __syncthreads();
#pragma unroll 4
    for (int i = thread; i < kRows * kCols; i += kThreads) {
      const int r = i / kCols, c = i % kCols;
      if (row + r < plan.source.rows && col + c < columns)
        plan.out[(image * plan.out_image + (row + r) * plan.out_row) * columns + col + c] = tile[r][c];
    }
    __syncthreads();
  }
}

}  // namespace

int regroup(const Exec& exec, const Regroup& plan) {
  const Regrouping params{plan, (plan.source.rows + kRows - 1) / kRows,
                          (plan.groups * plan.padded + kCols - 1) / kCols};
  const int64_t tiles = plan.images * params.row_tiles * params.col_tiles;
  return launch(regroup_kernel, {dim3(blocks_for(tiles, 1, kWalkingBlocks)), dim3(kThreads), 0, exec.stream},
                params);
}

}  // namespace rad::cuda

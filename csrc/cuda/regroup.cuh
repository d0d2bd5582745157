// Matrices of 16-bit items laid out anew, so that rows can be copied by chunks.
#pragma once
#include "cuda/conv_positions.cuh"

namespace rad::cuda {

// out [lines, groups, padded]: row r of image i is line i * out_image + r * out_row, its columns in groups of
// `group_cols`, each padded with zeros. Lines whose spots no tap reads are zeros.
struct Regroup {
  MatrixView source;  // of image 0
  int64_t images, image_stride;
  int64_t out_image, out_row;
  int64_t groups, group_cols, padded;
  const Spot* spots;  // of each line, or null
  uint16_t* out;
};

int regroup(const Exec& exec, const Regroup& plan);

}  // namespace rad::cuda

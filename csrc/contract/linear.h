// Sketches of an activation [rows, features] and the products that consume them.
#pragma once
#include "contract/types.h"

namespace rad {

// (key, sampling, draw) -> the kept indices of lines `outer`... of a sample from [0, n): rows of `rows`
// (outer 0) and of feature tiles of `tile_rows` (outer = tile), features of `same` (outer 0). Stratified
// lists and those of `same` ascend. Not for the norm draw, whose indices are planes of `saved`.
struct SampleArgs {
  Exec exec;
  SketchSpec spec;
  const Trailer* trailer;
  int64_t n, outer, lines;
  int64_t* index;   // [lines, kept(n)]
  void* workspace;  // sample_workspace(args) bytes
};

// activation -> the planes of `saved`; writes salt and version into the trailer, whose key is already there.
// `project` packs what it is given: x is then [rows, kept(features)], the projected activation.
struct PackArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  MatrixView x;      // [rows, features]
  int64_t features;  // of the activation
  uint64_t salt;     // below 2^32
  void* saved;       // saved_layout(...).bytes bytes, 16-byte aligned
  void* workspace;
};

// Row norms -> indices and weights of the norm draw, into their planes of `saved`. Runs before pack.
struct NormSampleArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  MatrixView x;
  uint64_t salt;
  void* saved;
  void* workspace;
};

// Stored lines [begin, end) of `saved` as numbers: codes decoded, plain values copied. No weights applied.
struct DecodeArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;  // of the activation
  bool widen;   // out is fp32 (dtype bf16 or fp16 only)
  int64_t rows, features;
  const void* saved;
  int64_t begin, end;  // within one feature tile
  void* out;           // [end - begin, width of the lines], contiguous
};

// Rows [begin, end) of the random matrix R [features, kept(features)] of `project` with its own draw of
// signs: each entry +1 or -1. Key and salt are read from the trailer.
struct SignsArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  const Trailer* trailer;
  int64_t features, begin, end;
  void* out;  // [end - begin, kept(features)], contiguous
};

// out = scale * x R, or scale * x R^T, with R [features, kept(features)] of `project` with the hadamard draw:
// a fast transform instead of a product. Key and salt are read from the trailer.
struct HadamardArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;  // of x and out; 16-bit values are summed in fp32 and rounded once
  const Trailer* trailer;
  int64_t features;
  bool transposed;
  MatrixView x;  // [rows, features]; transposed: [rows, kept(features)]
  double scale;
  void* out;  // [rows, kept(features)]; transposed: [rows, features]; contiguous
  void* workspace;
};

// saved -> the dense unbiased estimate of the activation (tests and diagnostics only). Not for the hadamard
// draw: that is `hadamard`, transposed, of the stored lines.
struct UnpackArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  int64_t rows, features;
  const void* saved;
  void* out;  // [rows, features], contiguous, dtype
  void* workspace;
};

// Rows index[0..count) of a matrix, in that order, contiguous, row i times weight[i] or, without weights,
// times scale[i >= split] (rounded once); optionally widened to fp32. Scales of one move bits.
struct GatherArgs {
  Exec exec;
  DType dtype;  // of source
  bool widen;   // out is fp32 (dtype bf16 or fp16 only)
  MatrixView source;
  const int64_t* index;  // [count]
  int64_t count, split;
  double scale[2];
  const float* weight;  // [count] or null
  void* out;            // [count, source.cols], contiguous
};

// Columns back to their places: out[:, index[j]] = sum over equal indices of scale_j * packed[:, j], the rest
// zero. scale_j is scale[0] for j < split and scale[1] from there on.
struct ScatterArgs {
  Exec exec;
  DType dtype;
  int64_t rows, count, cols;
  const void* packed;    // [rows, count], contiguous
  const int64_t* index;  // [count], ascending, below cols
  int64_t split;
  double scale[2];
  void* out;  // [rows, cols], contiguous
};

// The fused product of `different`: dW[o, f] = sum_r dy[r, o] * sum_{j: index(r, j) = f} weight_j * x[r, f].
struct LinearWgradArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;       // of dy, the stored values and dw
  MatrixView dy;     // [rows, outputs]
  int64_t features;  // x was [dy.rows, features]
  const void* saved;
  void* dw;  // [outputs, features], contiguous; accumulated in fp32 (fp64 for fp64), rounded once
  void* workspace;
};

// The same for `rows` and `tile_rows` of 16-bit values, gathering dy on the way: dW[o, f] = sum_i weight_i *
// dy[index_i, o] * x_i[f]. Decoded values and rows of dy with their own weights are rounded to dtype first.
// rows_wgrad_has_wgmma: whether these arguments, without index and dw, would be multiplied by sm_90a's wgmma.
struct RowsWgradArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;       // of dy, the stored values and dw: bf16 or fp16
  MatrixView dy;     // [rows, outputs]
  int64_t features;  // x was [dy.rows, features]
  const void* saved;
  const int64_t* index;   // [tiles, kept(dy.rows)] as `sample` lists them
  void* dw;               // [outputs, features], contiguous; accumulated in fp32, rounded once
  bool portable = false;  // by the kernel for every GPU, where a faster one is for this GPU alone
};

}  // namespace rad

#define RAD_LINEAR_CONTRACTIONS(F)                    \
  F(int64_t, sample_workspace, SampleArgs)            \
  F(int, sample, SampleArgs)                          \
  F(int64_t, norm_sample_workspace, NormSampleArgs)   \
  F(int, norm_sample, NormSampleArgs)                 \
  F(int64_t, pack_workspace, PackArgs)                \
  F(int, pack, PackArgs)                              \
  F(int64_t, hadamard_workspace, HadamardArgs)        \
  F(int, hadamard, HadamardArgs)                      \
  F(int64_t, unpack_workspace, UnpackArgs)            \
  F(int, unpack, UnpackArgs)                          \
  F(int, decode, DecodeArgs)                          \
  F(int, signs, SignsArgs)                            \
  F(int, gather, GatherArgs)                          \
  F(int, scatter, ScatterArgs)                        \
  F(int64_t, linear_wgrad_workspace, LinearWgradArgs) \
  F(int, linear_wgrad, LinearWgradArgs)               \
  F(int, rows_wgrad, RowsWgradArgs)                   \
  F(bool, rows_wgrad_has_wgmma, RowsWgradArgs)

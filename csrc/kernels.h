// The contract between ops (torch-aware) and the contractions (torch-free): plain structs over raw
// pointers, one CPU and one CUDA implementation of each. Contractions never allocate (scratch comes from
// x_workspace(args) bytes at args.workspace), never synchronise, and are deterministic. Status 0 is
// success; the CUDA side returns its cudaError_t.
#pragma once
#include <cstdint>

namespace rad {

enum class DType : int32_t { kF32 = 0, kF64 = 1, kBF16 = 2, kF16 = 3 };
enum class Sampling : int32_t { kRows = 0, kSame = 1, kDifferent = 2, kTileRows = 3, kProject = 4 };
enum class Draw : int32_t { kStratified = 0, kWithReplacement = 1, kWithoutReplacement = 2, kNorm = 3 };

// What is kept of an activation [rows, features]: the numbers behind rad_kernels.Sketch.
struct SketchSpec {
  int64_t num, den;  // keep = num / den, 0 < num <= den <= 10^6
  Sampling sampling;
  Draw draw;
  int32_t bits;  // of a dithered code: 8, 4, 2 or 1; 0 keeps values as they are
};

// The last 64 bytes of every saved buffer: all that is needed to regenerate each random word.
struct Trailer {
  uint64_t key;      // 63 random bits, drawn on the tensor's own device
  uint64_t salt;     // the process's rank salt, below 2^32
  uint64_t version;  // kFormatVersion
  uint64_t reserved[5];
};
constexpr uint64_t kFormatVersion = 1;

// A strided matrix [rows, cols]: row r lies at the mixed-radix digits of r over up to three leading
// dimensions (outermost first; unused ones have size 1 and stride 0). Strides count elements, may be 0.
struct MatrixView {
  const void* data;
  int64_t rows, cols, col_stride;
  int64_t size[3], stride[3];
};

// Where a contraction runs. CPU: `parallel` splits [0, n) over threads (null: serial). CUDA: `stream`.
using RangeBody = void (*)(const void* closure, int64_t begin, int64_t end);
using ParallelFor = void (*)(int64_t n, int64_t grain, RangeBody body, const void* closure);
struct Exec {
  ParallelFor parallel = nullptr;
  int threads = 1;
  void* stream = nullptr;
};

// (key, sampling, draw) -> the kept indices of line `outer` of a sample from [0, n): rows of `rows` (outer 0)
// and of one feature tile of `tile_rows` (outer = tile), features of `same` (outer 0). Stratified lists and
// those of `same` ascend. Not for the norm draw, whose indices are planes of `saved`.
struct SampleArgs {
  Exec exec;
  SketchSpec spec;
  const Trailer* trailer;
  int64_t n, outer;
  int64_t* index;   // [kept(n)]
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

// Rows [begin, end) of the random matrix R [features, kept(features)] of `project`: each entry +1 or -1. Key
// and salt are read from the trailer.
struct SignsArgs {
  Exec exec;
  SketchSpec spec;
  DType dtype;
  const Trailer* trailer;
  int64_t features, begin, end;
  void* out;  // [end - begin, kept(features)], contiguous
};

// saved -> the dense unbiased estimate of the activation (tests and diagnostics only).
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

// y = x < 0 ? 0 : x with a one-bit mask. Bit i % 32 of word i / 32 is set where torch's backward lets the
// gradient pass (y > 0 or y is NaN). Elements are numbered in memory order. y == x is allowed.
struct ReluArgs {
  Exec exec;
  DType dtype;
  const void* x;   // [n]
  void* y;         // [n]
  uint32_t* mask;  // [(n + 31) / 32], bits past n are zero
  int64_t n;
};

// dx = mask ? dy : 0. dx == dy is allowed.
struct MaskedArgs {
  Exec exec;
  DType dtype;
  const void* dy;        // [n]
  const uint32_t* mask;  // [(n + 31) / 32]
  void* dx;              // [n]
  int64_t n;
};

// y = u >= p ? x * scale : 0 with u regenerated from (key, salt) element by element, in memory order; forward
// and backward are this one function. y == x is allowed.
struct DropoutArgs {
  Exec exec;
  DType dtype;
  Trailer* trailer;  // its key is in place
  int64_t salt;      // forward: below 2^32, written to the trailer with the version; backward: -1, read there
  uint32_t threshold;  // an element is dropped when its 32-bit word is below
  float scale;         // 2^32 / (2^32 - threshold)
  const void* x;       // [n]
  void* y;             // [n]
  int64_t n;
};

#define RAD_CONTRACTIONS                                       \
  int64_t sample_workspace(const SampleArgs& args);            \
  int sample(const SampleArgs& args);                          \
  int64_t norm_sample_workspace(const NormSampleArgs& args);   \
  int norm_sample(const NormSampleArgs& args);                 \
  int64_t pack_workspace(const PackArgs& args);                \
  int pack(const PackArgs& args);                              \
  int64_t unpack_workspace(const UnpackArgs& args);            \
  int unpack(const UnpackArgs& args);                          \
  int decode(const DecodeArgs& args);                          \
  int signs(const SignsArgs& args);                            \
  int gather(const GatherArgs& args);                          \
  int scatter(const ScatterArgs& args);                        \
  int64_t linear_wgrad_workspace(const LinearWgradArgs& args); \
  int linear_wgrad(const LinearWgradArgs& args);               \
  int relu(const ReluArgs& args);                              \
  int masked(const MaskedArgs& args);                          \
  int dropout(const DropoutArgs& args);

namespace cpu {
RAD_CONTRACTIONS
}  // namespace cpu

namespace cuda {
RAD_CONTRACTIONS
const char* error_string(int status);
}  // namespace cuda

#undef RAD_CONTRACTIONS
}  // namespace rad

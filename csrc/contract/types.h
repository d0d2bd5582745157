// What every contraction's arguments are made of. kernels.h tells the rules.
#pragma once
#include <cstdint>

namespace rad {

enum class DType : int32_t { kF32 = 0, kF64 = 1, kBF16 = 2, kF16 = 3 };
enum class Sampling : int32_t { kRows = 0, kSame = 1, kDifferent = 2, kTileRows = 3, kProject = 4 };
enum class Draw : int32_t {
  kStratified = 0,
  kWithReplacement = 1,
  kWithoutReplacement = 2,
  kNorm = 3,
  kHadamard = 4
};

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

}  // namespace rad

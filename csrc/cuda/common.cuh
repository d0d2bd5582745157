// What the kernels share: item types, conversions, launch sizes, the sampler with its key on the device.
#pragma once
#include "core/layout.h"
#include "core/matrix_view.h"
#include "cuda/ptx_arithmetic.cuh"
#include "kernels.h"

namespace rad::cuda {

constexpr int kThreads = 256;
constexpr int kResident = 2;  // blocks to a multiprocessor where the compiler's own choice spills
constexpr int kVectorBytes = 16;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// ---- types ------------------------------------------------------------------------------------------------

template <class T>
using Accumulate = std::conditional_t<std::is_same_v<T, double>, double, float>;

RAD_DEVICE float widen(float v) { return v; }
RAD_DEVICE double widen(double v) { return v; }
RAD_DEVICE float widen(bf16 v) { return __bfloat162float(v); }
RAD_DEVICE float widen(f16 v) { return __half2float(v); }

template <class T>
RAD_DEVICE T narrow(Accumulate<T> v) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(v);
  else if constexpr (std::is_same_v<T, f16>)
    return __float2half_rn(v);
  else
    return v;
}

// As many items as one memory instruction moves.
template <class T, int Count>
struct alignas(sizeof(T) * Count) Vector {
  T item[Count];
};
template <class T>
constexpr int kPerVector = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct TypeTag {
  using type = T;
};

// f(TypeTag<T>) for the type that `dtype` names.
template <class F>
int visit_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(TypeTag<float>{});
    case DType::kF64:
      return f(TypeTag<double>{});
    case DType::kBF16:
      return f(TypeTag<bf16>{});
    case DType::kF16:
      return f(TypeTag<f16>{});
  }
  return kInvalidValue;
}

// The same where only bits move: f(TypeTag<an unsigned integer>) of `bytes`.
template <class F>
int visit_item(int64_t bytes, F&& f) {
  switch (bytes) {
    case 2:
      return f(TypeTag<uint16_t>{});
    case 4:
      return f(TypeTag<uint32_t>{});
    case 8:
      return f(TypeTag<uint64_t>{});
  }
  return kInvalidValue;
}

// ---- launch sizes ----------------------------------------------------------------------------------------

// Kernels loop over what lies beyond the grid, so a limit costs nothing but a few iterations.
constexpr int64_t kMaxBlocksX = 1 << 22, kMaxBlocksY = 1 << 15, kMaxBlocksZ = 1 << 15;

inline unsigned blocks_for(int64_t work, int64_t per_block, int64_t limit = kMaxBlocksX) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > limit ? limit : blocks);
}

inline LaunchConfig over_items(int64_t items, void* stream) {
  return {dim3(blocks_for(items, kThreads)), dim3(kThreads), 0, stream};
}

// kThreads threads as (columns, rows): no wider than the columns need.
inline dim3 block_shape(int64_t cols) {
  unsigned width = 1;
  while (width < kThreads && width < cols) width *= 2;
  return dim3(width, kThreads / width);
}

// One matrix, or several of the same shape.
inline LaunchConfig over_matrix(int64_t rows, int64_t cols, void* stream, int64_t matrices = 1) {
  const dim3 block = block_shape(cols);
  return {dim3(blocks_for(rows, block.y), blocks_for(cols, block.x, kMaxBlocksY),
               blocks_for(matrices, 1, kMaxBlocksZ)),
          block, 0, stream};
}

// Grids that walk over any length: few enough blocks that a thread's preparations are shared by many
// accesses, two waves of eight blocks on 132 multiprocessors.
#ifdef RAD_WALKING_BLOCKS  // tests: so few that every loop over the grid takes several steps
constexpr int64_t kWalkingBlocks = RAD_WALKING_BLOCKS;
#else
constexpr int64_t kWalkingBlocks = 132 * 16;
#endif

// As over_matrix, for threads that walk down the lines, `ahead` at a time.
inline LaunchConfig over_lines(int64_t lines, int64_t cols, int ahead, void* stream, int64_t matrices = 1) {
  LaunchConfig config = over_matrix((lines + ahead - 1) / ahead, cols, stream, matrices);
  const int64_t others = static_cast<int64_t>(config.grid.y) * config.grid.z;
  config.grid.x = blocks_for(config.grid.x, 1, others < kWalkingBlocks ? kWalkingBlocks / others : 1);
  return config;
}

// ---- pointers --------------------------------------------------------------------------------------------

inline bool aligned(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether every row of the matrix starts at a multiple of `bytes` and holds its columns side by side.
inline bool rows_aligned(const MatrixView& m, int64_t item, int64_t bytes) {
  bool fits = aligned(m.data, bytes) && m.col_stride == 1;
  for (int d = 0; d < 3; ++d) fits = fits && (m.size[d] == 1 || m.stride[d] * item % bytes == 0);
  return fits;
}

// row_offset without its divisions where the rows have one stride.
RAD_DEVICE int64_t offset_of_row(const MatrixView& m, int64_t row) {
  return m.size[2] == m.rows ? row * m.stride[2] : row_offset(m, row);
}

// ---- keys and samples ------------------------------------------------------------------------------------

struct Seed {
  uint64_t key, salt;
};

struct WideProduct {
  RAD_DEVICE static uint64_t of(uint32_t a, uint32_t b) { return multiply_wide(a, b); }
};
RAD_DEVICE Words random_words(const Seed& seed, Role role, int64_t outer, int64_t inner) {
  return rad::random_words<WideProduct>(seed.key, seed.salt, role, static_cast<uint64_t>(outer),
                                        static_cast<uint64_t>(inner));
}

// Where the key lies; a negative salt means the trailer's own (a pack is given the salt that it writes
// there).
struct KeySource {
  const Trailer* trailer;
  int64_t salt;

  RAD_DEVICE Seed seed() const {
    return {trailer->key, salt < 0 ? trailer->salt : static_cast<uint64_t>(salt)};
  }
};

// Makes the trailer complete but for its key, which is there already, and zeroes the gaps between planes: the
// first block of the grid does.
struct TrailerWriter {
  Trailer* trailer;
  int64_t salt;           // negative: nothing is written
  char* saved = nullptr;  // the buffer that `gaps` counts in
  Gaps gaps = {};

  RAD_DEVICE void write() const {
    if (salt < 0 || (blockIdx.x | blockIdx.y | blockIdx.z) != 0) return;
    const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
    static_assert(kPlaneAlign <= kThreads);
#pragma unroll
    for (int plane = 0; plane < Gaps::kCount; ++plane) {
      if (gaps.begin[plane] + thread < gaps.end[plane]) saved[gaps.begin[plane] + thread] = 0;
    }
    if (thread > 0) return;
    trailer->salt = static_cast<uint64_t>(salt);
    trailer->version = kFormatVersion;
    for (uint64_t& word : trailer->reserved) word = 0;
  }
};

inline Sampler plan_sample(const SketchSpec& spec, int64_t n) { return Sampler(0, 0, spec, n); }

RAD_DEVICE Sampler keyed(Sampler plan, const KeySource& source) {
  const Seed seed = source.seed();
  plan.key = seed.key;
  plan.salt = seed.salt;
  return plan;
}

// How many lines of indices a sketch needs drawn: none where they are planes of `saved` or drawn in passing.
inline int64_t listed_lines(const SketchSpec& spec, const SavedLayout& layout) {
  if (spec.draw == Draw::kNorm) return 0;
  return samples_rows(spec.sampling) ? layout.tiles : spec.sampling == Sampling::kSame ? 1 : 0;
}

// sample.cu: the kept indices of lines [first, first + lines), each of kept(n) entries as stored.
int draw_indices(const Exec& exec, const SketchSpec& spec, const KeySource& source, int64_t n, int64_t first,
                 int64_t lines, int64_t* index);

}  // namespace rad::cuda

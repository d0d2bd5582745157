// What the kernels share: item types, conversions, launch sizes, the sampler with its key on the device.
#pragma once
#include "core/layout.h"
#include "core/matrix_view.h"
#include "cuda/ptx.cuh"
#include "kernels.h"

namespace rad::cuda {

constexpr int kThreads = 256;
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

// ---- launch sizes
// -------------------------------------------------------------------------------------------

// Kernels loop over what lies beyond the grid, so a limit costs nothing but a few iterations.
constexpr int64_t kMaxBlocksX = 1 << 22, kMaxBlocksY = 1 << 15;

inline unsigned blocks_for(int64_t work, int64_t per_block, int64_t limit = kMaxBlocksX) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > limit ? limit : blocks);
}

// kThreads threads as (columns, rows): no wider than the columns need.
inline dim3 block_shape(int64_t cols) {
  unsigned width = 1;
  while (width < kThreads && width < cols) width *= 2;
  return dim3(width, kThreads / width);
}

inline LaunchConfig over_matrix(int64_t rows, int64_t cols, void* stream) {
  const dim3 block = block_shape(cols);
  return {dim3(blocks_for(rows, block.y), blocks_for(cols, block.x, kMaxBlocksY)), block, 0, stream};
}

// ---- pointers
// -------------------------------------------------------------------------------------------------

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

// ---- samples
// --------------------------------------------------------------------------------------------------

// Where the key lies; a negative salt means the trailer's own (a pack is given the salt that it writes
// there).
struct KeySource {
  const Trailer* trailer;
  int64_t salt;
};

inline Sampler plan_sample(const SketchSpec& spec, int64_t n) { return Sampler(0, 0, spec, n); }

RAD_DEVICE Sampler keyed(Sampler plan, const KeySource& source) {
  plan.key = source.trailer->key;
  plan.salt = source.salt < 0 ? source.trailer->salt : static_cast<uint64_t>(source.salt);
  return plan;
}

inline const Trailer* trailer_of(const void* saved, int64_t offset) {
  return reinterpret_cast<const Trailer*>(static_cast<const char*>(saved) + offset);
}

// sample.cu: the kept indices of `rows` or `same`, in the order of the planes.
int draw_indices(const Exec& exec, const SketchSpec& spec, const KeySource& source, int64_t n,
                 int64_t* index);

}  // namespace rad::cuda

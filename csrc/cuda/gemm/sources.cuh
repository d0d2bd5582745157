// Where the operands of a product come from, and how they reach shared memory: asynchronous copies for rows
// whose chunks are aligned, registers for all that must be looked at on its way.
//
// A loader is called by the first `Threads` threads of a block, step by step. fetch starts copies that arrive
// on their own, a product before place does what takes registers.
#pragma once
#include "cuda/gemm/tile.cuh"
#include "cuda/saved.cuh"

namespace rad::cuda::gemm {

// Rows of a matrix in the order of a list.
template <class T>
struct ListedRows {
  MatrixView m;
  const int64_t* index;  // null: the rows as they lie
  const float* weight;   // of each entry of the list, or null
  bool aligned;          // every row starts at a multiple of 16 bytes, items side by side

  RAD_DEVICE int64_t offset(int64_t i) const { return offset_of_row(m, index ? index[i] : i); }

  // Entry i, items [column, column + 8); zeros past the last column.
  RAD_DEVICE void load(int64_t i, int64_t column, T (&item)[kChunk]) const {
    const T* row = static_cast<const T*>(m.data) + offset(i);
    if (m.col_stride == 1) {
      load_octet(row, column, m.cols, aligned, item);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        item[e] = column + e < m.cols ? row[(column + e) * m.col_stride] : narrow<T>(0);
    }
    if (!weight) return;
    const float w = weight[i];
#pragma unroll
    for (int e = 0; e < kChunk; ++e) item[e] = narrow<T>(widen(item[e]) * w);
  }
};

// Stored lines of one tile, side by side.
template <class T>
struct PlainLines {
  const T* data;
  int64_t width;
  bool aligned;

  RAD_DEVICE void load(int64_t line, int64_t column, T (&item)[kChunk]) const {
    load_octet(data + line * width, column, width, aligned, item);
  }
};

// Stored lines of one tile that are codes: decoded and rounded to T, as `decode` does.
template <class T>
struct CodedLines {
  const SavedView& saved;
  Seed seed;
  int64_t tile;

  RAD_DEVICE void load(int64_t line, int64_t column, T (&item)[kChunk]) const {
    const int64_t width = saved.layout.tile_width(tile);
    float value[kOctet] = {};
    if (column < width) decode_octet<T>(saved, seed, tile, line, column, value);
#pragma unroll
    for (int e = 0; e < kChunk; ++e) item[e] = narrow<T>(column + e < width ? value[e] : 0.f);
  }
};

// The chunks of a step that one of `Threads` threads brings: one column of chunks, every so many rows.
template <int Width, int Depth, int Threads>
struct Share {
  using Tile = Operand<Width, Depth>;
  static constexpr int kStride = Threads / Tile::kChunks, kCount = Depth / kStride;
  static_assert(Threads % Tile::kChunks == 0 && Depth % kStride == 0);
  int row, chunk;

  RAD_DEVICE Share()
      : row(static_cast<int>(threadIdx.x) / Tile::kChunks),
        chunk(static_cast<int>(threadIdx.x) % Tile::kChunks) {}
  RAD_DEVICE int at(int i) const { return Tile::chunk_at(row + i * kStride, chunk); }
};

// Rows that cp.async can bring: each starts at a multiple of 16 bytes, `stride` items after the one before,
// which for those of a list is below 2^31, as their number.
template <class T>
struct AlignedRows {
  const T* data;
  int64_t stride, cols;
};

// Those of a list, or, without one, as they lie. The list is read a step ahead of the copies that need it.
template <class T, bool Listed, int Width, int Depth, int Threads>
class CopyLoader {
 public:
  RAD_DEVICE CopyLoader(const AlignedRows<T>& rows, const int64_t* index, const Steps<Depth>& steps,
                        int64_t column)
      : steps_(steps), index_(index), stride_(rows.stride) {
    const int64_t first = column + share_.chunk * kChunk, left = rows.cols - first;
    bytes_ = left >= kChunk ? 16 : left > 0 ? static_cast<int>(left) * 2 : 0;
    data_ = rows.data + (bytes_ ? first : 0);
    look_up(0);
  }
  RAD_DEVICE void fetch(int step, char* tile) {
    const int left = rows_left(step);
    const T* first = data_ + (Listed ? 0 : (steps_.begin(step) + share_.row) * stride_);
    // Nearly always nothing has to be asked of each chunk.
    if (bytes_ == 16 && left > kLast)
      copy(tile, first, [](int) { return 16; });
    else
      copy(tile, first, [&](int i) { return i * kStride < left ? bytes_ : 0; });
  }
  RAD_DEVICE void place(int step, char*) { look_up(step + 1); }

 private:
  static constexpr int kCount = Share<Width, Depth, Threads>::kCount,
                       kStride = Share<Width, Depth, Threads>::kStride, kLast = (kCount - 1) * kStride;

  template <class Bytes>
  RAD_DEVICE void copy(char* tile, const T* first, const Bytes& bytes) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t offset =
          Listed ? multiply_wide(row_[i], static_cast<uint32_t>(stride_)) : i * kStride * stride_;
      cp_async16(tile + share_.at(i), first + offset, bytes(i));
    }
  }

  // This thread's row i of a step exists where i * kStride is below.
  RAD_DEVICE int rows_left(int step) const {
    return static_cast<int>(min(steps_.end(step) - steps_.begin(step), int64_t{Depth})) - share_.row;
  }
  RAD_DEVICE void look_up(int step) {
    if constexpr (!Listed) return;
    const int left = rows_left(step);
    const int64_t* from = index_ + steps_.begin(step) + share_.row;
    if (left > kLast) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) row_[i] = static_cast<uint32_t>(from[i * kStride]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        row_[i] = i * kStride < left ? static_cast<uint32_t>(from[i * kStride]) : 0;
    }
  }

  const Steps<Depth>& steps_;
  Share<Width, Depth, Threads> share_;
  const int64_t* index_;
  const T* data_;
  int64_t stride_;
  int bytes_;
  uint32_t row_[kCount];
};

// Through registers, from anything that can load an octet.
template <class T, class Source, int Width, int Depth, int Threads>
class StagedLoader {
 public:
  RAD_DEVICE StagedLoader(const Source& source, const Steps<Depth>& steps, int64_t column)
      : source_(source), steps_(steps), column_(column) {}
  RAD_DEVICE void fetch(int, char*) const {}
  RAD_DEVICE void place(int step, char* tile) const {
    const int64_t begin = steps_.begin(step) + share_.row, end = steps_.end(step);
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      Vector<T, kChunk> chunk;
#pragma unroll
      for (T& item : chunk.item) item = narrow<T>(0);
      const int64_t row = begin + i * kStride;
      if (row < end) source_.load(row, column_ + share_.chunk * kChunk, chunk.item);
      *reinterpret_cast<Vector<T, kChunk>*>(tile + share_.at(i)) = chunk;
    }
  }

 private:
  static constexpr int kCount = Share<Width, Depth, Threads>::kCount,
                       kStride = Share<Width, Depth, Threads>::kStride;
  const Source& source_;
  const Steps<Depth>& steps_;
  int64_t column_;
  Share<Width, Depth, Threads> share_;
};

}  // namespace rad::cuda::gemm

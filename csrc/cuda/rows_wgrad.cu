// dW of `rows` and `tile_rows` on tensor cores: the kept rows of dy are gathered and the stored lines decoded
// on their way into shared memory, so that neither exists a second time.
#include "cuda/gemm/mma.cuh"
#include "cuda/gemm/sources.cuh"
#include "cuda/gemm/wgmma.cuh"

namespace rad::cuda {
namespace {

namespace wg = gemm::warpgroups;
using gemm::kDepth;

template <class T>
struct RowsParams {
  gemm::ListedRows<T> dy;  // of feature tile 0
  SavedView saved;
  RowWeights weights;
  gemm::Tiles tiles;
  int64_t features, index_step;  // entries of the list to the next tile of features
  T* dw;                         // [outputs, features]
  bool vector_lines, vector_dw;
};

// What reaches shared memory how.
enum class Path {
  kCopied,   // dy and stored values by cp.async
  kDecoded,  // dy by cp.async, codes through registers
  kStaged,   // both through registers: rows off alignment, weights of their own
  kWgmma,    // as kCopied, on a GPU with wgmma
};

template <Path kPath>
using ShapeOf = gemm::Shape<kPath == Path::kCopied ? 128 : 256>;
template <class T, bool Listed, class Warp>
using Copied = gemm::CopyLoader<T, Listed, gemm::kFeatures, kDepth, Warp::kThreads>;
template <class T, class Source, class Warp>
using Staged = gemm::StagedLoader<T, Source, gemm::kFeatures, kDepth, Warp::kThreads>;

// The tile that a block works on: first output and feature; the stored lines' tile and first column in it.
struct Place {
  int64_t output, feature, tile, column;
};

// The tile of this number, of `outputs` outputs.
template <class T>
RAD_DEVICE Place find_place(const RowsParams<T>& p, int64_t number, int64_t outputs) {
  const bool tiled = p.saved.layout.tiles > 1;
  int64_t o, f;
  p.tiles.find(number, o, f);
  return {o * outputs, f * gemm::kFeatures, tiled ? f : 0, tiled ? 0 : f * gemm::kFeatures};
}

// What cp.async can bring.
template <class T>
RAD_DEVICE gemm::AlignedRows<T> aligned_dy(const RowsParams<T>& p) {
  return {static_cast<const T*>(p.dy.m.data), p.dy.m.stride[2], p.dy.m.cols};
}
template <class T>
RAD_DEVICE gemm::AlignedRows<T> aligned_lines(const RowsParams<T>& p, int64_t tile) {
  const SavedLayout& m = p.saved.layout;
  const int64_t width = m.tile_width(tile);
  return {p.saved.template plane<const T>(m.line_offset(tile, 0)), width, width};
}

template <class T, class A, class Warp>
RAD_DEVICE void coded_product(const RowsParams<T>& p, const gemm::Steps<kDepth>& steps, const Place& at, A& a,
                              Warp& warp) {
  const gemm::CodedLines<T> lines{p.saved, p.saved.key().seed(), at.tile};
  Staged<T, gemm::CodedLines<T>, Warp> b(lines, steps, at.column);
  gemm::multiply<T>(steps, p.weights.ratio, a, b, warp);
}

template <class T, Path kPath, class Warp>
RAD_DEVICE void product(const RowsParams<T>& p, const gemm::Steps<kDepth>& steps, const Place& at,
                        Warp& warp) {
  const int64_t* index = p.dy.index + at.tile * p.index_step;
  const gemm::AlignedRows<T> stored = aligned_lines(p, at.tile);
  if constexpr (kPath == Path::kStaged) {
    gemm::ListedRows<T> dy = p.dy;
    dy.index = index;
    Staged<T, gemm::ListedRows<T>, Warp> a(dy, steps, at.output);
    if (p.saved.layout.bits) return coded_product(p, steps, at, a, warp);
    const gemm::PlainLines<T> lines{stored.data, stored.cols, p.vector_lines};
    Staged<T, gemm::PlainLines<T>, Warp> b(lines, steps, at.column);
    gemm::multiply<T>(steps, p.weights.ratio, a, b, warp);
  } else {
    Copied<T, true, Warp> a(aligned_dy(p), index, steps, at.output);
    if constexpr (kPath == Path::kDecoded) return coded_product(p, steps, at, a, warp);
    Copied<T, false, Warp> b(stored, nullptr, steps, at.column);
    gemm::multiply<T>(steps, p.weights.ratio, a, b, warp);
  }
}

template <class T, Path kPath>
__global__ void __launch_bounds__(ShapeOf<kPath>::kThreads, ShapeOf<kPath>::kBlocks)
    rows_wgrad_kernel(const __grid_constant__ RowsParams<T> p) {
  ShapeOf<kPath> warp;
  const gemm::Steps<kDepth> steps(p.weights.split, p.saved.layout.lines);
  for (int64_t number = blockIdx.x; number < p.tiles.count(); number += gridDim.x) {
    const Place at = find_place(p, number, gemm::kOutputs);
    product<T, kPath>(p, steps, at, warp);
    gemm::store(
        warp, [&](int64_t) { return p.weights.alpha; }, at.output, at.feature, p.dy.m.cols, p.features,
        p.vector_dw, p.dw);
  }
}

// ---- wgmma -----------------------------------------------------------------------------------------------

template <class T, bool Listed, int Width>
using Brought = gemm::CopyLoader<T, Listed, Width, wg::kDepth, wg::kGroup>;

template <class T>
RAD_DEVICE void bring_tiles(const RowsParams<T>& p, const gemm::Steps<wg::kDepth>& steps,
                            wg::RingTurn& turn) {
  for (int64_t number = blockIdx.x; number < p.tiles.count(); number += gridDim.x) {
    const Place at = find_place(p, number, wg::kOutputs);
    const int64_t* index = p.dy.index + at.tile * p.index_step;
    Brought<T, true, wg::kOutputs> rows(aligned_dy(p), index, steps, at.output);
    Brought<T, false, gemm::kFeatures> lines(aligned_lines(p, at.tile), nullptr, steps, at.column);
    wg::bring(steps, rows, lines, turn);
  }
}

template <class T>
RAD_DEVICE void multiply_tiles(const RowsParams<T>& p, const gemm::Steps<wg::kDepth>& steps, int group,
                               wg::RingTurn& turn) {
  wg::Share share(group);
  for (int64_t number = blockIdx.x; number < p.tiles.count(); number += gridDim.x) {
    const Place at = find_place(p, number, wg::kOutputs);
    wg::multiply<T>(steps, p.weights.ratio, turn, share);
    wg::store(share, p.weights.alpha, at.output, at.feature, p.dy.m.cols, p.features, p.vector_dw, p.dw);
  }
}

template <class T>
__global__ void __launch_bounds__(wg::kThreads, 1)
    rows_wgrad_wgmma_kernel([[maybe_unused]] const __grid_constant__ RowsParams<T> p) {
#ifdef RAD_HAS_WGMMA
  CUDA_SHARED(wg::Barriers, ring);
  if (threadIdx.x == 0) wg::init(ring);
  __syncthreads();
  wg::RingTurn turn{ring};
  const gemm::Steps<wg::kDepth> steps(p.weights.split, p.saved.layout.lines);
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / wg::kGroup, 0);  // one for the compiler
  if (group == 0)
    bring_tiles(p, steps, turn);
  else
    multiply_tiles(p, steps, group - 1, turn);
#endif
}

// ---- launches --------------------------------------------------------------------------------------------

template <class T>
int launch_wgmma(RowsParams<T> params, void* stream) {
  params.tiles = gemm::Tiles(params.dy.m.cols, params.features, wg::kOutputs);
  return launch(rows_wgrad_wgmma_kernel<T>,
                {dim3(blocks_for(params.tiles.count(), 1, multiprocessors())), dim3(wg::kThreads),
                 wg::kSharedBytes, stream},
                params);
}

template <class T, Path kPath>
int launch_path(const RowsParams<T>& params, void* stream) {
  using Warp = ShapeOf<kPath>;
  const int64_t resident = int64_t{multiprocessors()} * Warp::kBlocks;
  return launch(
      rows_wgrad_kernel<T, kPath>,
      {dim3(blocks_for(params.tiles.count(), 1, resident)), dim3(Warp::kThreads), gemm::kSharedBytes, stream},
      params);
}

template <class T>
RowsParams<T> rows_params(const RowsWgradArgs& args, const SavedView& saved) {
  const SavedLayout& layout = saved.layout;
  const gemm::Tiles tiles(args.dy.cols, args.features);
  const bool by_norm = args.spec.draw == Draw::kNorm;
  const float* weight = by_norm ? saved.plane<const float>(layout.weight) : nullptr;
  const bool vector_lines = aligned(args.saved, kVectorBytes) && layout.width % kPerVector<T> == 0 &&
                            layout.last_width % kPerVector<T> == 0;
  return {{args.dy, args.index, weight, rows_aligned(args.dy, layout.item, kVectorBytes)},
          saved,
          row_weights(plan_sample(args.spec, args.dy.rows)),
          tiles,
          args.features,
          layout.tiles > 1 ? layout.lines : 0,
          static_cast<T*>(args.dw),
          vector_lines,
          aligned(args.dw, kVectorBytes) && args.features % kPerVector<T> == 0};
}

// The one place that chooses.
template <class T>
Path path_of(const RowsWgradArgs& args, const RowsParams<T>& p) {
  const SavedLayout& layout = p.saved.layout;
  const MatrixView& dy = p.dy.m;
  const bool near = dy.rows <= INT32_MAX && dy.stride[2] <= INT32_MAX && layout.width <= INT32_MAX;
  const bool copied = near && p.dy.aligned && !p.dy.weight && dy.size[2] == dy.rows;
  if (!copied || (!layout.bits && !p.vector_lines)) return Path::kStaged;
  if (layout.bits) return Path::kDecoded;
  const bool wgmma = layout.lines > 0 && !args.portable && wgmma_available<rows_wgrad_wgmma_kernel<T>>();
  return wgmma ? Path::kWgmma : Path::kCopied;
}

template <class T>
int launch_rows(const RowsWgradArgs& args, const SavedView& saved) {
  const RowsParams<T> params = rows_params<T>(args, saved);
  void* stream = args.exec.stream;
  switch (path_of(args, params)) {
    case Path::kCopied:
      return launch_path<T, Path::kCopied>(params, stream);
    case Path::kDecoded:
      return launch_path<T, Path::kDecoded>(params, stream);
    case Path::kStaged:
      return launch_path<T, Path::kStaged>(params, stream);
    case Path::kWgmma:
      return launch_wgmma(params, stream);
  }
  return kInvalidValue;
}

}  // namespace

int rows_wgrad(const RowsWgradArgs& args) {
  if (args.dy.cols == 0 || args.features == 0) return 0;
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  switch (args.dtype) {
    case DType::kBF16:
      return launch_rows<bf16>(args, saved);
    case DType::kF16:
      return launch_rows<f16>(args, saved);
    default:
      return kInvalidValue;
  }
}

bool rows_wgrad_has_wgmma(const RowsWgradArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  if (args.dtype == DType::kBF16) return path_of(args, rows_params<bf16>(args, saved)) == Path::kWgmma;
  if (args.dtype == DType::kF16) return path_of(args, rows_params<f16>(args, saved)) == Path::kWgmma;
  return false;
}

}  // namespace rad::cuda

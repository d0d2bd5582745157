// dW of `rows` and `tile_rows` on tensor cores: the kept rows of dy are gathered and the stored lines decoded
// on their way into shared memory, so that neither exists a second time.
#include "cuda/gemm/mma.cuh"
#include "cuda/gemm/sources.cuh"

namespace rad::cuda {
namespace {

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
  const SavedLayout& m = p.saved.layout;
  const int64_t* index = p.dy.index + at.tile * p.index_step;
  const T* stored = p.saved.template plane<const T>(m.line_offset(at.tile, 0));
  const int64_t width = m.tile_width(at.tile);
  if constexpr (kPath == Path::kStaged) {
    gemm::ListedRows<T> dy = p.dy;
    dy.index = index;
    Staged<T, gemm::ListedRows<T>, Warp> a(dy, steps, at.output);
    if (m.bits) return coded_product(p, steps, at, a, warp);
    const gemm::PlainLines<T> lines{stored, width, p.vector_lines};
    Staged<T, gemm::PlainLines<T>, Warp> b(lines, steps, at.column);
    gemm::multiply<T>(steps, p.weights.ratio, a, b, warp);
  } else {
    const gemm::AlignedRows<T> dy{static_cast<const T*>(p.dy.m.data), p.dy.m.stride[2], p.dy.m.cols};
    Copied<T, true, Warp> a(dy, index, steps, at.output);
    if constexpr (kPath == Path::kDecoded) return coded_product(p, steps, at, a, warp);
    Copied<T, false, Warp> b({stored, width, width}, nullptr, steps, at.column);
    gemm::multiply<T>(steps, p.weights.ratio, a, b, warp);
  }
}

template <class T, Path kPath>
__global__ void __launch_bounds__(ShapeOf<kPath>::kThreads, ShapeOf<kPath>::kBlocks)
    rows_wgrad_kernel(const __grid_constant__ RowsParams<T> p) {
  ShapeOf<kPath> warp;
  const gemm::Steps<kDepth> steps(p.weights.split, p.saved.layout.lines);
  const bool tiled = p.saved.layout.tiles > 1;
  for (int64_t number = blockIdx.x; number < p.tiles.count(); number += gridDim.x) {
    int64_t o, f;
    p.tiles.find(number, o, f);
    const Place at{o * gemm::kOutputs, f * gemm::kFeatures, tiled ? f : 0, tiled ? 0 : f * gemm::kFeatures};
    product<T, kPath>(p, steps, at, warp);
    gemm::store(
        warp, [&](int64_t) { return p.weights.alpha; }, at.output, at.feature, p.dy.m.cols, p.features,
        p.vector_dw, p.dw);
  }
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
int launch_rows(const RowsWgradArgs& args, const SavedView& saved) {
  const SavedLayout& layout = saved.layout;
  const gemm::Tiles tiles(args.dy.cols, args.features);
  const bool by_norm = args.spec.draw == Draw::kNorm;
  const float* weight = by_norm ? saved.plane<const float>(layout.weight) : nullptr;
  const MatrixView& dy = args.dy;
  const bool vector_dy = rows_aligned(dy, layout.item, kVectorBytes);
  const bool copied = vector_dy && !weight && dy.size[2] == dy.rows && dy.rows <= INT32_MAX;
  const bool vector_lines = aligned(args.saved, kVectorBytes) && layout.width % kPerVector<T> == 0 &&
                            layout.last_width % kPerVector<T> == 0;
  const RowsParams<T> params{{args.dy, args.index, weight, vector_dy},
                             saved,
                             row_weights(plan_sample(args.spec, args.dy.rows)),
                             tiles,
                             args.features,
                             layout.tiles > 1 ? layout.lines : 0,
                             static_cast<T*>(args.dw),
                             vector_lines,
                             aligned(args.dw, kVectorBytes) && args.features % kPerVector<T> == 0};
  void* stream = args.exec.stream;
  if (!copied || (!layout.bits && !vector_lines)) return launch_path<T, Path::kStaged>(params, stream);
  return layout.bits ? launch_path<T, Path::kDecoded>(params, stream)
                     : launch_path<T, Path::kCopied>(params, stream);
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

}  // namespace rad::cuda

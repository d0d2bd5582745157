#include "ops/wgrad.h"

#include <algorithm>

#include "ops/blocks.h"
#include "ops/project.h"

namespace rad::ops {
namespace {

// How the sample weighs its entries: scale[0] before `split`, scale[1] from there on.
struct Weights {
  int64_t split;
  double scale[2];
};
constexpr Weights kUnweighted{0, {1, 1}};

Weights weights_of(const Sampler& sampler) {
  const int64_t k = sampler.k(), split = sampler.draw == Draw::kStratified ? sampler.strata.longer : 0;
  return {split, {sampler.weight<double>(0), sampler.weight<double>(k - 1)}};
}

// The kept rows of dy for one tile of features.
struct KeptRows {
  const Matrix& dy;
  const Saved& saved;
  Tensor index;

  Tensor gather(int64_t begin, int64_t end, bool widen, const Weights& weights) const {
    const Execution run(dy.owner);
    const DType dtype = saved.dtype();
    Tensor out = empty_like_device(dy.owner, {end - begin, dy.view.cols},
                                   widen ? ScalarType::Float : scalar_type_of(dtype));
    const float* list = saved.weights();
    check_status(dy.owner,
                 backend_of(dy.owner).gather({run.exec(),
                                              dtype,
                                              widen,
                                              dy.view,
                                              index.const_data_ptr<int64_t>() + begin,
                                              end - begin,
                                              weights.split - begin,
                                              {weights.scale[0], weights.scale[1]},
                                              list ? list + begin : nullptr,
                                              out.mutable_data_ptr()}),
                 "gather");
    return out;
  }
};

// Two tensor-core products, each summed in fp32: scale[0] * A + scale[1] * B, rounded once.
Tensor two_products(const KeptRows& rows, int64_t tile, const Weights& weights) {
  const auto product = [&](int64_t begin, int64_t end) {
    return mm_fp32(transposed(rows.gather(begin, end, false, kUnweighted)),
                   rows.saved.lines(tile, begin, end, false));
  };
  const Tensor head = product(0, weights.split), tail = product(weights.split, rows.saved.layout().lines);
  // The stable ABI's only scaled sum is a - alpha * b.
  const Tensor sum = torch::stable::subtract(tail, head, -weights.scale[0] / weights.scale[1]);
  return torch::stable::subtract(sum, sum, 1 - weights.scale[1]);
}

// Whether 16-bit products are summed in fp32 tensors because more than one makes the result.
bool sums_widened(const Matrix& dy, const Saved& saved, int64_t block, bool uneven) {
  return item_size(saved.dtype()) == 2 && !dy.owner.is_cuda() && (uneven || block < saved.layout().lines);
}

// dW[:, tile] = sum_i weight_i * dy[index_i]^T x_i. Uneven weights ride in the gathered dy, which is then
// fp32 or wider (16-bit types on a GPU: one product per weight instead); even ones in the product's alpha.
void add_tile(Tensor& dw, const KeptRows& rows, int64_t tile, int64_t block, bool widen) {
  const Saved& saved = rows.saved;
  const int64_t k = saved.layout().lines;
  Weights weights = weights_of(saved.sampler());
  const bool uneven = weights.split > 0, listed = saved.weights() != nullptr;
  if (uneven && item_size(saved.dtype()) == 2 && dw.is_cuda()) {
    torch::stable::copy_(dw, two_products(rows, tile, weights));
    return;
  }
  const double alpha = uneven || listed ? 1.0 : weights.scale[1];
  if (!uneven) weights = kUnweighted;
  for (int64_t begin = 0; begin < k; begin += block) {
    const int64_t end = std::min(begin + block, k);
    const Tensor kept_dy = rows.gather(begin, end, widen, weights);
    addmm(dw, transposed(kept_dy), saved.lines(tile, begin, end, widen), begin == 0 ? 0.0 : 1.0, alpha);
  }
}

// dy gathered first, then the BLAS: every tile of features with its own kept rows.
Tensor gathered_wgrad(const Matrix& dy, const Saved& saved) {
  const SavedLayout& layout = saved.layout();
  const bool uneven = saved.weights() || weights_of(saved.sampler()).split > 0;
  const int64_t widest = std::max(dy.view.cols, layout.width) * std::max<int64_t>(layout.item, 4);
  const int64_t block = dy.owner.is_cuda() ? layout.lines : block_of(kBlockBytes, widest);
  const bool widen = sums_widened(dy, saved, block, uneven);
  const ScalarType type = scalar_type_of(saved.dtype());
  Tensor dw = empty_like_device(dy.owner, {dy.view.cols, saved.features()}, widen ? ScalarType::Float : type);
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    Tensor columns = torch::stable::narrow(dw, 1, tile * kTileWidth, layout.tile_width(tile));
    add_tile(columns, {dy, saved, saved.sample(tile)}, tile, block, widen);
  }
  return widen ? torch::stable::to(dw, type) : dw;
}

Tensor fused_wgrad(const Matrix& dy, const Saved& saved) {
  const Execution run(dy.owner);
  Tensor dw = empty_like_device(dy.owner, {dy.view.cols, saved.features()}, scalar_type_of(saved.dtype()));
  const Tensor index = saved.sample(0, saved.layout().tiles);
  check_status(
      dy.owner,
      backend_of(dy.owner).rows_wgrad({run.exec(), saved.spec(), saved.dtype(), dy.view, saved.features(),
                                       saved.data(), index.const_data_ptr<int64_t>(), dw.mutable_data_ptr()}),
      "rows_wgrad");
  return dw;
}

// Of the BLAS's speed, what the fused kernel is taken to reach: NOT measured (docs/kernels.md).
double share_of_blas(const Matrix& dy, const Saved& saved) {
  constexpr double kWgmma = 0.85, kMmaSync = 0.6;  // mma.sync on sm_90, the worst case
  const Execution run(dy.owner);
  return backend_of(dy.owner).rows_wgrad_has_wgmma({run.exec(), saved.spec(), saved.dtype(), dy.view,
                                                    saved.features(), saved.data(), nullptr, nullptr})
             ? kWgmma
             : kMmaSync;
}

// Whether the fused kernel should take less time than gathering and the BLAS. From arithmetic, NOT measured
// (docs/kernels.md): in units of the time of one FLOP of the BLAS, the kernel pays for tensor cores that it
// keeps less busy, the other way for what it moves through memory beyond the product's own operands.
bool fused_pays(const Matrix& dy, const Saved& saved) {
  constexpr double kFlopsPerByte = 183;  // an H200: 788 TFLOP/s in bf16 over 4.3 TB/s
  constexpr double kPieces = 38 - 2;     // bytes of two fp32 products joined, beyond those of dW itself
  const SavedLayout& m = saved.layout();
  const auto outputs = static_cast<double>(dy.view.cols), features = static_cast<double>(saved.features()),
             k = static_cast<double>(m.lines), tiles = static_cast<double>(m.tiles);
  const bool uneven = weights_of(saved.sampler()).split > 0;
  const double written_and_read = 2 * 2;
  const double bytes = written_and_read * k * (outputs * tiles + (m.bits ? features : 0)) +
                       (uneven ? kPieces * outputs * features : 0);
  return 2 * k * outputs * features * (1 / share_of_blas(dy, saved) - 1) < kFlopsPerByte * bytes;
}

// dy^T @ stored for samplings that keep every row. `outputs` [first, last) of dy; `alpha` per side of
// `split`.
struct Product {
  Tensor dy_t;  // [outputs, rows]
  const Saved& saved;
  int64_t block;  // rows at a time
  bool widen;

  Product(const Tensor& dy, const Saved& saved_)
      : dy_t(transposed(torch::stable::reshape(dy, {-1, dy.size(dy.dim() - 1)}))),
        saved(saved_),
        block(saved_.layout().lines) {
    // Plain values are used where they lie; only codes need a decoded copy, and so pieces.
    const SavedLayout& layout = saved.layout();
    if (layout.bits && !dy.is_cuda())
      block = block_of(kBlockBytes, layout.width * std::max<int64_t>(layout.item, 4));
    widen = layout.item == 2 && block < layout.lines;
  }

  ScalarType type() const { return widen ? ScalarType::Float : scalar_type_of(saved.dtype()); }

  // out [last - first, k] = weights.scale * dy_t[first:last] @ stored, each side of the split with its own.
  void run(Tensor& out, int64_t first, int64_t last, const Weights& weights) {
    const int64_t rows = saved.layout().lines, k = saved.layout().width;
    for (int64_t begin = 0; begin < rows; begin += block) {
      const int64_t end = std::min(begin + block, rows);
      Tensor part = torch::stable::narrow(dy_t, 0, first, last - first);
      part = torch::stable::narrow(part, 1, begin, end - begin);
      if (widen) part = torch::stable::to(part, ScalarType::Float);
      Tensor lines = saved.lines(0, begin, end, widen);
      const int64_t cuts[3] = {0, weights.split, k};
      for (int side = 0; side < 2; ++side) {
        if (cuts[side] == cuts[side + 1]) continue;
        Tensor target = torch::stable::narrow(out, 1, cuts[side], cuts[side + 1] - cuts[side]);
        addmm(target, part, torch::stable::narrow(lines, 1, cuts[side], cuts[side + 1] - cuts[side]),
              begin == 0 ? 0.0 : 1.0, weights.scale[side]);
      }
    }
  }
};

// dW[:, index] = dy^T @ stored, a block of outputs at a time. 16-bit products carry their weight in alpha, so
// that they are rounded once; wider ones take it while they are scattered and need no second product.
Tensor same_wgrad(const Tensor& dy, const Saved& saved) {
  Product product(dy, saved);
  const int64_t outputs = dy.size(dy.dim() - 1), k = saved.layout().width, features = saved.features();
  const DType sum_type = product.widen ? DType::kF32 : saved.dtype();
  const int64_t item = item_size(sum_type);
  const bool one_block = dy.is_cuda() || saved.layout().bits;
  const int64_t block = one_block ? outputs : block_of(kProductBytes, k * item);
  const Weights weights = weights_of(saved.sampler());
  const bool in_alpha = item == 2;
  const Tensor index = saved.sample(0);
  Tensor dw = empty_like_device(dy, {outputs, features}, product.type());
  Tensor buffer = empty_like_device(dy, {std::min(block, outputs), k}, product.type());
  const Execution run(dy);
  ScatterArgs place{run.exec(),
                    sum_type,
                    0,
                    k,
                    features,
                    nullptr,
                    index.const_data_ptr<int64_t>(),
                    weights.split,
                    {in_alpha ? 1.0 : weights.scale[0], in_alpha ? 1.0 : weights.scale[1]},
                    nullptr};
  for (int64_t o = 0; o < outputs; o += block) {
    place.rows = std::min(block, outputs - o);
    Tensor part = torch::stable::narrow(buffer, 0, 0, place.rows);
    product.run(part, o, o + place.rows, in_alpha ? weights : kUnweighted);
    place.packed = part.const_data_ptr();
    place.out = static_cast<char*>(dw.mutable_data_ptr()) + o * features * item;
    check_status(dy, backend_of(dy).scatter(place), "scatter");
  }
  return product.widen ? torch::stable::to(dw, scalar_type_of(saved.dtype())) : dw;
}

Tensor project_wgrad(const Tensor& dy, const Saved& saved) {
  Product product(dy, saved);
  Tensor sums = empty_like_device(dy, {dy.size(dy.dim() - 1), saved.layout().width}, product.type());
  product.run(sums, 0, sums.size(0), kUnweighted);
  const Tensor dw = projected_back(sums, saved);
  return product.widen ? torch::stable::to(dw, scalar_type_of(saved.dtype())) : dw;
}

Tensor different_wgrad(const Matrix& dy, const Saved& saved) {
  const Execution run(dy.owner);
  const Backend& backend = backend_of(dy.owner);
  Tensor dw = empty_like_device(dy.owner, {dy.view.cols, saved.features()}, scalar_type_of(saved.dtype()));
  LinearWgradArgs args{run.exec(),       saved.spec(), saved.dtype(),         dy.view,
                       saved.features(), saved.data(), dw.mutable_data_ptr(), nullptr};
  const Tensor workspace = scratch(dy.owner, backend.linear_wgrad_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(dy.owner, backend.linear_wgrad(args), "linear_wgrad");
  return dw;
}

// keep = 1: every value is stored, so dy needs no gathering.
Tensor stored_wgrad(const Tensor& dy, const Saved& saved) {
  Product product(dy, saved);
  Tensor dw = empty_like_device(dy, {dy.size(dy.dim() - 1), saved.features()}, product.type());
  product.run(dw, 0, dw.size(0), kUnweighted);
  return product.widen ? torch::stable::to(dw, scalar_type_of(saved.dtype())) : dw;
}

// `rows` and `tile_rows`. The one place that decides which way they go.
Tensor rows_wgrad(const Matrix& dy, const Saved& saved, RowsPath path) {
  const bool possible = item_size(saved.dtype()) == 2;
  RAD_CHECK(possible || path != RowsPath::kFused, "linear_wgrad: the fused path takes bf16 and fp16 alone");
  if (path == RowsPath::kChosen)
    path = possible && dy.owner.is_cuda() && fused_pays(dy, saved) ? RowsPath::kFused : RowsPath::kGathered;
  return path == RowsPath::kFused ? fused_wgrad(dy, saved) : gathered_wgrad(dy, saved);
}

}  // namespace

Tensor sampled_wgrad(const Tensor& dy, const Saved& saved, RowsPath path) {
  const SketchSpec& spec = saved.spec();
  if (spec.num == spec.den && spec.sampling == Sampling::kRows && spec.draw == Draw::kStratified) {
    return stored_wgrad(dy, saved);
  }
  switch (spec.sampling) {
    case Sampling::kRows:
    case Sampling::kTileRows:
      return rows_wgrad(as_matrix(dy), saved, path);
    case Sampling::kSame:
      return same_wgrad(dy, saved);
    case Sampling::kDifferent:
      return different_wgrad(as_matrix(dy), saved);
    case Sampling::kProject:
      return project_wgrad(dy, saved);
  }
  RAD_CHECK(false, "linear_wgrad: unknown sampling");
}

}  // namespace rad::ops

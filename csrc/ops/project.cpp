#include "ops/project.h"

#include "core/signs.h"
#include "ops/blocks.h"

namespace rad::ops {
namespace {

double back_scale(int64_t k) { return 1 / (static_cast<double>(k) * project_scale(k)); }

// x R or x R^T by the fast transform.
Tensor transform(const Tensor& x, const Saved& saved, bool transposed, double scale) {
  const Matrix matrix = as_matrix(x);
  const int64_t cols = transposed ? saved.features() : saved.layout().width;
  Tensor out = empty_like_device(x, {matrix.view.rows, cols}, x.scalar_type());
  const Execution run(x);
  const Backend& backend = backend_of(x);
  HadamardArgs args{run.exec(), saved.spec(), dtype_of(x), saved.trailer(),        saved.features(),
                    transposed, matrix.view,  scale,       out.mutable_data_ptr(), nullptr};
  const Tensor workspace = scratch(x, backend.hadamard_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(x, backend.hadamard(args), "hadamard");
  return out;
}

}  // namespace

Tensor projected(const Tensor& x, const Saved& saved) {
  const int64_t rows = saved.layout().lines, features = saved.features(), k = saved.layout().width,
                item = item_size(saved.dtype());
  if (saved.spec().draw == Draw::kHadamard) return transform(x, saved, false, project_scale(k));
  Tensor matrix = torch::stable::reshape(x, {rows, features});
  Tensor out = empty_like_device(x, {rows, k}, scalar_type_of(saved.dtype()));
  // 16-bit sums are rounded once only if one product makes them.
  const int64_t block = x.is_cuda() || item == 2 ? features : block_of(kBlockBytes, k * item);
  for (int64_t begin = 0; begin < features; begin += block) {
    const int64_t end = std::min(begin + block, features);
    const Tensor part = torch::stable::narrow(matrix, 1, begin, end - begin);
    addmm(out, part, saved.signs(begin, end, saved.dtype()), begin == 0 ? 0.0 : 1.0, project_scale(k));
  }
  return out;
}

Tensor projected_back(const Tensor& sums, const Saved& saved) {
  const int64_t features = saved.features(), k = saved.layout().width;
  const DType type = dtype_of(sums);
  if (saved.spec().draw == Draw::kHadamard) return transform(sums, saved, true, back_scale(k));
  const int64_t block = sums.is_cuda() ? features : block_of(kBlockBytes, k * item_size(type));
  Tensor out = empty_like_device(sums, {sums.size(0), features}, sums.scalar_type());
  for (int64_t begin = 0; begin < features; begin += block) {
    const int64_t end = std::min(begin + block, features);
    Tensor columns = torch::stable::narrow(out, 1, begin, end - begin);
    addmm(columns, sums, transposed(saved.signs(begin, end, type)), 0.0, back_scale(k));
  }
  return out;
}

}  // namespace rad::ops

#include <tuple>

#include "ops/pack.h"
#include "ops/project.h"
#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"
#include "ops/wgrad.h"

namespace rad::ops {
namespace {

Tensor pack_op(const Tensor& x, std::vector<int64_t> spec, int64_t salt, const std::optional<Tensor>& key) {
  return pack(x, decode_spec(spec), salt, key);
}

std::tuple<Tensor, Tensor> linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  std::vector<int64_t> spec, int64_t salt, const std::optional<Tensor>& key) {
  return {aten_linear(x, weight, bias), pack(x, decode_spec(spec), salt, key)};
}

std::tuple<std::vector<Tensor>, Tensor> linear_shared(const Tensor& x, std::vector<Tensor> weights,
                                                      std::vector<std::optional<Tensor>> biases,
                                                      std::vector<int64_t> spec, int64_t salt,
                                                      const std::optional<Tensor>& key) {
  RAD_CHECK(weights.size() == biases.size(), "linear_shared: ", weights.size(), " weights but ",
            biases.size(), " biases");
  std::vector<Tensor> ys;
  for (size_t i = 0; i < weights.size(); ++i) ys.push_back(aten_linear(x, weights[i], biases[i]));
  return {std::move(ys), pack(x, decode_spec(spec), salt, key)};
}

Tensor wgrad_by(RowsPath path, const Tensor& dy, const Tensor& buffer, int64_t features,
                const std::vector<int64_t>& spec) {
  const int64_t outputs = dy.size(dy.dim() - 1), rows = outputs ? dy.numel() / outputs : 0;
  if (dy.numel() == 0 || features == 0) return torch::stable::new_zeros(dy, {outputs, features});
  return sampled_wgrad(dy, Saved(buffer, decode_spec(spec), dtype_of(dy), rows, features), path);
}

Tensor linear_wgrad(const Tensor& dy, const Tensor& buffer, int64_t features, std::vector<int64_t> spec) {
  return wgrad_by(RowsPath::kChosen, dy, buffer, features, spec);
}

Tensor rows_wgrad(const Tensor& dy, const Tensor& buffer, int64_t features, std::vector<int64_t> spec,
                  bool fused) {
  RAD_CHECK(samples_rows(decode_spec(spec).sampling), "rows_wgrad: the sampling must be rows or tile_rows");
  return wgrad_by(fused ? RowsPath::kFused : RowsPath::kGathered, dy, buffer, features, spec);
}

}  // namespace

Tensor pack(const Tensor& x, const SketchSpec& spec, int64_t salt, const std::optional<Tensor>& key) {
  check_salt(salt);
  const Matrix matrix = as_matrix(x);
  const Saved saved = Saved::create(x, spec, dtype_of(x), matrix.view.rows, matrix.view.cols, key);
  pack_into(saved, matrix, salt);
  return saved.buffer();
}

void pack_into(const Saved& saved, Matrix matrix, int64_t salt) {
  const Tensor x = matrix.owner;
  const Execution run(x);
  const Backend& backend = backend_of(x);
  const SketchSpec& spec = saved.spec();
  if (spec.sampling == Sampling::kProject) {
    Tensor slot = view_of(x, &saved.trailer()->salt, {1}, {1}, ScalarType::Long);
    torch::stable::fill_(slot, static_cast<double>(salt));
    matrix = as_matrix(projected(x, saved));
  }
  if (spec.draw == Draw::kNorm) {
    NormSampleArgs args{run.exec(),   spec,   saved.dtype(), matrix.view, static_cast<uint64_t>(salt),
                        saved.data(), nullptr};
    const Tensor workspace = scratch(x, backend.norm_sample_workspace(args));
    args.workspace = workspace.mutable_data_ptr();
    check_status(x, backend.norm_sample(args), "norm_sample");
  }
  PackArgs args{
      run.exec(),   spec,   saved.dtype(), matrix.view, saved.features(), static_cast<uint64_t>(salt),
      saved.data(), nullptr};
  const Tensor workspace = scratch(x, backend.pack_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(x, backend.pack(args), "pack");
}

void register_linear(Library& m) {
  m.impl("pack", TORCH_BOX(&pack_op));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_shared", TORCH_BOX(&linear_shared));
  m.impl("linear_wgrad", TORCH_BOX(&linear_wgrad));
  m.impl("rows_wgrad", TORCH_BOX(&rows_wgrad));
}

}  // namespace rad::ops

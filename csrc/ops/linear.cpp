#include <algorithm>
#include <array>
#include <tuple>

#include "ops/register.h"
#include "ops/saved.h"
#include "ops/tensor.h"

namespace rad::ops {
namespace {

constexpr int64_t kGatherBytes = 4 << 20;   // of dy rows that are copied at a time on the CPU
constexpr int64_t kProductBytes = 1 << 20;  // of packed dW columns that are held at a time on the CPU

Tensor pack(const Tensor& x, std::vector<int64_t> spec_numbers, int64_t salt, const std::optional<Tensor>& key) {
  const SketchSpec spec = decode_spec(spec_numbers);
  RAD_CHECK(0 <= salt && salt < int64_t{1} << 32, "salt must be in [0, 2^32), got ", salt);
  const Matrix matrix = as_matrix(x);
  const Execution run(x);
  const Saved saved = Saved::create(x, spec, dtype_of(x), matrix.view.rows, matrix.view.cols, key);
  const Backend& backend = backend_of(x);
  PackArgs args{run.exec(), spec, saved.dtype(), matrix.view, static_cast<uint64_t>(salt), saved.data(), nullptr};
  const Tensor workspace = scratch(x, backend.pack_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(x, backend.pack(args), "pack");
  return saved.buffer();
}

std::tuple<Tensor, Tensor> linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                  std::vector<int64_t> spec, int64_t salt, const std::optional<Tensor>& key) {
  return {aten_linear(x, weight, bias), pack(x, spec, salt, key)};
}

std::tuple<std::vector<Tensor>, Tensor> linear_shared(const Tensor& x, std::vector<Tensor> weights,
                                                      std::vector<std::optional<Tensor>> biases,
                                                      std::vector<int64_t> spec, int64_t salt,
                                                      const std::optional<Tensor>& key) {
  RAD_CHECK(weights.size() == biases.size(), "linear_shared: ", weights.size(), " weights but ", biases.size(),
            " biases");
  std::vector<Tensor> ys;
  for (size_t i = 0; i < weights.size(); ++i) ys.push_back(aten_linear(x, weights[i], biases[i]));
  return {std::move(ys), pack(x, spec, salt, key)};
}

// How the sample weighs its entries: scale[0] before `split`, scale[1] from there on.
struct Weights {
  int64_t split;
  double scale[2];
};

Weights weights_of(const Sampler& sampler) {
  const int64_t k = sampler.k(), split = sampler.draw == Draw::kStratified ? sampler.strata.longer : 0;
  return {split, {sampler.weight<double>(0), sampler.weight<double>(k - 1)}};
}

Tensor gather(const Matrix& source, DType dtype, const int64_t* index, int64_t begin, int64_t end, bool widen,
              const Weights& weights) {
  const Execution run(source.owner);
  Tensor out = empty_like_device(source.owner, {end - begin, source.view.cols},
                                 widen ? ScalarType::Float : scalar_type_of(dtype));
  const GatherArgs args{run.exec(),  dtype,
                        widen,       source.view,
                        index + begin, end - begin,
                        weights.split - begin, {weights.scale[0], weights.scale[1]},
                        out.mutable_data_ptr()};
  check_status(source.owner, backend_of(source.owner).gather(args), "gather");
  return out;
}

// Two tensor-core products, each summed in fp32: scale[0] * A + scale[1] * B, rounded once.
Tensor rows_wgrad_two_products(const Matrix& dy, const Saved& saved, const int64_t* index, const Weights& weights) {
  const Weights one{0, {1, 1}};
  const auto product = [&](int64_t begin, int64_t end) {
    return mm_fp32(transposed(gather(dy, saved.dtype(), index, begin, end, false, one)), saved.rows(begin, end));
  };
  const Tensor head = product(0, weights.split), tail = product(weights.split, saved.layout().stored_rows);
  // The stable ABI's only scaled sum is a - alpha * b.
  const Tensor sum = torch::stable::subtract(tail, head, -weights.scale[0] / weights.scale[1]);
  return torch::stable::to(torch::stable::subtract(sum, sum, 1 - weights.scale[1]), scalar_type_of(saved.dtype()));
}

// dW = sum_i weight_i * dy[index_i]^T x_i. 16-bit types with two weights are summed in fp32, so that dW is
// rounded once; otherwise the weight rides in the gathered dy (fp32, fp64) or in the product's alpha.
Tensor rows_wgrad(const Matrix& dy, const Saved& saved) {
  const DType dtype = saved.dtype();
  const Tensor index_list = saved.sample();
  const auto* index = index_list.const_data_ptr<int64_t>();
  const int64_t k = saved.layout().stored_rows, item = item_size(dtype);
  const bool cuda = dy.owner.is_cuda();
  Weights weights = weights_of(saved.sampler());
  const bool narrow = item == 2, uneven = weights.split > 0;
  if (cuda && narrow && uneven) return rows_wgrad_two_products(dy, saved, index, weights);
  const int64_t block = cuda ? k : std::max<int64_t>(kGatherBytes / (dy.view.cols * (narrow ? 4 : item) + 1), 1);
  const bool widen = narrow && (uneven || block < k);
  const double alpha = uneven ? 1.0 : weights.scale[1];
  if (!uneven) weights = {0, {1, 1}};
  Tensor dw = empty_like_device(dy.owner, {dy.view.cols, saved.features()},
                                widen ? ScalarType::Float : scalar_type_of(dtype));
  for (int64_t begin = 0; begin < k; begin += block) {
    const int64_t end = std::min(begin + block, k);
    const Tensor kept_dy = gather(dy, dtype, index, begin, end, widen, weights);
    Tensor kept_x = saved.rows(begin, end);
    if (widen) kept_x = torch::stable::to(kept_x, ScalarType::Float);
    addmm(dw, transposed(kept_dy), kept_x, begin == 0 ? 0.0 : 1.0, alpha);
  }
  return widen ? torch::stable::to(dw, scalar_type_of(dtype)) : dw;
}

// dW[:, index] = dy^T @ stored, a block of outputs at a time. 16-bit products carry their weight in alpha, so
// that they are rounded once; wider ones take it while they are scattered and need no second product.
Tensor same_wgrad(const Tensor& dy, const Saved& saved) {
  const DType dtype = saved.dtype();
  const int64_t outputs = dy.size(dy.dim() - 1), k = saved.layout().stored_cols;
  const Tensor matrix = torch::stable::reshape(dy, {-1, outputs});
  Tensor dy_t = transposed(matrix);
  const Tensor index = saved.sample();
  Tensor dw = empty_like_device(dy, {outputs, saved.features()}, scalar_type_of(dtype));
  const int64_t block = dy.is_cuda() ? outputs : std::max<int64_t>(kProductBytes / (k * item_size(dtype)), 1);
  Tensor product = empty_like_device(dy, {std::min(block, outputs), k}, scalar_type_of(dtype));
  const Weights weights = weights_of(saved.sampler());
  const bool in_alpha = item_size(dtype) == 2;
  ScatterArgs place{{}, dtype, 0, k, saved.features(), nullptr, index.const_data_ptr<int64_t>(), weights.split,
                    {in_alpha ? 1.0 : weights.scale[0], in_alpha ? 1.0 : weights.scale[1]}, nullptr};
  const Execution run(dy);
  place.exec = run.exec();
  for (int64_t o = 0; o < outputs; o += block) {
    place.rows = std::min(block, outputs - o);
    const Tensor part_dy = torch::stable::narrow(dy_t, 0, o, place.rows);
    Tensor part = torch::stable::narrow(product, 0, 0, place.rows);
    const int64_t cuts[3] = {0, in_alpha ? weights.split : 0, k};
    for (int side = 0; side < 2; ++side) {
      if (cuts[side] == cuts[side + 1]) continue;
      Tensor target = torch::stable::narrow(part, 1, cuts[side], cuts[side + 1] - cuts[side]);
      addmm(target, part_dy, saved.columns(cuts[side], cuts[side + 1]), 0.0, in_alpha ? weights.scale[side] : 1.0);
    }
    place.packed = part.const_data_ptr();
    place.out = static_cast<char*>(dw.mutable_data_ptr()) + o * saved.features() * item_size(dtype);
    check_status(dy, backend_of(dy).scatter(place), "scatter");
  }
  return dw;
}

Tensor different_wgrad(const Matrix& dy, const Saved& saved) {
  const Execution run(dy.owner);
  const Backend& backend = backend_of(dy.owner);
  Tensor dw = empty_like_device(dy.owner, {dy.view.cols, saved.features()}, scalar_type_of(saved.dtype()));
  LinearWgradArgs args{run.exec(),   saved.spec(), saved.dtype(),          dy.view, saved.features(),
                       saved.data(), dw.mutable_data_ptr(), nullptr};
  const Tensor workspace = scratch(dy.owner, backend.linear_wgrad_workspace(args));
  args.workspace = workspace.mutable_data_ptr();
  check_status(dy.owner, backend.linear_wgrad(args), "linear_wgrad");
  return dw;
}

// The one place that decides which path a sampled weight gradient takes.
Tensor linear_wgrad(const Tensor& dy, const Tensor& buffer, int64_t features, std::vector<int64_t> spec_numbers) {
  const SketchSpec spec = decode_spec(spec_numbers);
  const Matrix matrix = as_matrix(dy);
  const Saved saved(buffer, spec, dtype_of(dy), matrix.view.rows, features);
  if (matrix.view.rows == 0 || matrix.view.cols == 0 || features == 0) {
    return torch::stable::new_zeros(dy, {matrix.view.cols, features}, scalar_type_of(saved.dtype()));
  }
  switch (spec.sampling) {
    case Sampling::kRows:
      return rows_wgrad(matrix, saved);
    case Sampling::kSame:
      return same_wgrad(dy, saved);
    case Sampling::kDifferent:
      return different_wgrad(matrix, saved);
  }
  RAD_CHECK(false, "linear_wgrad: unknown sampling");
}

}  // namespace

void register_linear(Library& m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("linear", TORCH_BOX(&linear));
  m.impl("linear_shared", TORCH_BOX(&linear_shared));
  m.impl("linear_wgrad", TORCH_BOX(&linear_wgrad));
}

}  // namespace rad::ops

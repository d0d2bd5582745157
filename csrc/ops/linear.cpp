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

// A run of kept rows that share one weight.
struct Segment {
  int64_t begin, end;
  double weight;
};

std::vector<Segment> segments_of(const Sampler& sampler, int64_t block) {
  std::vector<Segment> segments;
  const int64_t switches[3] = {0, sampler.draw == Draw::kStratified ? sampler.strata.longer : 0, sampler.k()};
  for (int part = 0; part < 2; ++part) {
    for (int64_t begin = switches[part]; begin < switches[part + 1]; begin += block) {
      segments.push_back({begin, std::min(begin + block, switches[part + 1]), sampler.weight<double>(begin)});
    }
  }
  return segments;
}

Tensor gather(const Matrix& source, DType dtype, const int64_t* index, const Segment& part, bool widen) {
  const Execution run(source.owner);
  const int64_t count = part.end - part.begin;
  Tensor out = empty_like_device(source.owner, {count, source.view.cols},
                                 widen ? ScalarType::Float : scalar_type_of(dtype));
  check_status(source.owner,
               backend_of(source.owner)
                   .gather({run.exec(), dtype, widen, source.view, index + part.begin, count, out.mutable_data_ptr()}),
               "gather");
  return out;
}

// dW = sum over segments of weight * dy[index]^T @ stored, summed in fp32 (fp64) and rounded once.
Tensor rows_wgrad(const Matrix& dy, const Saved& saved) {
  const DType dtype = saved.dtype();
  const Tensor index = saved.sample();
  const auto* indices = index.const_data_ptr<int64_t>();
  const bool cuda = dy.owner.is_cuda(), narrow = item_size(dtype) == 2;
  const int64_t row_bytes = std::max<int64_t>(dy.view.cols * (narrow ? 4 : item_size(dtype)), 1);
  const int64_t block = cuda ? saved.layout().stored_rows : std::max<int64_t>(kGatherBytes / row_bytes, 1);
  const auto segments = segments_of(saved.sampler(), std::max<int64_t>(block, 1));
  const std::vector<int64_t> shape{dy.view.cols, saved.features()};
  if (narrow && segments.size() > 1 && cuda) {
    // At most two products. a * A + b * B = b * (B - (-a / b) * A): the stable ABI's only scaled sum.
    Tensor sum = mm_fp32(transposed(gather(dy, dtype, indices, segments[0], false)), saved.rows(segments[0].begin, segments[0].end));
    const Tensor last = mm_fp32(transposed(gather(dy, dtype, indices, segments[1], false)), saved.rows(segments[1].begin, segments[1].end));
    sum = torch::stable::subtract(last, sum, -segments[0].weight / segments[1].weight);
    return torch::stable::to(torch::stable::subtract(sum, sum, 1 - segments[1].weight), scalar_type_of(dtype));
  }
  const bool widen = narrow && segments.size() > 1;
  Tensor dw = empty_like_device(dy.owner, shape, widen ? ScalarType::Float : scalar_type_of(dtype));
  for (const Segment& part : segments) {
    const Tensor kept_dy = gather(dy, dtype, indices, part, widen);
    Tensor kept_x = saved.rows(part.begin, part.end);
    if (widen) kept_x = torch::stable::to(kept_x, ScalarType::Float);
    addmm(dw, transposed(kept_dy), kept_x, part.begin == 0 ? 0.0 : 1.0, part.weight);
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
  auto segments = segments_of(saved.sampler(), k);
  ScatterArgs place{{}, dtype, 0, k, saved.features(), nullptr, index.const_data_ptr<int64_t>(), k, {1, 1}, nullptr};
  if (item_size(dtype) > 2) {
    place.split = segments.front().end;
    place.scale[0] = segments.front().weight, place.scale[1] = segments.back().weight;
    segments = {{0, k, 1.0}};
  }
  const Execution run(dy);
  place.exec = run.exec();
  for (int64_t o = 0; o < outputs; o += block) {
    place.rows = std::min(block, outputs - o);
    const Tensor part_dy = torch::stable::narrow(dy_t, 0, o, place.rows);
    Tensor part = torch::stable::narrow(product, 0, 0, place.rows);
    for (const Segment& columns : segments) {
      Tensor target = torch::stable::narrow(part, 1, columns.begin, columns.end - columns.begin);
      addmm(target, part_dy, saved.columns(columns.begin, columns.end), 0.0, columns.weight);
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
  if (matrix.view.rows == 0 || features == 0) {
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

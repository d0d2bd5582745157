// Backward of a recurrent layer: chunks of steps in reverse. Gradients of the pre-activations live for one
// chunk, which ends in the products for the weights.
#include "ops/rnn_backward.h"

#include "ops/wgrad.h"

namespace rad::ops {
namespace {

// A sum over chunks, in fp32 for 16-bit parts, rounded once.
class Sum {
 public:
  void add(const Tensor& part) {
    if (total_) {
      total_ = torch::stable::subtract(*total_, part, -1.0);
    } else {
      total_ = is_narrow(part.scalar_type()) ? torch::stable::to(part, ScalarType::Float) : part;
    }
  }
  Tensor take(const Tensor& none, ScalarType dtype) const {
    if (!total_) return torch::stable::clone(none);
    return is_narrow(dtype) ? torch::stable::to(*total_, dtype) : *total_;
  }

 private:
  static bool is_narrow(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half; }
  std::optional<Tensor> total_;
};

Tensor rows_of(const Tensor& matrix, int64_t first, int64_t count) {
  return slice_of(matrix, 0, first, count);
}

class Direction {
 public:
  Direction(const RnnPlan& plan, int64_t number, const Tensor& saved, const Tensor& weight_hh,
            const Tensor& dh, const Tensor& dc, int64_t needs)
      : plan_(plan), number_(number), needs_(needs), saved_(saved), weight_(weight_hh), dh_(dh), dc_(dc) {
    const RnnSpec& s = plan.spec();
    const std::vector<int64_t> shape{plan.most_rows(), plan.gates() * s.hidden};
    dgates_ = empty_like_device(dh, shape, scalar_type_of(s.dtype));
    dinputs_ = s.cell == RnnCell::kGru ? empty_like_device(dh, shape, scalar_type_of(s.dtype)) : dgates_;
  }

  // Gradients of all pre-activations of a chunk, and of the states before it.
  void steps(const std::optional<Tensor>& dy, const RnnChunk& chunk) {
    const int64_t count = chunk.end - chunk.begin;
    for (int64_t i = 0; i < count; ++i) step(dy, number_ == 0 ? chunk.end - 1 - i : chunk.begin + i, chunk);
  }

  // The sums over the chunk that the parameters need; x is [rows, inputs] where it was not packed.
  void parameters(const RnnChunk& chunk, const std::optional<Tensor>& x) {
    const Tensor dgates = rows_of(*dgates_, 0, chunk.rows), dinputs = rows_of(*dinputs_, 0, chunk.rows);
    const bool separate = plan_.spec().cell == RnnCell::kGru;
    if (needs_ & kNeedsWeightHh) weight_hh.add(sampled_wgrad(dgates, plan_.h_pack(saved_, number_, chunk)));
    if (needs_ & kNeedsWeightIh) {
      weight_ih.add(x ? torch::stable::matmul(transposed(dinputs), rows_of(*x, chunk.first_row, chunk.rows))
                      : sampled_wgrad(dinputs, plan_.x_pack(saved_, chunk)));
    }
    if (needs_ & kNeedsBias) {
      bias_ih.add(column_sums(dinputs));
      bias_hh.add(separate ? column_sums(dgates) : column_sums(dinputs));
    }
  }

  Tensor dinputs(int64_t rows) const { return rows_of(*dinputs_, 0, rows); }

  Sum weight_ih, weight_hh, bias_ih, bias_hh;

 private:
  Tensor column_sums(const Tensor& matrix) const {
    const bool narrow = item_size(plan_.spec().dtype) == 2;
    const std::vector<int64_t> rows{0};
    return torch::stable::sum(matrix, rows, false,
                              narrow ? std::optional<ScalarType>(ScalarType::Float) : std::nullopt);
  }

  void step(const std::optional<Tensor>& dy, int64_t t, const RnnChunk& chunk) {
    const RnnSpec& s = plan_.spec();
    const int64_t n = plan_.rows(t), place = plan_.first_row(t) - chunk.first_row, item = item_size(s.dtype);
    const Tensor dgates = rows_of(*dgates_, place, n);
    Tensor dh = rows_of(dh_, 0, n);
    const Execution run(dh_);
    RnnBackwardArgs args{};
    args.exec = run.exec(), args.dtype = s.dtype, args.cell = s.cell, args.rows = n, args.hidden = s.hidden;
    if (dy) {
      args.dy_stride = s.directions * s.hidden;
      args.dy = static_cast<const char*>(dy->const_data_ptr()) +
                (plan_.first_row(t) * args.dy_stride + number_ * s.hidden) * item;
    }
    args.dh = dh.mutable_data_ptr(), args.dc = dc_.mutable_data_ptr(),
    args.dgates = dgates.mutable_data_ptr();
    args.dinputs = static_cast<char*>(dinputs_->mutable_data_ptr()) + place * plan_.gates() * s.hidden * item;
    args.factors = plan_.factors(saved_, number_, t);
    check_status(dh_, backend_of(dh_).rnn_backward(args), "rnn_backward");
    addmm(dh, dgates, weight_, s.cell == RnnCell::kGru ? 1.0 : 0.0, 1.0);
  }

  const RnnPlan& plan_;
  const int64_t number_, needs_;
  const Tensor& saved_;
  const Tensor weight_, dh_, dc_;
  std::optional<Tensor> dgates_, dinputs_;
};

}  // namespace

std::vector<Tensor> rnn_backward(const std::optional<Tensor>& dy, const std::optional<Tensor>& dh,
                                 const std::optional<Tensor>& dc, const Tensor& saved,
                                 const std::optional<Tensor>& x, std::vector<Tensor> weights_ih,
                                 std::vector<Tensor> weights_hh, std::vector<int64_t> sizes,
                                 std::vector<int64_t> batch_sizes, int64_t cell, std::vector<int64_t> spec_x,
                                 std::vector<int64_t> spec_h, int64_t bits, int64_t needs) {
  RAD_CHECK(!weights_hh.empty(), "rnn_backward: no weights");
  const Tensor& like = weights_hh[0];
  const RnnPlan plan(decode_rnn(sizes, batch_sizes, cell, dtype_of(like), spec_x, spec_h, bits));
  const RnnSpec& s = plan.spec();
  plan.check(saved);
  RAD_CHECK(!(needs & kNeedsWeightIh) || x.has_value() != s.x.has_value(),
            "rnn_backward: x is for a layer whose spec_x is empty");
  const ScalarType type = scalar_type_of(s.dtype);
  const Tensor none = empty_like_device(like, {0}, type);
  const auto state = [&](const std::optional<Tensor>& given) {
    return given ? torch::stable::clone(torch::stable::contiguous(*given))
                 : torch::stable::new_zeros(like, {s.directions, s.batch, s.hidden});
  };
  const bool lstm = s.cell == RnnCell::kLstm, packed = !s.batch_sizes.empty();
  const Tensor dh_0 = state(dh), dc_0 = lstm ? state(dc) : torch::stable::clone(none);
  std::optional<Tensor> dense_dy, flat_x;
  if (dy) dense_dy = torch::stable::contiguous(*dy);
  if (x) flat_x = torch::stable::reshape(*x, {plan.total_rows(), s.inputs});
  Tensor dx = torch::stable::clone(none);
  if (needs & kNeedsX) {
    dx = packed ? empty_like_device(like, {plan.total_rows(), s.inputs}, type)
                : empty_like_device(like, {s.steps, s.batch, s.inputs}, type);
  }
  const Tensor flat_dx = needs & kNeedsX ? torch::stable::reshape(dx, {plan.total_rows(), s.inputs}) : dx;
  std::vector<Tensor> result{dx, dh_0, dc_0};
  for (int64_t d = 0; d < s.directions; ++d) {
    Direction direction(plan, d, saved, weights_hh[d], torch::stable::select(dh_0, 0, d),
                        lstm ? torch::stable::select(dc_0, 0, d) : dc_0, needs);
    const auto count = static_cast<int64_t>(plan.chunks().size());
    for (int64_t j = 0; j < count; ++j) {
      const RnnChunk& chunk = plan.chunks()[d == 0 ? count - 1 - j : j];
      direction.steps(dense_dy, chunk);
      direction.parameters(chunk, flat_x);
      if (needs & kNeedsX) {
        Tensor rows = rows_of(flat_dx, chunk.first_row, chunk.rows);
        addmm(rows, direction.dinputs(chunk.rows), weights_ih[d], d == 0 ? 0.0 : 1.0, 1.0);
      }
    }
    for (const Sum* sum :
         {&direction.weight_ih, &direction.weight_hh, &direction.bias_ih, &direction.bias_hh})
      result.push_back(sum->take(none, type));
  }
  return result;
}

}  // namespace rad::ops

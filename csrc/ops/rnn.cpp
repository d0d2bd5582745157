// Forward of a recurrent layer: torch's products and transcendental functions, step by step; what backward
// needs is packed a chunk of steps at a time, so that no sequence of hidden states lives longer than its
// chunk.
#include <tuple>

#include "ops/pack.h"
#include "ops/register.h"
#include "ops/rnn_backward.h"

namespace rad::ops {
namespace {

Tensor columns(const Tensor& matrix, int64_t part, int64_t width) {
  return slice_of(matrix, 1, part * width, width);
}

// Rows of a [steps, batch, ...] or, packed, [rows, ...] tensor that belong to a chunk.
Tensor chunk_of(const Tensor& x, const RnnChunk& chunk) {
  return x.dim() == 3 ? slice_of(x, 0, chunk.begin, chunk.end - chunk.begin)
                      : slice_of(x, 0, chunk.first_row, chunk.rows);
}

struct Parameters {
  const Tensor &weight_ih, &weight_hh;
  std::optional<Tensor> bias_ih, bias_hh;
};

// One direction of the layer.
class Direction {
 public:
  Direction(const RnnPlan& plan, int64_t number, const Tensor& saved, Parameters parameters, const Tensor& h,
            const Tensor& c, const Tensor& y)
      : plan_(plan), number_(number), saved_(saved), parameters_(std::move(parameters)), h_(h), c_(c), y_(y) {
    const RnnSpec& s = plan.spec();
    if (s.h) kept_ = empty_like_device(h, {plan.most_rows(), s.hidden}, scalar_type_of(s.dtype));
  }

  void run(const Tensor& x, const RnnChunk& chunk, int64_t salt) {
    const RnnSpec& s = plan_.spec();
    const int64_t width = plan_.gates() * s.hidden;
    Tensor inputs = aten_linear(chunk_of(x, chunk), parameters_.weight_ih, parameters_.bias_ih);
    inputs = torch::stable::contiguous(torch::stable::reshape(inputs, {chunk.rows, width}));
    const int64_t count = chunk.end - chunk.begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = number_ == 0 ? chunk.begin + i : chunk.end - 1 - i;
      step(t, slice_of(inputs, 0, plan_.first_row(t) - chunk.first_row, plan_.rows(t)), chunk);
    }
    if (s.h)
      pack_into(plan_.h_pack(saved_, number_, chunk), as_matrix(slice_of(*kept_, 0, 0, chunk.rows)), salt);
  }

 private:
  void step(int64_t t, const Tensor& inputs, const RnnChunk& chunk) {
    const RnnSpec& s = plan_.spec();
    const int64_t n = plan_.rows(t);
    const Tensor gates = torch::stable::contiguous(
        aten_linear(slice_of(h_, 0, 0, n), parameters_.weight_hh, parameters_.bias_hh));
    const int64_t item = item_size(s.dtype);
    RnnForwardArgs args{};
    args.dtype = s.dtype, args.cell = s.cell, args.rows = n, args.hidden = s.hidden;
    args.gates = gates.mutable_data_ptr(), args.inputs = inputs.mutable_data_ptr();
    args.h = h_.mutable_data_ptr(), args.c = c_.mutable_data_ptr();
    if (kept_)
      args.kept = static_cast<char*>(kept_->mutable_data_ptr()) +
                  (plan_.first_row(t) - chunk.first_row) * s.hidden * item;
    if (y_.numel()) {
      args.y_stride = s.directions * s.hidden;
      args.y = static_cast<char*>(y_.mutable_data_ptr()) +
               (plan_.first_row(t) * args.y_stride + number_ * s.hidden) * item;
    }
    args.factors = plan_.factors(saved_, number_, t);
    advance(args, gates, inputs);
  }

  // The stages of contract/rnn.h. Slices have torch's own shapes, whose vectors and remainders may round
  // apart.
  void advance(RnnForwardArgs& args, const Tensor& gates, const Tensor& inputs) const {
    const int64_t hidden = args.hidden;
    stage(args, 0);
    if (args.cell == RnnCell::kTanh) {
      tanh_(gates);
      stage(args, 1);
    } else if (args.cell == RnnCell::kLstm) {
      for (const int gate : {0, 1, 3}) sigmoid_(columns(gates, gate, hidden));
      tanh_(columns(gates, 2, hidden));
      stage(args, 1);
      const Tensor tanh_c = tanh(slice_of(c_, 0, 0, args.rows));
      args.tanh_c = tanh_c.const_data_ptr();
      stage(args, 2);
    } else if (args.cell == RnnCell::kGru) {
      for (const int gate : {0, 1}) sigmoid_(columns(gates, gate, hidden));
      stage(args, 1);
      tanh_(columns(inputs, 2, hidden));
      stage(args, 2);
    }
  }

  void stage(RnnForwardArgs& args, int32_t number) const {
    const Execution run(h_);
    args.exec = run.exec(), args.stage = number;
    check_status(h_, backend_of(h_).rnn_forward(args), "rnn_forward");
  }

  const RnnPlan& plan_;
  const int64_t number_;
  const Tensor& saved_;
  const Parameters parameters_;
  const Tensor h_, c_, y_;
  std::optional<Tensor> kept_;
};

std::optional<Tensor> at_or_none(const std::vector<Tensor>& tensors, size_t i) {
  return i < tensors.size() ? std::optional<Tensor>(tensors[i]) : std::nullopt;
}

std::vector<int64_t> sizes_of(const Tensor& x, const Tensor& h, const std::vector<int64_t>& batch_sizes) {
  const int64_t steps = x.dim() == 3 ? x.size(0) : static_cast<int64_t>(batch_sizes.size());
  return {steps, h.size(1), x.size(x.dim() - 1), h.size(2), h.size(0)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rnn(const Tensor& x, const Tensor& h,
                                               const std::optional<Tensor>& c, std::vector<Tensor> weights_ih,
                                               std::vector<Tensor> weights_hh, std::vector<Tensor> biases,
                                               std::vector<int64_t> batch_sizes, int64_t cell,
                                               std::vector<int64_t> spec_x, std::vector<int64_t> spec_h,
                                               int64_t bits, bool sequence, int64_t salt,
                                               const std::optional<Tensor>& key) {
  const RnnPlan plan(
      decode_rnn(sizes_of(x, h, batch_sizes), batch_sizes, cell, dtype_of(x), spec_x, spec_h, bits));
  const RnnSpec& s = plan.spec();
  const auto directions = static_cast<size_t>(s.directions);
  RAD_CHECK(weights_ih.size() == directions && weights_hh.size() == directions &&
                (biases.empty() || biases.size() == 2 * directions),
            "one weight_ih and weight_hh a direction, and two biases or none");
  RAD_CHECK(c.has_value() == (s.cell == RnnCell::kLstm), "an lstm has a state c, other cells have none");
  RAD_CHECK(x.dim() == 3 ? x.size(1) == s.batch : x.size(0) == plan.total_rows(), "x has other rows than h");
  const Tensor saved = plan.create(x, salt, key);
  const int64_t width = s.directions * s.hidden;
  const Tensor none = empty_like_device(x, {0}, scalar_type_of(s.dtype));
  Tensor y = !sequence      ? torch::stable::clone(none)
             : x.dim() == 3 ? empty_like_device(x, {s.steps, s.batch, width}, scalar_type_of(s.dtype))
                            : empty_like_device(x, {plan.total_rows(), width}, scalar_type_of(s.dtype));
  // Clones that become the final states.
  const Tensor h_n = torch::stable::clone(torch::stable::contiguous(h));
  const Tensor c_n = c ? torch::stable::clone(torch::stable::contiguous(*c)) : none;
  for (size_t d = 0; d < directions; ++d) {
    const auto number = static_cast<int64_t>(d);
    Direction direction(
        plan, number, saved,
        {weights_ih[d], weights_hh[d], at_or_none(biases, 2 * d), at_or_none(biases, 2 * d + 1)},
        torch::stable::select(h_n, 0, number), c ? torch::stable::select(c_n, 0, number) : none, y);
    const auto count = static_cast<int64_t>(plan.chunks().size());
    for (int64_t j = 0; j < count; ++j) {
      const RnnChunk& chunk = plan.chunks()[d == 0 ? j : count - 1 - j];
      if (d == 0 && s.x) pack_into(plan.x_pack(saved, chunk), as_matrix(chunk_of(x, chunk)), salt);
      direction.run(x, chunk, salt);
    }
  }
  return {y, h_n, c_n, saved};
}

}  // namespace

void register_rnn(Library& m) {
  m.impl("rnn", TORCH_BOX(&rnn));
  m.impl("rnn_backward", TORCH_BOX(&rnn_backward));
}

}  // namespace rad::ops

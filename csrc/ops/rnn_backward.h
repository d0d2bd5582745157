#pragma once
#include "ops/rnn_plan.h"

namespace rad::ops {

// Which gradients rnn_backward makes.
constexpr int64_t kNeedsX = 1, kNeedsWeightIh = 2, kNeedsWeightHh = 4, kNeedsBias = 8;

// [dx, dh_0, dc_0, then of each direction dW_ih, dW_hh, db_ih, db_hh]; empty where not needed.
std::vector<Tensor> rnn_backward(const std::optional<Tensor>& dy, const std::optional<Tensor>& dh,
                                 const std::optional<Tensor>& dc, const Tensor& saved,
                                 const std::optional<Tensor>& x, std::vector<Tensor> weights_ih,
                                 std::vector<Tensor> weights_hh, std::vector<int64_t> sizes,
                                 std::vector<int64_t> batch_sizes, int64_t cell, std::vector<int64_t> spec_x,
                                 std::vector<int64_t> spec_h, int64_t bits, int64_t needs);

}  // namespace rad::ops

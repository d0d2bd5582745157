// The op surface. `spec` is [num, den, sampling, draw, bits]; `saved` is the buffer that core/layout.h
// describes.
#include "ops/register.h"

STABLE_TORCH_LIBRARY(rad_kernels, m) {
  // Forward products with what backward needs. One op returns both and the key lies inside `saved`: a
  // packing op apart from its product is re-executed by graph partitioners with another key.
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, int[] spec, int salt, Tensor? key=None) -> (Tensor, Tensor)");
  m.def(
      "linear_shared(Tensor x, Tensor[] weights, Tensor?[] biases, int[] spec, int salt, Tensor? key=None) -> (Tensor[], Tensor)");
  m.def("linear_wgrad(Tensor dy, Tensor saved, SymInt features, int[] spec) -> Tensor");

  // x [images, channels, *positions] is packed as [images * positions, channels] or, by_channel, as
  // [images * channels, positions].
  m.def(
      "conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, SymInt[] padding, int[] dilation, bool transposed, SymInt[] output_padding, int groups, int[] spec, bool by_channel, int salt, Tensor? key=None) -> (Tensor, Tensor)");
  m.def(
      "conv_wgrad(Tensor dy, Tensor saved, SymInt[] x_shape, SymInt[] weight_shape, int[] stride, SymInt[] padding, int[] dilation, bool transposed, int groups, int[] spec, bool by_channel) -> Tensor");

  // A mask numbers elements in the memory order of y; `stride` tells masked that order.
  m.def("relu(Tensor x) -> (Tensor, Tensor)");
  m.def("relu_(Tensor(a!) x) -> Tensor");
  m.def("masked(Tensor dy, Tensor mask, SymInt[] stride) -> Tensor");

  // `rule` is contract/elementwise.h's; the mask has a bit for each element that the gradient passes.
  m.def("kink(Tensor x, int rule, float lo, float hi) -> Tensor");
  m.def("sloped(Tensor dy, Tensor mask, float on, float off, SymInt[] stride) -> Tensor");

  // `function` and its three parameters are contract/elementwise.h's. The first is rad_kernels/ops': torch's
  // output beside the codes that the second makes.
  m.def(
      "activation(Tensor x, int function, float[] parameters, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor)");
  m.def(
      "derivative_codes(Tensor x, int function, float[] parameters, int bits, int salt, Tensor? key=None) -> Tensor");
  m.def(
      "derivative_product(Tensor dy, Tensor saved, int function, float[] parameters, int bits, SymInt[] stride) -> Tensor");

  // act(gate) * up with codes of both factors of its gradient; implemented in rad_kernels/ops as well.
  m.def(
      "gated(Tensor gate, Tensor up, int activation, int bits, bool keep_gate, bool keep_up, int salt, Tensor? keys=None) -> (Tensor, Tensor, Tensor)");

  // A mask of x > 0 and codes of min(x, 0), none of these where bits is 0; rad_kernels/ops'.
  m.def("prelu(Tensor x, Tensor weight, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor)");

  // An element is dropped when its 32-bit word is below `threshold`; `saved` is the trailer alone.
  m.def("dropout(Tensor x, int threshold, int salt, Tensor? key=None) -> (Tensor, Tensor)");
  m.def("dropout_backward(Tensor dy, Tensor saved, int threshold, SymInt[] stride) -> Tensor");

  // The first is rad_kernels/ops': torch's log-probabilities along a dimension beside the codes of the
  // probabilities that the second makes. shape = [outer, classes, ...]; coefficients are contract/loss.h's.
  m.def("log_softmax(Tensor x, int dim, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor)");
  // Both are rad_kernels/ops'. Losses and logsumexp are of rows; x is [rows, features], `chunk` a number of
  // rows.
  m.def(
      "linear_cross_entropy(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, int ignore_index, float label_smoothing, SymInt chunk) -> (Tensor, Tensor)");
  m.def(
      "linear_cross_entropy_backward(Tensor x, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, Tensor logsumexp, Tensor scale, Tensor hit, Tensor? level, SymInt chunk, bool[] needs) -> (Tensor, Tensor, Tensor)");
  m.def("probability_codes(Tensor log_p, int bits, int salt, Tensor? key=None) -> Tensor");
  m.def(
      "cross_entropy_backward(Tensor saved, Tensor scale, Tensor? hit, Tensor? level, Tensor? class_weight, Tensor? target, SymInt[] shape, ScalarType dtype, int bits) -> Tensor");

  // One layer of a recurrent network, all its steps and directions. sizes = [steps, batch, inputs, hidden,
  // directions]; an empty spec keeps nothing of that input, empty batch_sizes mean a full batch at every
  // step.
  m.def(
      "rnn(Tensor x, Tensor h, Tensor? c, Tensor[] weights_ih, Tensor[] weights_hh, Tensor[] biases, int[] batch_sizes, int cell, int[] spec_x, int[] spec_h, int bits, bool sequence, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "rnn_backward(Tensor? dy, Tensor? dh, Tensor? dc, Tensor saved, Tensor? x, Tensor[] weights_ih, Tensor[] weights_hh, SymInt[] sizes, int[] batch_sizes, int cell, int[] spec_x, int[] spec_h, int bits, int needs) -> Tensor[]");

  // x [planes, three sizes, lanes]; geometry: windows, strides, paddings, dilations, three each.
  m.def("max_pool(Tensor x, SymInt[] output, int[] geometry) -> (Tensor, Tensor)");
  m.def("max_pool_backward(Tensor dy, Tensor codes, SymInt[] input, int[] geometry) -> Tensor");

  // Normalisations: torch's own output, codes of the normalised values in memory order and
  // 1 / deviation. batch_norm numbers elements channels last where `inner` is 1, else `inner` are a plane.
  m.def(
      "layer_norm(Tensor x, SymInt[] shape, Tensor? weight, Tensor? bias, float eps, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "rms_norm(Tensor x, SymInt[] shape, Tensor? weight, float eps, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, float momentum, float eps, SymInt inner, int bits, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor dy, Tensor saved, Tensor rstd, Tensor? weight, SymInt set, SymInt params, SymInt inner, bool by_channel, bool centred, int bits, bool input_grad, bool param_grads) -> (Tensor, Tensor, Tensor)");

  // u [batch, height, width], source [batch, modes, height, width], target [modes, height, width], clock
  // [period, modes] -> the last state, each cell's misfit, saved. An empty spec keeps nothing.
  m.def(
      "reaction_diffusion(Tensor u, Tensor source, Tensor target, Tensor clock, SymInt steps, float rate, float dt, int[] spec, int salt, Tensor? key=None) -> (Tensor, Tensor, Tensor)");
  m.def(
      "reaction_diffusion_backward(Tensor dlast, Tensor dmisfit, Tensor u, Tensor source, Tensor target, Tensor clock, Tensor saved, SymInt steps, float rate, float dt, int[] spec) -> (Tensor, Tensor)");

  // Diagnostics and benchmarks. rows_wgrad is linear_wgrad of `rows` and `tile_rows` by the path that is
  // told.
  m.def("rows_wgrad(Tensor dy, Tensor saved, SymInt features, int[] spec, bool fused) -> Tensor");
  m.def("pack(Tensor x, int[] spec, int salt, Tensor? key=None) -> Tensor");
  m.def("unpack(Tensor saved, int[] spec, SymInt rows, SymInt features, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(rad_kernels, CPU, m) {
  rad::ops::register_linear(m);
  rad::ops::register_conv(m);
  rad::ops::register_activation(m);
  rad::ops::register_loss(m);
  rad::ops::register_rnn(m);
  rad::ops::register_pool(m);
  rad::ops::register_norm(m);
  rad::ops::register_pde(m);
  rad::ops::register_diagnostics(m);
}

#ifdef RAD_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(rad_kernels, CUDA, m) {
  rad::ops::register_linear(m);
  rad::ops::register_conv(m);
  rad::ops::register_activation(m);
  rad::ops::register_loss(m);
  rad::ops::register_rnn(m);
  rad::ops::register_pool(m);
  rad::ops::register_norm(m);
  rad::ops::register_pde(m);
  rad::ops::register_diagnostics(m);
}
#endif

"""Functional layers with a sampled weight gradient, and neighbours that keep bits instead of tensors."""

from ._activation import alpha_dropout, dropout, relu
from ._checks import SketchWarning, check_bits, check_sketch, check_tensor
from ._conv import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from ._conv_checks import check_conv_sketch
from ._gated import check_gate, gated
from ._inject import inject
from ._linear import linear, shared_linear
from ._linear_loss import linear_cross_entropy
from ._loss import cross_entropy
from ._norm import batch_norm, group_norm, layer_norm, rms_norm
from ._pde import reaction_diffusion
from ._piecewise import hardshrink, hardsigmoid, hardtanh, leaky_relu, relu6, softshrink, threshold
from ._pool import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)
from ._prelu import prelu
from ._rnn import recurrent
from ._smooth import celu, elu, gelu, hardswish, logsigmoid, mish, selu, sigmoid, silu, softplus, tanh

__all__ = [
    "SketchWarning",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "alpha_dropout",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "batch_norm",
    "celu",
    "check_bits",
    "check_conv_sketch",
    "check_gate",
    "check_sketch",
    "check_tensor",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "cross_entropy",
    "dropout",
    "elu",
    "gated",
    "gelu",
    "group_norm",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "inject",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_cross_entropy",
    "logsigmoid",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "mish",
    "prelu",
    "reaction_diffusion",
    "recurrent",
    "relu",
    "relu6",
    "rms_norm",
    "selu",
    "shared_linear",
    "sigmoid",
    "silu",
    "softplus",
    "softshrink",
    "tanh",
    "threshold",
]

"""Functional layers with a sampled weight gradient, and neighbours that keep bits instead of tensors."""

from ._activation import dropout, relu
from ._checks import SketchWarning, check_sketch
from ._conv import (
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
)
from ._conv_checks import check_conv_sketch
from ._linear import linear, shared_linear

__all__ = [
    "SketchWarning",
    "check_conv_sketch",
    "check_sketch",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "dropout",
    "linear",
    "relu",
    "shared_linear",
]

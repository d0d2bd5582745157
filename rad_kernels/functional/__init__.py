"""Functional layers with a sampled weight gradient, and neighbours that keep bits instead of tensors."""

from ._activation import dropout, relu
from ._checks import SketchWarning, check_sketch
from ._linear import linear, shared_linear

__all__ = ["SketchWarning", "check_sketch", "dropout", "linear", "relu", "shared_linear"]

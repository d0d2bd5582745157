"""What a layer's sketch is taken of, and whether it can be and should be."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module

from .. import ops
from ..functional._checks import autocast_dtype
from ..functional._conv import _by_channel
from ..sketch import Sketch
from .registry import Layer

BY_FEATURES = (torch.nn.Linear, torch.nn.MultiheadAttention)
CONVOLUTIONS = (torch.nn.modules.conv._ConvNd,)


def refusal(module: Module, layer: Layer | None, sketch: Sketch) -> str:
    """Why this layer cannot take this sketch, "" if it can."""
    if isinstance(module, torch.nn.MultiheadAttention) and (
        module.bias_k is not None or module.add_zero_attn
    ):
        return "add_bias_kv and add_zero_attn are not supported"
    if isinstance(module, torch.nn.RNNBase) and module.proj_size:
        return f"proj_size={module.proj_size} is not supported"
    if layer is not None:
        try:
            layer.rad.sketch.fset(SimpleNamespace(), sketch)  # type: ignore[attr-defined]
        except ValueError as error:
            return str(error)
    return ""


def is_wasteful(module: Module, inputs: list[Tensor], sketch: Sketch) -> bool:
    """Whether the pack of every input of a layer of matrices would cost 90 % of keeping it, or more."""
    if isinstance(module, CONVOLUTIONS):
        images = [x if x.dim() == module.weight.dim() else x.unsqueeze(0) for x in inputs]
        shapes = [ops.packed_shape(x.shape, _by_channel(x.shape, sketch, autocast_dtype(x))) for x in images]
    elif isinstance(module, BY_FEATURES):
        shapes = [(x.numel() // max(x.shape[-1], 1), x.shape[-1]) for x in inputs]
    else:
        return False
    return not any(sketch.is_worthwhile(*s, autocast_dtype(x)) for s, x in zip(shapes, inputs, strict=True))

"""What a layer's sketch is taken of, and whether it can be and should be."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import Module

from ..functional._checks import autocast_dtype
from ..sketch import Sketch
from .registry import Layer

BY_FEATURES = (torch.nn.Linear, torch.nn.MultiheadAttention)


def refusal(module: Module, layer: Layer | None, sketch: Sketch) -> str:
    """Why this layer cannot take this sketch, "" if it can."""
    if isinstance(module, torch.nn.MultiheadAttention) and (
        module.bias_k is not None or module.add_zero_attn
    ):
        return "add_bias_kv and add_zero_attn are not supported"
    if layer is not None:
        try:
            layer.rad.sketch.fset(SimpleNamespace(), sketch)  # type: ignore[attr-defined]
        except ValueError as error:
            return str(error)
    return ""


def is_wasteful(module: Module, inputs: list[Tensor], sketch: Sketch) -> bool:
    """Whether the pack of every input of a layer of matrices would cost 90 % of keeping it, or more."""
    if not isinstance(module, BY_FEATURES):
        return False
    return not any(
        sketch.is_worthwhile(x.numel() // max(x.shape[-1], 1), x.shape[-1], autocast_dtype(x)) for x in inputs
    )

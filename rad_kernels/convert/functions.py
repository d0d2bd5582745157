"""Functions of torch.nn.functional that a module holds as attributes, as in ``self.activation = F.relu``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from .. import functional

ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "hardtanh", "hardsigmoid", "gelu", "silu", "mish", "tanh", "sigmoid"),
    *("logsigmoid", "softplus", "elu", "celu", "selu", "hardswish", "prelu"),
)


@cache
def _names() -> dict[object, str]:
    """Functions of torch that have a counterpart of the same name here."""
    return {getattr(F, name): name for name in ACTIVATIONS}


def takes_bits(name: str) -> bool:
    return "bits" in inspect.signature(getattr(functional, name)).parameters


class Function:
    """Takes the place of such a function: what it keeps depends on its owner's training mode."""

    def __init__(self, owner: Module, name: str, bits: int | None) -> None:
        self.owner, self.name, self.bits = owner, name, bits

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.owner.training:
            return getattr(F, self.name)(x, *args, **kwargs)
        if takes_bits(self.name):
            kwargs["bits"] = self.bits
        return getattr(functional, self.name)(x, *args, **kwargs)

    def __repr__(self) -> str:
        return f"rad_kernels.functional.{self.name}"


def held(module: Module) -> Iterator[tuple[str, str]]:
    """(attribute, name of the function) of each activation that the instance holds."""
    for attribute, value in vars(module).items():
        if callable(value) and not isinstance(value, Module | torch.nn.Parameter):
            try:
                name = _names().get(value)
            except TypeError:  # not hashable
                continue
            if name is not None:
                yield attribute, name


# Graph nodes of functions that keep full tensors -> what keeps less.
INSTEAD = {
    "ReluBackward0": "functional.relu",
    "GeluBackward0": "functional.gelu",
    "SiluBackward0": "functional.silu",
    "MishBackward0": "functional.mish",
    "TanhBackward0": "functional.tanh",
    "SigmoidBackward0": "functional.sigmoid",
    "SoftplusBackward0": "functional.softplus",
    "EluBackward0": "functional.elu",
    "HardswishBackward0": "functional.hardswish",
    "LeakyReluBackward0": "functional.leaky_relu",
    "PreluKernelBackward0": "functional.prelu",
    "NativeDropoutBackward0": "functional.dropout",
    "BernoulliBackward0": "functional.dropout",
    "MaxPool2DWithIndicesBackward0": "functional.max_pool2d",
    "AvgPool2DBackward0": "functional.avg_pool2d",
    "AdaptiveAvgPool2DBackward0": "functional.adaptive_avg_pool2d",
    "AdaptiveMaxPool2DBackward0": "functional.adaptive_max_pool2d",
    "NativeLayerNormBackward0": "functional.layer_norm",
    "NativeBatchNormBackward0": "nn.BatchNorm2d",
    "AddmmBackward0": "functional.linear",
    "MmBackward0": "functional.linear",
    "ConvolutionBackward0": "functional.conv2d",
    "LogSoftmaxBackward0": "functional.cross_entropy",
    "ScaledDotProductFlashAttentionForCpuBackward0": 'recompute="attention"',
    "ScaledDotProductFlashAttentionBackward0": 'recompute="attention"',
    "ScaledDotProductEfficientAttentionBackward0": 'recompute="attention"',
    "SoftmaxBackward0": "F.scaled_dot_product_attention",
}

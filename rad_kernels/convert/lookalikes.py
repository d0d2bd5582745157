"""Layers of other libraries that compute what one of torch does, known by their looks and a trial.

HuggingFace's models bring their own Conv1D, RMSNorm and GELUs. Their classes cannot be known here, so the
forward of the instance is replaced.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter

from .. import functional
from . import functions


class Lookalike:
    """Takes the place of an instance's forward: the same values, and less that is kept for backward.

    ``setting`` is the sketch or the bits. In eval mode the class's own forward runs, as it does on what this
    one cannot take.
    """

    def __init__(self, owner: Module, name: str, setting: Any) -> None:
        self.owner, self.name, self.setting = owner, name, setting

    def __call__(self, x: Tensor) -> Tensor:
        owner = self.owner
        weight = getattr(owner, "weight", None)
        if not owner.training or (self.name == "rms_norm" and weight is not None and weight.dtype != x.dtype):
            return type(owner).forward(owner, x)
        return _INSTEAD[self.name](owner, x, self.setting)


_INSTEAD: dict[str, Callable[[Any, Tensor, Any], Tensor]] = {
    "conv1d": lambda owner, x, sketch: functional.linear(x, owner.weight.t(), owner.bias, sketch),
    "rms_norm": lambda owner, x, bits: functional.rms_norm(
        x, owner.weight.shape, owner.weight, _eps(owner), bits
    ),
    "gelu_tanh": lambda owner, x, bits: functional.gelu(x, approximate="tanh", bits=bits),
    "gelu": lambda owner, x, bits: functional.gelu(x, bits=bits),
    "silu": lambda owner, x, bits: functional.silu(x, bits=bits),
    "mish": lambda owner, x, bits: functional.mish(x, bits=bits),
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
}
_KINDS = {"conv1d": "sketch", "rms_norm": "norm"}
_ACTIVATION_NAME = re.compile(r"GELU|SiLU|Swish|Mish", re.IGNORECASE)


def kind_of(name: str) -> str:
    """As ``Layer.kind``."""
    return _KINDS.get(name, "activation")


def known_as(module: Module) -> str:
    """The name of what the module computes, "" if it is not known."""
    cls = type(module).__name__
    if next(module.children(), None) is not None or next(module.buffers(recurse=False), None) is not None:
        return ""
    if cls == "Conv1D":
        return "conv1d" if _is_conv1d(module) else ""
    if cls.endswith("RMSNorm"):
        return "rms_norm" if _is_rms_norm(module) else ""
    if _ACTIVATION_NAME.search(cls) and not module._parameters and not any(functions.held(module)):
        return _activation_of(module)
    return ""


def _is_conv1d(module: Module) -> bool:
    weight, nf = getattr(module, "weight", None), getattr(module, "nf", None)
    return isinstance(weight, Parameter) and weight.dim() == 2 and weight.shape[1] == nf


def _eps(module: Module) -> Any:
    """transformers calls it variance_epsilon, others eps."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _is_rms_norm(module: Module) -> bool:
    """Whether it is that of torch with the same weight (some add 1 to it), on rows large and small."""
    weight = module._parameters.get("weight")
    if set(module._parameters) != {"weight"} or weight is None or weight.dim() != 1:
        return False
    if not isinstance(_eps(module), float):
        return False
    points = torch.linspace(-1.0, 2.0, 4 * weight.numel()).sin().view(4, -1)
    points = points * torch.tensor([1e-4, 1e-2, 1.0, 1e2]).unsqueeze(1)
    twin = copy.copy(module)
    twin._parameters = {"weight": Parameter(torch.linspace(-0.5, 1.5, weight.numel()))}
    return any(
        torch.allclose(y, F.rms_norm(points, (weight.numel(),), twin._parameters["weight"], _eps(module)))
        for y in _tried(twin, points)
    )


def _activation_of(module: Module) -> str:
    points = torch.linspace(-8, 8, 129)
    for y in _tried(module, points):
        for name, function in _ACTIVATIONS.items():
            # Between the tanh form and the exact one lie 5e-4, between the forms of one function 1e-6.
            if y.shape == points.shape and torch.allclose(y, function(points), rtol=0, atol=1e-5):
                return name
    return ""


def _tried(module: Module, x: Tensor) -> Iterator[Tensor]:
    """What the class's forward makes of x, if it takes a single tensor at all."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            y = type(module).forward(module, x)
        except Exception:  # whatever a foreign forward raises: it is not what it looked like
            return
    if isinstance(y, Tensor):
        yield y

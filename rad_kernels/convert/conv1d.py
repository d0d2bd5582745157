"""HuggingFace's Conv1D: a Linear whose weight is [inputs, outputs], known by its looks alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter

from .. import functional
from ..sketch import Sketch


def is_hf_conv1d(module: Module) -> bool:
    """By what it looks like: a class called Conv1D with nf and a [inputs, nf] weight."""
    if type(module).__name__ != "Conv1D":
        return False
    weight, nf = getattr(module, "weight", None), getattr(module, "nf", None)
    return isinstance(weight, Parameter) and weight.dim() == 2 and weight.shape[1] == nf


class Conv1DForward:
    """Takes the place of a Conv1D's forward: the same product, which keeps a sketch of its input."""

    def __init__(self, owner: Module, sketch: Sketch) -> None:
        self.owner, self.sketch = owner, sketch

    def __call__(self, x: Tensor) -> Tensor:
        owner: Any = self.owner
        if not owner.training:
            return type(owner).forward(owner, x)
        return functional.linear(x, owner.weight.t(), owner.bias, self.sketch)

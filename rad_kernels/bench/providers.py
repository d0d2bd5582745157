"""Whoever computes a sampled (or exact) Linear: a name, and what makes a layer of it for a case."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from .. import nn
from ..official import OfficialLinear
from ..sketch import Sketch
from .cases import LinearCase
from .limits import Work, exact_linear, sketched_linear
from .trial import BASELINE


@dataclass(frozen=True)
class Provider:
    """``make(case)`` is a float32 module on the CPU, moved afterwards; ``work`` its least effort or None."""

    name: str
    make: Callable[[LinearCase], torch.nn.Module]
    work: Callable[[LinearCase, torch.dtype], Work] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None  # None: all

    def takes(self, dtype: torch.dtype) -> bool:
        return self.dtypes is None or dtype in self.dtypes


def linear_providers(sketches: Sequence[Sketch], keep: float, peers: bool = True) -> list[Provider]:
    """torch first, then the sketches, then, as ``peers``, other ways to the same end at ``keep``."""
    exact = Provider(BASELINE, lambda case: torch.nn.Linear(case.features, case.outputs), exact_linear)
    ours = [_ours(sketch) for sketch in sketches]
    if not peers:
        return [exact, *ours]
    composed = Provider(f"index_select {keep:g}", lambda case: ComposedLinear(case, keep))
    return [
        exact,
        *ours,
        composed,
        Provider("checkpoint", lambda case: Checkpointed(torch.nn.Linear(case.features, case.outputs))),
        _official("same", keep),
        _official("different", keep),
    ]


def _ours(sketch: Sketch) -> Provider:
    return Provider(
        str(sketch),
        lambda case: nn.Linear(case.features, case.outputs, sketch=sketch),
        lambda case, dtype: sketched_linear(case, dtype, sketch),
    )


def _official(sampling: str, keep: float) -> Provider:
    return Provider(
        f"official {sampling} {keep:g}",
        lambda case: OfficialLinear(case.features, case.outputs, keep, sampling == "different"),
        dtypes=(torch.float32,),
    )


class Checkpointed(torch.nn.Module):
    """A layer under torch.utils.checkpoint, in the variant whose retained tensors can be counted."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layer, x, use_reentrant=True)


class _Composed(Function):
    """Rows, one of each stratum, from torch's own operators: what one would write without kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kept: int) -> Tensor:
        base, longer = divmod(len(x), kept)
        stratum = torch.arange(kept, device=x.device)
        first = stratum * base + stratum.clamp(max=longer)
        size = base + (stratum < longer).long()
        index = first + (torch.rand(kept, device=x.device, dtype=torch.float64) * size).long()
        ctx.save_for_backward(x.index_select(0, index), index, size.to(x.dtype), weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        sample, index, size, weight = ctx.saved_tensors
        kept_dy = dy.index_select(0, index) * size[:, None]
        return dy @ weight, kept_dy.t() @ sample, dy.sum(0), None


class ComposedLinear(torch.nn.Linear):
    """``rows`` with the stratified draw, composed of index_select and matmul."""

    def __init__(self, case: LinearCase, keep: float) -> None:
        super().__init__(case.features, case.outputs)
        self.kept = Sketch(keep).kept(case.rows)

    def forward(self, x: Tensor) -> Tensor:
        return _Composed.apply(x, self.weight, self.bias, self.kept)

"""What every suite is made of: the settings of a run, the subjects that are compared and how to call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sketch import Sketch
from .limits import Work, nothing
from .timing import Step

BASELINE = "torch"
COMPILED = "compiled"


@dataclass(frozen=True)
class Setting:
    """What holds for all cases of a run."""

    device: torch.device
    dtype: torch.dtype
    keep: float
    sketches: tuple[Sketch, ...]
    quick: bool = False
    peers: bool = False  # other ways to the same end beside torch and the sketches

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)


@dataclass(frozen=True)
class Subject:
    """A provider set up for a case: the same objects serve time and memory.

    forward: what leaves tensors behind for backward; None where nothing is differentiated.
    work: the least effort; None where no limit is stated.
    """

    step: Step
    forward: Callable[[], Any] | None = None
    work: Work | None = None


@dataclass(frozen=True)
class Trial:
    """Subjects that are compared with each other; the first is the baseline."""

    suite: str
    case: str
    subjects: dict[str, Subject]
    host_time: bool = False  # on a GPU: time the host, not the device


def training(
    layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, parameters: Sequence[Tensor], work: Work | None
) -> Subject:
    def forget() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None

    return Subject(Step(forget, lambda: layer(x).backward(dy)), lambda: layer(x), work)


def call(run: Callable[[], Any], work: Work) -> Subject:
    return Subject(Step(nothing, run), None, work)


def compiled(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The whole layer under torch.compile: a break in its graph is an error."""
    return torch.compile(lambda x: layer(x), dynamic=False, fullgraph=True)


def forget_compiled() -> None:
    """All that is compiled shares one function's cache, which is too small for a whole suite."""
    torch.compiler.reset()

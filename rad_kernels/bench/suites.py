"""The suites: which subjects are compared on which cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional, nn, ops
from ..sketch import Sketch
from . import limits
from .cases import OVERHEAD, LinearCase, MatrixCase, linear_cases, matrix_cases
from .limits import Work
from .providers import BASELINE, Provider, linear_providers
from .timing import Step


@dataclass(frozen=True)
class Setting:
    """What holds for all cases of a run."""

    device: torch.device
    dtype: torch.dtype
    keep: float
    sketches: tuple[Sketch, ...]
    quick: bool = False

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


def linear(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """A Linear's forward and backward, gradients of input, weight and bias."""
    providers = linear_providers(setting.sketches, setting.keep)
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("linear", str(case), layer_subjects(providers, case, setting))


def overhead(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The same for a layer so small that only calls cost."""
    providers = linear_providers(setting.sketches, setting.keep)
    for case in cases or OVERHEAD:
        yield Trial("overhead", str(case), layer_subjects(providers, case, setting), host_time=True)


def layer_subjects(providers: Sequence[Provider], case: LinearCase, setting: Setting) -> dict[str, Subject]:
    subjects = {}
    x = setting.randn(case.rows, case.features).requires_grad_()
    dy = setting.randn(case.rows, case.outputs)
    for provider in providers:
        if not provider.takes(setting.dtype):
            continue
        layer = provider.make(case).to(setting.device, setting.dtype)
        work = provider.work(case, setting.dtype) if provider.work else None
        subjects[provider.name] = training(layer, x, dy, list(layer.parameters()), work)
    return subjects


def training(
    layer: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor, parameters: Sequence[Tensor], work: Work | None
) -> Subject:
    def forget() -> None:
        for tensor in (x, *parameters):
            tensor.grad = None

    return Subject(Step(forget, lambda: layer(x).backward(dy)), lambda: layer(x), work)


def pack(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The pack alone, against a copy of the activation."""
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("pack", f"{case.rows}x{case.features}", _pack_subjects(case, setting))


def _pack_subjects(case: LinearCase, setting: Setting) -> dict[str, Subject]:
    x = setting.randn(case.rows, case.features)
    index = torch.arange(Sketch(setting.keep).kept(case.rows), device=setting.device)
    copied = 2.0 * x.nbytes
    subjects = {
        "copy": _call(x.clone, Work(0, copied)),
        f"index_select {setting.keep:g}": _call(
            lambda: x.index_select(0, index), Work(0, copied * len(index) / case.rows)
        ),
    }
    for sketch in setting.sketches:
        work = limits.packing(case, setting.dtype, sketch)
        subjects[str(sketch)] = _call(partial(ops.pack, x, sketch.spec), work)
    return subjects


def wgrad(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The weight gradient alone, against torch's product."""
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("wgrad", str(case), _wgrad_subjects(case, setting))


def _wgrad_subjects(case: LinearCase, setting: Setting) -> dict[str, Subject]:
    x, dy = setting.randn(case.rows, case.features), setting.randn(case.rows, case.outputs)
    exact = limits.weight_gradient(case, setting.dtype, None)
    subjects = {BASELINE: _call(lambda: dy.t() @ x, exact)}
    for sketch in setting.sketches:
        run = partial(ops.linear_wgrad, dy, ops.pack(x, sketch.spec), case.features, sketch.spec)
        subjects[str(sketch)] = _call(run, limits.weight_gradient(case, setting.dtype, sketch))
    return subjects


def _call(run: Callable[[], Any], work: Work) -> Subject:
    return Subject(Step(limits.nothing, run), None, work)


def elementwise(setting: Setting, cases: Sequence[MatrixCase] | None = None) -> Iterator[Trial]:
    """ReLU and dropout, forward and backward, against torch's."""
    item = setting.dtype.itemsize
    layers: dict[str, dict[str, tuple[Callable[[Tensor], Tensor], float]]] = {  # with bytes kept a value
        "relu": {BASELINE: (F.relu, item / 2), "1 bit": (functional.relu, 1 / 8)},  # y is the next input
        "dropout": {BASELINE: (torch.nn.Dropout(0.1), 1), "seed only": (nn.Dropout(0.1), 0)},
    }
    for case in cases or matrix_cases(setting.device, setting.quick):
        x = setting.randn(case.rows, case.features).requires_grad_()
        dy = setting.randn(case.rows, case.features)
        for name, providers in layers.items():
            subjects = {
                provider: training(layer, x, dy, (), limits.elementwise(case, setting.dtype, kept))
                for provider, (layer, kept) in providers.items()
            }
            yield Trial("elementwise", f"{name} {case}", subjects)


SUITES: dict[str, Callable[..., Iterator[Trial]]] = {
    "linear": linear,
    "wgrad": wgrad,
    "pack": pack,
    "elementwise": elementwise,
    "overhead": overhead,
}

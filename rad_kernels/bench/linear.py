"""The suites of the linear layer: the step, the price of its calls, the pack and the weight gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..sketch import Sketch
from . import limits
from .cases import OVERHEAD, LinearCase, linear_cases
from .limits import Work
from .providers import Provider, linear_providers
from .trial import BASELINE, COMPILED, Setting, Subject, Trial, call, compiled, forget_compiled, training

ALL_ROWS = Sketch(1)


def linear(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """A Linear's forward and backward, gradients of input, weight and bias."""
    providers = linear_providers(setting.sketches, setting.keep, setting.peers)
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("linear", str(case), layer_subjects(providers, case, setting))


def overhead(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The same for a layer so small that only calls cost."""
    providers = linear_providers(setting.sketches, setting.keep, setting.peers)
    for case in cases or OVERHEAD:
        yield Trial("overhead", str(case), layer_subjects(providers, case, setting), host_time=True)


def layer_subjects(providers: Sequence[Provider], case: LinearCase, setting: Setting) -> dict[str, Subject]:
    subjects = {}
    x = setting.randn(case.rows, case.features).requires_grad_()
    dy = setting.randn(case.rows, case.outputs)
    for provider in providers:
        if provider.takes(setting.dtype):
            layer = provider.make(case).to(setting.device, setting.dtype)
            work = provider.work(case, setting.dtype) if provider.work else None
            subjects[provider.name] = training(layer, x, dy, list(layer.parameters()), work)
    if setting.peers:
        forget_compiled()
        exact = providers[0].make(case).to(setting.device, setting.dtype)
        work = limits.exact_linear(case, setting.dtype)
        subjects[COMPILED] = training(compiled(exact), x, dy, list(exact.parameters()), work)
    return subjects


def pack(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The pack alone, against a copy of the activation."""
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("pack", f"{case.rows}x{case.features}", _pack_subjects(case, setting))


def _pack_subjects(case: LinearCase, setting: Setting) -> dict[str, Subject]:
    x = setting.randn(case.rows, case.features)
    copied = 2.0 * x.nbytes
    subjects = {"copy": call(x.clone, Work(0, copied))}
    if setting.peers:
        index = torch.arange(Sketch(setting.keep).kept(case.rows), device=setting.device)
        least = Work(0, copied * len(index) / case.rows)
        subjects[f"index_select {setting.keep:g}"] = call(lambda: x.index_select(0, index), least)
    for sketch in setting.sketches:
        work = limits.packing(case, setting.dtype, sketch)
        subjects[str(sketch)] = call(partial(ops.pack, x, sketch.spec), work)
    return subjects


def wgrad(setting: Setting, cases: Sequence[LinearCase] | None = None) -> Iterator[Trial]:
    """The weight gradient alone, against torch's product."""
    for case in cases or linear_cases(setting.device, setting.quick):
        yield Trial("wgrad", str(case), _wgrad_subjects(case, setting))


def _wgrad_subjects(case: LinearCase, setting: Setting) -> dict[str, Subject]:
    x, dy = setting.randn(case.rows, case.features), setting.randn(case.rows, case.outputs)
    exact = limits.weight_gradient(case, setting.dtype, None)
    subjects = {BASELINE: call(lambda: dy.t() @ x, exact)}
    for sketch in setting.sketches:
        run = partial(ops.linear_wgrad, dy, ops.pack(x, sketch.spec), case.features, sketch.spec)
        subjects[str(sketch)] = call(run, limits.weight_gradient(case, setting.dtype, sketch))
    if setting.peers:
        subjects |= _composed_wgrad(case, setting, x, dy)
        if chooses_path(setting):
            subjects |= _both_paths(case, setting, x, dy)
    return subjects


def _composed_wgrad(case: LinearCase, setting: Setting, x: Tensor, dy: Tensor) -> dict[str, Subject]:
    """``rows`` of torch's own operators: kept rows of dy gathered, then a product."""
    index = torch.arange(Sketch(setting.keep).kept(case.rows), device=setting.device)
    kept = x.index_select(0, index)
    least = limits.weight_gradient(case, setting.dtype, Sketch(setting.keep))
    return {f"index_select {setting.keep:g}": call(lambda: dy.index_select(0, index).t() @ kept, least)}


def chooses_path(setting: Setting) -> bool:
    """Whether ``rows`` could go either way, through one fused kernel or through a gather and the BLAS."""
    return setting.device.type == "cuda" and setting.dtype.itemsize == 2


def _both_paths(case: LinearCase, setting: Setting, x: Tensor, dy: Tensor) -> dict[str, Subject]:
    """Each way of the sketches that have two, and of all rows, where the fused kernel is but a product."""
    subjects = {}
    of_rows = [s for s in setting.sketches if s.sampling in ("rows", "tile_rows") and s != ALL_ROWS]
    for sketch in [*of_rows, ALL_ROWS]:
        saved = ops.pack(x, sketch.spec)
        work = limits.weight_gradient(case, setting.dtype, sketch)
        for name, fused in (("fused", True), ("gathered", False)):
            run = partial(ops.rows_wgrad, dy, saved, case.features, sketch.spec, fused=fused)
            subjects[f"{sketch} {name}"] = call(run, work)
    return subjects

"""A training step under observation, on data or on fake tensors, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.profiler import record_function
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from ..convert.probe import Step, without_trace
from ..memory import Recorder, SavedEntry, Span, Timeline, timeline
from .fake import Fakes, Levels
from .result import Curve, SavedTensor

_FORWARD, _BACKWARD, _MODULE = "rad_kernels.forward", "rad_kernels.backward", "rad_kernels.module "


@dataclass(frozen=True)
class Peaks:
    """By module: how far the memory rises in a call, and in one of its operations in backward."""

    forward: dict[str, int] = field(default_factory=dict)
    backward: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What a step showed. calls: of each module by name. gradients: bytes that it left in ``.grad``."""

    tensors: tuple[SavedTensor, ...]
    calls: dict[str, int]
    gradients: int
    curve: Curve
    peaks: Peaks


def scalar(result: Any, step: Step, model: Module) -> Tensor:
    """The loss in what a step returns.

    Raises:
        ValueError: it is no scalar, or needs no gradient.
    """
    if step.run is None and not isinstance(result, Tensor):
        result = getattr(result, "loss", result)
    if not isinstance(result, Tensor) or result.numel() != 1:
        got = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        if step.run is None:
            raise ValueError(f"loss must be given: {type(model).__name__} returns {got}, not a scalar")
        raise ValueError(f"loss must return a scalar tensor, got {got}")
    if not result.requires_grad:
        raise ValueError("nothing requires a gradient: no parameter or input that the loss depends on does")
    return result


def run_step(model: Module, step: Step, device: torch.device) -> Observed:
    """Forward and backward on data. Modes, buffers, random generators and gradients are as before."""
    marks = _Marks()
    recorder = Recorder(model)
    found: list[Any] = []
    gradients = 0

    def forward_and_backward() -> None:
        with record_function(_FORWARD), marks, recorder:
            loss = scalar(step(model), step, model)
        found.extend(recorder.found(loss))
        with record_function(_BACKWARD):
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    with without_trace(model), _own_gradients(model, step), torch.enable_grad():
        if not model.training:
            model.train()
        line = timeline(forward_and_backward, device)
        gradients = _gradient_bytes(model)
        tensors = _tensors(found, model, step)
    forward, backward = (
        next(span for span in line.spans if span.name == name) for name in (_FORWARD, _BACKWARD)
    )
    peaks = _peaks(line, backward, marks, recorder)
    return Observed(tensors, _calls(recorder), gradients, _curve(line, forward, backward), peaks)


def fake_step(model: Module, step: Step, fakes: Fakes, backward: bool = True) -> Observed:
    """The same of a model of fake tensors, whose curve counts operations and has no peaks by module."""
    known = [list(model.parameters()), list(model.buffers()), step.inputs]
    gradients, turn = 0, 0
    with fakes.mode, without_trace(model), torch.enable_grad():
        if not model.training:
            model.train()
        for parameter in model.parameters():
            parameter.grad = None
        recorder = Recorder(model)
        with Levels(known) as levels:
            with recorder:
                loss = scalar(step(model), step, model)
            found = recorder.found(loss)
            turn = levels.operations
            if backward:
                loss.backward()
            del loss
        gradients = _gradient_bytes(model)
        tensors = _tensors(found, model, step)
        for parameter in model.parameters():
            parameter.grad = None
    curve = Curve(tuple(map(float, levels.times)), tuple(levels.levels), turn + 0.5)
    return Observed(tensors, _calls(recorder), gradients, curve, Peaks())


class _Marks:
    """While active, a span of torch's profiler for each call of a module."""

    def __init__(self) -> None:
        self.scopes: list[tuple[Module, ...]] = []
        self._running: list[tuple[Module, record_function]] = []

    def __enter__(self) -> None:
        self._handles = [
            torch.nn.modules.module.register_module_forward_pre_hook(self._begin),
            torch.nn.modules.module.register_module_forward_hook(self._end, always_call=True),
        ]

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: Module, _args: Any) -> None:
        if not torch.compiler.is_compiling():
            span = record_function(f"{_MODULE}{len(self.scopes)}")
            self._running.append((module, span))
            self.scopes.append(tuple(running for running, _ in self._running))
            span.__enter__()

    def _end(self, _module: Module, _args: Any, _output: Any) -> None:
        if not torch.compiler.is_compiling():
            self._running.pop()[1].__exit__(None, None, None)


@contextmanager
def _own_gradients(model: Module, step: Step) -> Iterator[None]:
    """No gradients at the start, those of the caller afterwards. Hooks that run after the accumulation, as
    optimizers in backward do, are off meanwhile: they would change the parameters."""
    leaves = [*model.parameters(), *(x for x in tree_leaves(step.inputs) if isinstance(x, Tensor))]
    leaves = [leaf for leaf in leaves if leaf.is_leaf and leaf.requires_grad]
    before = [(leaf, leaf.grad) for leaf in leaves]
    with ExitStack() as stack:
        for leaf in leaves:
            leaf.grad = None
            if hooks := leaf._post_accumulate_grad_hooks:
                stack.callback(hooks.update, dict(hooks))
                hooks.clear()
        try:
            yield
        finally:
            for leaf, gradient in before:
                leaf.grad = gradient


def _gradient_bytes(model: Module) -> int:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return sum({g.untyped_storage()._cdata: g.untyped_storage().nbytes() for g in gradients}.values())


def _calls(recorder: Recorder) -> dict[str, int]:
    name = recorder.names()
    return {name((module,)): count for module, count in recorder.calls.items()}


def _curve(line: Timeline, forward: Span, backward: Span) -> Curve:
    """Without the pause between forward and backward, in which what was saved is listed."""
    pause = backward.start - forward.end

    def seconds(time: int) -> float:
        shown = time - pause if time >= backward.start else min(time, forward.end)
        return (shown - forward.start) / 1e9

    return Curve(tuple(map(seconds, line.times)), line.levels, seconds(backward.start))


def _peaks(line: Timeline, backward: Span, marks: _Marks, recorder: Recorder) -> Peaks:
    name = recorder.names()
    peaks = Peaks({}, {})
    for span in line.spans:
        if span.node is None:
            if span.name.startswith(_MODULE) and span.start < backward.start:
                scope = marks.scopes[int(span.name.removeprefix(_MODULE))]
                _raise(peaks.forward, name(scope), line.rise(span))
        elif span.start >= backward.start and recorder.is_recorded(span.node):
            _raise(peaks.backward, name(recorder.scope_of_node(span.node)), line.rise(span))
    return peaks


def _raise(peaks: dict[str, int], name: str, value: int) -> None:
    peaks[name] = max(peaks.get(name, 0), value)


def _tensors(found: list[Any] | tuple[Any, ...], model: Module, step: Step) -> tuple[SavedTensor, ...]:
    """After the graph is gone: what lives on is held by somebody else."""
    holders = _holders(model, step)

    def holder(item: Any) -> str:
        if item.owner or item.storage.expired():
            return ""
        return holders.get(item.storage.cdata, "something outside of the graph")

    return tuple(_tensor(item.entry, item.owner, holder(item)) for item in found)


def _tensor(entry: SavedEntry, owner: str, held_by: str) -> SavedTensor:
    dtype = str(entry.dtype).removeprefix("torch.")
    return SavedTensor(
        entry.module, entry.op, entry.shape, dtype, entry.bytes, owner, entry.shared_with, held_by
    )


def _holders(model: Module, step: Step) -> dict[int, str]:
    """Storage -> who holds it: the caller by an input, or an attribute of a module."""
    holders: dict[int, str] = {}
    callers: dict[int, str] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if isinstance(value, Tensor):
                where = f"attribute {attribute} of {name or type(module).__name__}"
                holders[value.untyped_storage()._cdata] = where
    for path, leaf in tree_flatten_with_path(step.inputs)[0]:
        if isinstance(leaf, Tensor):
            callers.setdefault(leaf.untyped_storage()._cdata, f"the caller (inputs{keystr(path)})")
    return holders | callers

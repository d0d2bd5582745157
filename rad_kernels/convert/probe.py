"""One training-mode forward pass that leaves no trace: who ran, in which order, on what, and what it kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from .. import memory


@dataclass
class Probe:
    """order: names of leaf modules as they were called. inputs: name -> the tensors that it was called with,
    one a call, alive so that identity can be asked for. saved: all that was retained."""

    caller: list[Tensor]
    order: list[str] = field(default_factory=list)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    saved: memory.SavedBytes = field(default_factory=lambda: memory.SavedBytes(()))

    def reads_the_callers(self, name: str) -> bool:
        """Whether each input of a module lies in memory that the caller of the model holds."""
        held = {tensor.untyped_storage()._cdata for tensor in self.caller}
        inputs = self.inputs.get(name, [])
        return bool(inputs) and all(x.untyped_storage()._cdata in held for x in inputs)

    def bytes_of(self, name: str) -> int:
        return self.saved.by_module.get(name, 0)


@dataclass(frozen=True)
class Step:
    """Stands for example inputs where more than a call of the model is looked at: ``run(model, *inputs)``
    is a forward pass with its loss; without ``run`` it is a call."""

    run: Callable[..., Any] | None
    inputs: tuple[Any, ...]

    def __call__(self, model: Module) -> Any:
        return model(*self.inputs) if self.run is None else self.run(model, *self.inputs)


class Watcher:
    """A forward pre-hook that writes the call down and changes nothing of it."""

    def __init__(self, probe: Probe, name: str) -> None:
        self.probe, self.name = probe, name

    def __call__(self, _module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.probe.order.append(self.name)
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if x is not None:
            self.probe.inputs.setdefault(self.name, []).append(x)


def as_call(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's call.

    Raises:
        TypeError: neither a tensor, nor a tuple or list, nor a dict with names of arguments.
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping) and all(isinstance(key, str) for key in example_inputs):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        return tuple(example_inputs), {}
    raise TypeError(
        "example_inputs must be a tensor, a tuple of arguments or a dict of named ones, "
        f"got {type(example_inputs).__name__}"
    )


def run(model: Module, example_inputs: object, calls: bool = True) -> Probe:
    """Calls the model once in training mode. Modes, buffers and random generators are as before; parameters
    are not touched. Without calls, the modules' order and inputs are not recorded."""
    if isinstance(example_inputs, Step):
        given: object = example_inputs.inputs
        forward = partial(example_inputs, model)
    else:
        args, kwargs = given = as_call(example_inputs)
        forward = partial(model, *args, **kwargs)
    probe = Probe([leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)])

    handles = [
        module.register_forward_pre_hook(Watcher(probe, name), with_kwargs=True)
        for name, module in (model.named_modules() if calls else ())
    ]
    try:
        with without_trace(model), torch.enable_grad():
            model.train()
            probe.saved = memory.saved_bytes(forward)
    finally:
        for handle in handles:
            handle.remove()
    return probe


@contextmanager
def without_trace(model: Module) -> Iterator[None]:
    """Afterwards modes, buffers and random generators (torch's, numpy's, Python's) are as before."""
    modes = {module: module.training for module in model.modules()}
    owned = [(module, dict(module._buffers)) for module in modes]
    values = {b: b.detach().clone() for _, buffers in owned for b in buffers.values() if b is not None}
    devices = {t.device for t in (*model.parameters(), *values) if t.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for module, mode in modes.items():
                module.training = mode
            for module, buffers in owned:
                module._buffers.clear()
                module._buffers.update(buffers)
            with torch.no_grad():
                for buffer, value in values.items():
                    buffer.copy_(value)

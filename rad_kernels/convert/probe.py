"""One training-mode forward pass that leaves no trace: who ran, in which order, on what, and what it kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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
    args, kwargs = as_call(example_inputs)
    probe = Probe([leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)])

    def watch(name: str) -> Callable[..., None]:
        def called(_module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            probe.order.append(name)
            x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            if x is not None:
                probe.inputs.setdefault(name, []).append(x)

        return called

    handles = [
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
        for name, module in (model.named_modules() if calls else ())
    ]
    try:
        with _without_trace(model), torch.enable_grad():
            probe.saved = memory.saved_bytes(lambda: model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    return probe


@contextmanager
def _without_trace(model: Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    devices = {p.device for p in (*model.parameters(), *buffers) if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):
        model.train()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for buffer, value in buffers.items():
                    buffer.copy_(value)

"""One pack for several Linears of one input, such as query, key and value, each a module of its own.

The first of them that is called computes the outputs of all with ``functional.shared_linear``; the others
take theirs. What they take must be what they would have computed, so all that could tell the difference is
compared, and a group whose members turn out to be called otherwise is dissolved.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..functional import SketchWarning
from ..functional._checks import autocast_dtype
from ..nn import Linear
from .probe import Watcher

# So many passes in a row in which some member did not take its output are no accident.
WASTED = 8


@dataclass
class _Pass:
    """Outputs that wait for their modules: index of the member -> output. ``x`` frees them when it dies."""

    x: weakref.ref[Tensor]
    state: tuple[Any, ...]
    outputs: dict[int, Tensor]


class Group:
    """Linears that read one tensor. Copies and pickles along with its members."""

    def __init__(self, members: list[SharedLinear], names: tuple[str, ...]) -> None:
        self.members, self.names, self.dissolved = members, names, False
        self._running, self._wasted = threading.local(), 0

    def __getstate__(self) -> dict[str, Any]:
        return {"members": self.members, "names": self.names, "dissolved": self.dissolved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._running, self._wasted = threading.local(), 0

    def output(self, member: SharedLinear, x: Tensor) -> Tensor | None:
        """The member's output for x; None if it has to compute it alone."""
        index = next((i for i, other in enumerate(self.members) if other is member), None)
        if index is None or self.dissolved:  # no member: a replica that shares the attributes of one
            return None
        waiting = getattr(self._running, "waiting", None)
        if waiting is None or not waiting.outputs or index not in waiting.outputs:
            return self._begin(index, x)
        if waiting.x() is not x or waiting.state != self._state(x):
            self._dissolve("its members were called with different tensors or in different modes")
            return None
        y = waiting.outputs.pop(index)
        if not waiting.outputs:
            self._wasted = 0
        return y

    def _begin(self, index: int, x: Tensor) -> Tensor | None:
        """Compute all outputs. What an earlier pass left, by an exception for instance, is dropped."""
        self._running.waiting = None
        if self._wasted >= WASTED:
            self._dissolve("its members are not called with one tensor")
            return None
        if any(_is_changed(member) for member in self.members):
            self._dissolve("a member got a hook, a parametrization or another forward")
            return None
        first = self.members[index]
        if any(m.sketch != first.sketch or not m.training for m in self.members):
            return None
        ys = functional.shared_linear(
            x, [m.weight for m in self.members], [m.bias for m in self.members], first.sketch
        )
        outputs = dict(enumerate(ys))
        own = outputs.pop(index)

        def died(_: object) -> None:
            self._wasted += bool(outputs)
            outputs.clear()

        self._running.waiting = _Pass(weakref.ref(x, died), self._state(x), outputs)
        return own

    def _state(self, x: Tensor) -> tuple[Any, ...]:
        """All that an output depends on apart from the identity of x."""
        parameters = [p for m in self.members for p in (m.weight, m.bias) if p is not None]
        versions = [(id(p), p._version, p.requires_grad) for p in parameters]
        return (torch.is_grad_enabled(), autocast_dtype(x), x._version, *versions)

    def _dissolve(self, reason: str) -> None:
        self.dissolved = True
        self._running.waiting = None
        warnings.warn(
            f"{', '.join(self.names)} no longer share a pack: {reason}", SketchWarning, stacklevel=5
        )


def _is_changed(member: SharedLinear) -> bool:
    """Whether a call of the member may be more than its forward: a probe's hooks are not."""
    hooks = member._forward_pre_hooks.values()
    if type(member) is not SharedLinear or "forward" in vars(member):
        return True
    return any(not isinstance(hook, Watcher) for hook in hooks)


class SharedLinear(Linear):
    """A Linear whose pack serves its siblings too; made by ``convert``."""

    _rad_group: Group

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.compiler.is_compiling() or not isinstance(x, Tensor):
            return super().forward(x)
        if torch.is_inference_mode_enabled() or x.is_inference():
            return super().forward(x)
        y = self._rad_group.output(self, x)
        return super().forward(x) if y is None else y

    def extra_repr(self) -> str:
        together = "alone" if self._rad_group.dissolved else f"shared by {len(self._rad_group.members)}"
        return f"{super().extra_repr()}, {together}"

"""Gated feed-forwards, ``down_proj(act_fn(gate_proj(x)) * up_proj(x))``: known by their looks, and by
computing just that on what the probe saw them called with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Module

from .. import functional
from .choose import Choice
from .probe import Probe

PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
ACTIVATIONS: dict[type[Module], str] = {
    torch.nn.SiLU: "silu",
    torch.nn.ReLU: "relu",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.Mish: "mish",
}


class GatedForward:
    """Takes the place of such a module's forward: both factors of the product are kept in a few bits."""

    def __init__(self, owner: Module, activation: str, bits: int) -> None:
        self.owner, self.activation, self.bits = owner, activation, bits

    def __call__(self, x: Tensor) -> Tensor:
        owner = self.owner
        if not owner.training:
            return type(owner).forward(owner, x)
        gate, up, down = (owner.get_submodule(part) for part in PARTS[:3])
        return down(functional.gated(gate(x), up(x), self.activation, bits=self.bits))


def find(model: Module, converted: Iterable[Choice], probe: Probe) -> dict[str, str]:
    """Name of each gated feed-forward whose activation is converted -> functional.gated's name for that."""
    found = {}
    for choice in converted:
        name, _, part = choice.name.rpartition(".")
        owner = model.get_submodule(name)
        activation = _activation(choice.module)
        if (
            part == PARTS[-1]
            and activation
            and _looks_gated(owner)
            and _computes_just_that(owner, name, probe)
        ):
            found[name] = activation
    return found


def _activation(module: Module) -> str:
    if isinstance(module, torch.nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return ACTIVATIONS.get(type(module), "")


def _looks_gated(module: Module) -> bool:
    children = dict(module.named_children())
    hooked = any(children[PARTS[-1]]._forward_hooks) or any(children[PARTS[-1]]._forward_pre_hooks)
    return sorted(children) == sorted(PARTS) and not hooked and "forward" not in module.__dict__


def _computes_just_that(module: Module, name: str, probe: Probe) -> bool:
    inputs = probe.inputs.get(name, [])
    gate, up, down, act = (getattr(module, part) for part in PARTS)
    with torch.no_grad():
        return bool(inputs) and all(
            torch.equal(type(module).forward(module, x), down(act(gate(x)) * up(x))) for x in inputs
        )

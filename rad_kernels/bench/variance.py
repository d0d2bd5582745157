"""Noise of the weight gradients against bytes: formulae and measurements on a network's real activations."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..data import Digits
from ..demo.network import EXACT_RATE, build, loss
from ..plan.formulae import has_closed_form, linear_variances
from ..sketch import Sketch, saved_nbytes
from .result import VarianceRow


@dataclass(frozen=True)
class Activation:
    """A Linear's input x [rows, features] and output gradient dy [rows, outputs] in one training step."""

    name: str
    x: Tensor
    dy: Tensor

    @property
    def dw(self) -> Tensor:
        """The exact weight gradient in float64."""
        return self.dy.double().t() @ self.x.double()


def trained_activations(digits: Digits, steps: int, batch: int, seed: int = 0) -> list[Activation]:
    """Of every Linear of the paper's network, after ``steps`` of Adam, on a minibatch not used before.

    Args:
        digits: flattened and standardised (demo.network.standardised).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(digits.train_images.shape[1], None)
        optimizer = torch.optim.Adam(network.parameters(), EXACT_RATE)
        order = torch.randperm(len(digits.train_images))
        for step in range(steps):
            chosen = order[(step * batch + torch.arange(batch)) % (len(order) - batch)]
            optimizer.zero_grad()
            loss(network, digits.train_images[chosen], digits.train_labels[chosen]).backward()
            optimizer.step()
    last = order[-batch:]
    return _captured(network, digits.train_images[last], digits.train_labels[last])


def _captured(network: torch.nn.Module, images: Tensor, labels: Tensor) -> list[Activation]:
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def note(_module: torch.nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        inputs.append(arguments[0].detach())
        outputs.append(output)

    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    loss(network, images, labels).backward()
    for hook in hooks:
        hook.remove()
    found = []
    for layer, x, y in zip(layers, inputs, outputs):
        assert y.grad is not None
        found.append(Activation(f"{layer.in_features}->{layer.out_features}", x, y.grad))
    return found


def formula(sketch: Sketch, activation: Activation) -> float | None:
    """E ||dW - D||^2; None where it has no closed form."""
    if not has_closed_form(sketch):
        return None
    return linear_variances([sketch], activation.x.double(), activation.dy.double())[sketch]


def measured(sketch: Sketch, activation: Activation, keys: Sequence[int]) -> list[float]:
    """||dW - D||^2 for every key."""
    x, dy, exact = activation.x, activation.dy, activation.dw
    found = []
    for number in keys:
        saved = ops.pack(x, sketch.spec, torch.tensor([number], device=x.device))
        dw = ops.linear_wgrad(dy, saved, x.shape[1], sketch.spec)
        found.append(float((dw.double() - exact).square().sum()))
    return found


def minibatch_noise(activations: Sequence[Activation]) -> float:
    """Relative variance that the choice of the minibatch gives the same gradients, estimated within it."""
    noise = square = 0.0
    for activation in activations:
        n = len(activation.x)
        own = activation.x.double().square().sum(1) @ activation.dy.double().square().sum(1)
        total = activation.dw.square().sum()
        noise += float((n * own - total) / (n - 1))
        square += float(total)
    return noise / square


def family(sketch: Sketch) -> str:
    """What a line of the plot joins: sketches that differ in one number only."""
    if sketch.spec[0] == sketch.spec[1]:
        return "dither alone"
    draw = "" if sketch.draw == "stratified" else f":{sketch.draw}"
    return f"{sketch.sampling}{draw}" + ("" if sketch.bits is None else f" + {sketch.bits} bit")


def variance_row(sketch: Sketch, activations: Sequence[Activation], keys: Sequence[int]) -> VarianceRow:
    """One sketch on all layers; every layer and key has its own sample."""
    squares = [float(a.dw.square().sum()) for a in activations]
    by_formula = [formula(sketch, a) for a in activations]
    by_key = [measured(sketch, a, [key + i for key in keys]) for i, a in enumerate(activations)]
    totals = [sum(errors) / sum(squares) for errors in zip(*by_key)]
    packed = [saved_nbytes(a.x.shape[0], a.x.shape[1], a.x.dtype, sketch) for a in activations]
    known = [value for value in by_formula if value is not None]
    layers = tuple(
        (a.name, size / a.x.numel(), None if f is None else f / s, statistics.fmean(errors) / s)
        for a, size, f, s, errors in zip(activations, packed, by_formula, squares, by_key)
    )
    return VarianceRow(
        sketch=str(sketch),
        family=family(sketch),
        bytes_per_value=sum(packed) / sum(a.x.numel() for a in activations),
        formula=sum(known) / sum(squares) if len(known) == len(activations) else None,
        measured=statistics.fmean(totals),
        error=statistics.stdev(totals) / len(totals) ** 0.5,
        by_layer=layers,
    )


def frontier_sketches() -> list[Sketch]:
    """Sampling, dither, and both, from a fortieth of the values to all of them."""
    keeps = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    few = (0.025, 0.05, 0.1, 0.2, 0.4)
    return [
        *(Sketch(keep, *kind) for kind in _PLAIN for keep in keeps),
        *(Sketch(1, bits=bits) for bits in (1, 2, 4, 8)),
        *(Sketch(keep, kind, bits=bits) for kind in ("rows", "different") for bits in (2, 4) for keep in few),
    ]


_PLAIN = (("rows",), ("rows", "norm"), ("same",), ("different",), ("tile_rows",), ("project",))

"""Noise of the weight gradients against bytes: formulae and measurements on a network's real activations.

The lines are those of docs/maths.md (weight gradient), written through the first two moments of z, the
multiplier of an entry in the estimate: E z = 1, so only Var z and Cov(z, z') matter.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..data import Digits
from ..demo.network import EXACT_RATE, build, loss
from ..sketch import Sketch, saved_nbytes
from .result import VarianceRow

TILE = 128  # features that share a sample of tile_rows
GROUP = 64  # consecutive stored values that share a dither's step


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


def covariance(n: int, k: int, draw: str, norms: Tensor | None = None) -> Tensor:
    """Cov(z, z') [n, n] of the multipliers of n entries of which a draw keeps k; norms [n] for ``norm``."""
    eye = torch.eye(n, dtype=torch.float64)
    if draw == "with_replacement":
        return (n * eye - 1) / k
    if draw == "without_replacement":
        return n * (n - k) / (k * (n - 1)) * (eye - 1 / n) if n > 1 else 0 * eye
    if draw == "norm":
        assert norms is not None
        return ((1 / norm_probability(norms)).diag() - 1) / k
    base, longer = divmod(n, k)
    sizes = torch.full((k,), base)
    sizes[:longer] += 1
    stratum = torch.repeat_interleave(torch.arange(k), sizes)
    together = (stratum[:, None] == stratum).double()
    return sizes[stratum].double().diag() - together


def norm_probability(norms: Tensor) -> Tensor:
    """How likely each row is in one draw by norm: a tenth of the draws is uniform."""
    return 0.9 * norms / norms.sum() + 0.1 / len(norms)


def dither_steps(x: Tensor, bits: int) -> Tensor:
    """Step of the group that each value of x [lines, stored] belongs to, in float64."""
    steps = []
    for group in x.split(GROUP, dim=1):
        spread = group.amax(1) - group.amin(1)
        exact = (spread / (2**bits - 1)).float()
        up = ((exact.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32).double()
        steps.append(up[:, None].expand(group.shape))
    return torch.cat(steps, 1)


def formula(sketch: Sketch, activation: Activation) -> float | None:
    """E ||dW - D||^2; None for dithered feature samples, whose steps depend on what was drawn."""
    x, dy = activation.x.double(), activation.dy.double()
    n, d = x.shape
    dy_squares = dy.square().sum(1)
    if sketch.spec[0] == sketch.spec[1]:
        return 0.0 if sketch.bits is None else _dither(activation, sketch.bits, torch.ones(n).double())
    if sketch.sampling in ("same", "different", "project"):
        if sketch.bits is not None:
            return None
        k = sketch.kept(d)
        if sketch.sampling == "project":
            order = 1 << (d - 1).bit_length()
            distinct = (order - k) / (order - 1) if sketch.draw == "hadamard" else 1.0
            return float(distinct * (d - 1) / k * activation.dw.square().sum())
        variances = covariance(d, k, sketch.draw).diagonal()
        by_feature = activation.dw.square().sum(0) if sketch.sampling == "same" else dy_squares @ x.square()
        return float(variances @ by_feature)
    spread = covariance(n, sketch.kept(n), sketch.draw, x.norm(dim=1))
    width = TILE if sketch.sampling == "tile_rows" else d
    products = dy @ dy.t()
    total = sum(float((spread * products * (part @ part.t())).sum()) for part in x.split(width, dim=1))
    if sketch.bits is None:
        return total
    # Every stored copy has noise of its own, so what counts is the expected sum of the squared weights.
    k = sketch.kept(n)
    if sketch.draw == "norm":
        squares = 1 / (k * norm_probability(x.norm(dim=1)))
    elif sketch.draw == "stratified":
        squares = 1 + spread.diagonal()
    else:
        squares = torch.full((n,), n / k, dtype=torch.float64)
    return total + _dither(activation, sketch.bits, squares)


def _dither(activation: Activation, bits: int, squared_weights: Tensor) -> float:
    steps = dither_steps(activation.x, bits).square().sum(1) / 12
    return float((squared_weights * activation.dy.double().square().sum(1)) @ steps)


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

"""Table 1 of the paper: memory at several fractions of the activations, measured instead of worked out."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import memory
from ..convert import convert
from ..functional import SketchWarning
from ..networks import NETWORKS, Network, weight_bytes
from ..sketch import Sketch

BATCH = 150
FRACTIONS = (1.0, 0.8, 0.5, 0.3, 0.1, 0.05)

# Megabytes (10^6 bytes), weights included, calculated by hand by the authors. They count the bits of the
# ConvNet's ReLUs after pooling, where there are fewer; backward needs those before it.
PAPER = {
    "ConvNet": (23.08, 19.19, 12.37, 7.82, 3.28, 2.14),
    "FC": (2.69, 2.51, 2.21, 2.00, 1.80, 1.75),
    "RNN": (47.93, 39.98, 25.85, 16.43, 7.01, 4.66),
}


@dataclass(frozen=True)
class Cell:
    """Bytes, weights included. keep = 1 without bits is torch's own network, which has no formula."""

    network: str
    keep: float
    bits: int | None
    paper_mb: float
    formula: int | None
    measured: int

    @property
    def mb(self) -> float:
        return self.measured / 1e6


def measure(network: Network, sketch: Sketch, batch: int = BATCH) -> Cell:
    """What autograd retains for one batch, plus the weights."""
    torch.manual_seed(0)
    model, x = network.make(), network.example(batch)
    formula = None
    if not sketch.is_exact:
        named = {name: sketch for name, m in model.named_modules() if _has_weights(m)}
        convert(model, named)
        formula = network.formula(sketch, batch)
    with warnings.catch_warnings():  # of the RNN's pixels, which cannot be sampled by feature
        warnings.simplefilter("ignore", SketchWarning)
        retained = memory.saved_bytes(lambda: model(x)).total
    paper = dict(zip(FRACTIONS, PAPER[network.name])).get(sketch.keep, float("nan"))
    return Cell(network.name, sketch.keep, sketch.bits, paper, formula, retained + weight_bytes(model))


def _has_weights(module: torch.nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def cells(sampling: str, batch: int = BATCH) -> list[Cell]:
    """Every network at every fraction, and the ConvNet once more with four bits a value."""
    return [
        measure(network, Sketch(keep, sampling, bits=bits), batch)
        for network in NETWORKS.values()
        for bits in ((None, 4) if network.name == "ConvNet" else (None,))
        for keep in FRACTIONS
    ]


def as_dict(sampling: str, batch: int, found: list[Cell], environment: dict[str, Any]) -> dict[str, Any]:
    return {
        "environment": environment,
        "sampling": sampling,
        "batch": batch,
        "cells": [asdict(cell) for cell in found],
    }


def table(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Header and lines: for each network the paper's figures and below them what was measured."""
    lines: list[tuple[str, ...]] = [("network, MB", *(f"{keep:g}" for keep in FRACTIONS))]
    for name in PAPER:
        found = [cell for cell in content["cells"] if cell["network"] == name]
        if found:
            lines.append((f"{name}, the paper", *(f"{mb:.2f}" for mb in PAPER[name])))
        for bits in dict.fromkeys(cell["bits"] for cell in found):
            row = {cell["keep"]: cell["measured"] for cell in found if cell["bits"] == bits}
            label = f"{name}, measured" if bits is None else f"{name}, measured, {bits} bits"
            lines.append((label, *(f"{row[keep] / 1e6:.2f}" for keep in FRACTIONS)))
    return lines

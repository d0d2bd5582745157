"""How gradients are made in the comparison: as published, and with this package at equal measured bytes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert import convert
from ..data import Digits
from ..functional import SketchWarning
from ..memory import saved_bytes
from ..sketch import Sketch
from .tasks import Preset, Task

KEEP = 0.1
EXACT, PAPER, OURS = "exact", "paper", "ours"

# Adam's learning rates that the paper's authors tuned and published with their code.
PUBLISHED = {
    "fc": {"exact": 1.35e-3, "small": 6.45e-4, "same": 4.52e-4, "different": 9.34e-4, "project": 5.27e-4},
    "cnn": {"exact": 1.24e-3, "small": 4.3e-4, "same": 1.159e-3, "different": 2.139e-3},
}
# Where there is none, a pilot run of each of these decides.
GRID = {"fc": (4.5e-4, 9e-4, 1.35e-3), "cnn": (4.5e-4, 1.2e-3, 2.1e-3), "rnn": (1e-4, 3e-4, 1e-3)}
SMALL_BATCH = {"fc": 20, "cnn": 22, "rnn": 21}
PAPERS_BATCH = 150


@dataclass(frozen=True)
class Method:
    """kind: exact, paper (as published) or ours. rates: learning rates to choose from."""

    name: str
    kind: str
    batch: int
    sketch: Sketch | None
    rates: tuple[float, ...]


def build(task: Task, method: Method, inputs: int) -> nn.Module:
    """torch's own network, or the converted one; sampled RNNs keep their one-pixel inputs exactly."""
    network = task.make(inputs)
    if method.sketch is not None:
        layers = (nn.Linear, nn.Conv2d, nn.RNN)
        named = {name: method.sketch for name, m in network.named_modules() if isinstance(m, layers)}
        convert(network, named)
    return network


def loss(task: Task, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(task.feed(images)), labels)


def retained(task: Task, method: Method, digits: Digits) -> int:
    """Bytes that autograd keeps for the backward pass of one step, measured."""
    images, labels = digits.train_images[: method.batch].clone(), digits.train_labels[: method.batch].clone()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", SketchWarning)  # the RNN's pixels, which cannot be sampled
        network = build(task, method, images.shape[1])
        return saved_bytes(lambda: loss(task, network, images, labels)).total


def methods(task: Task, preset: Preset, digits: Digits) -> list[Method]:
    """The baselines, the paper's sketches, and ours with the largest keep whose measured bytes are no more
    than those of the paper's ``different``."""
    rates, grid = PUBLISHED.get(task.name, {}), GRID[task.name]

    def rate(name: str) -> tuple[float, ...]:
        return (rates[name],) if name in rates else grid

    small = max(2, SMALL_BATCH[task.name] * preset.batch // PAPERS_BATCH)
    found = [
        Method("exact", EXACT, preset.batch, None, rate("exact")),
        Method(f"exact, batch {small}", EXACT, small, None, rate("small")),
    ]
    for sampling in ("same", "different"):
        sketch = Sketch(KEEP, sampling, "with_replacement")
        found.append(Method(f"paper: {sampling}", PAPER, preset.batch, sketch, rate(sampling)))
    if task.name == "fc":
        sketch = Sketch(KEEP, "project")
        found.append(Method("paper: project", PAPER, preset.batch, sketch, rate("project")))
    allowed = retained(task, found[3], digits)
    for sampling, bits, rated in (
        ("same", None, "same"),
        ("different", None, "different"),
        ("rows", None, "rows"),
        ("different", 4, "exact"),  # little noise: rated like exact gradients
        (task.dithered, 4, "exact"),
        (task.dithered, 2, "exact"),
    ):
        ours = largest(task, preset.batch, sampling, bits, digits, allowed)
        if ours is not None:
            found.append(Method(str(ours), OURS, preset.batch, ours, rate(rated)))
    return found


def largest(
    task: Task, batch: int, sampling: str, bits: int | None, digits: Digits, allowed: int
) -> Sketch | None:
    """The sketch with the largest keep, in hundredths, whose measured bytes are allowed; None if none is."""
    low, high = 0, 100
    while low < high:
        middle = (low + high + 1) // 2
        sketch = Sketch(middle / 100, sampling, bits=bits)
        fits = retained(task, Method("", OURS, batch, sketch, ()), digits) <= allowed
        low, high = (middle, high) if fits else (low, middle - 1)
    return Sketch(low / 100, sampling, bits=bits) if low else None

"""The network of the paper (section 5: fully connected, MNIST), and the ways in which it is trained here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .. import nn
from ..data import CLASSES, Digits
from ..sketch import Sketch, saved_nbytes

HIDDEN = (300, 300, 300)

# Adam's learning rates. Those of exact gradients, the small batch, `same` and `different` are the ones that
# the paper's authors tuned for this network and published with their code; `rows` is not in the paper: the
# best of 3e-4, 6e-4, 1.2e-3 and 2.4e-3 after 2,000 steps on MNIST lies between the first two.
EXACT_RATE = 1.35e-3
SMALL_BATCH_RATE = 6.45e-4
SKETCH_RATES = {"same": 4.52e-4, "different": 9.34e-4, "rows": 4.5e-4}


@dataclass(frozen=True)
class Method:
    """One way of training: how many images a step uses, and what is kept of them for backward.

    memory_of_keep: for a small batch, the keep of the sketches whose memory it matches.
    """

    name: str
    batch: int
    sketch: Sketch | None
    learning_rate: float
    memory_of_keep: float | None = None


def exact(batch: int) -> Method:
    return Method("exact", batch, None, EXACT_RATE)


def small_batch(batch: int, keep: float) -> Method:
    return Method(f"exact, batch {batch}", batch, None, SMALL_BATCH_RATE, memory_of_keep=keep)


def sketched(batch: int, sketch: Sketch) -> Method:
    rate = EXACT_RATE if sketch.is_exact else SKETCH_RATES[sketch.sampling]
    return Method(str(sketch), batch, sketch, rate)


def build(pixels: int, sketch: Sketch | None) -> torch.nn.Sequential:
    """pixels-300-300-300-10 with ReLU; torch's own layers where sketch is None."""
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise((pixels, *HIDDEN, CLASSES)):
        if sketch is None:
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        else:
            layers += [nn.Linear(inputs, outputs, sketch=sketch), nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def predicted_bytes(method: Method, pixels: int) -> int:
    """What a training step keeps for backward, by the formula: nothing is run."""
    batch, floating = method.batch, torch.float32
    total = batch * CLASSES * floating.itemsize + batch * 8 + floating.itemsize  # loss: log p, labels, weight
    for features in (pixels, *HIDDEN):
        if method.sketch is not None and method.sketch.is_worthwhile(batch, features, floating):
            total += saved_nbytes(batch, features, floating, method.sketch)
        else:
            total += batch * features * floating.itemsize
    if method.sketch is not None:  # one bit an element in words of 32
        total += sum((batch * width + 31) // 32 * 4 for width in HIDDEN)
    return total


def largest_batch_within(limit: int, batch: int, retained: Callable[[int], int]) -> int:
    """The largest batch in 1..batch for which `retained(batch)` bytes fit in `limit`, at least 1."""
    low, high = 1, batch
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if retained(middle) <= limit else (low, middle - 1)
    return low


def loss(network: torch.nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(network(images), labels)


def standardised(digits: Digits) -> Digits:
    """Images flattened to [n, pixels], with the mean 0 and standard deviation 1 of all training pixels."""
    mean, deviation = digits.train_images.mean(), digits.train_images.std()
    train, test = (
        (images.flatten(1) - mean) / deviation for images in (digits.train_images, digits.test_images)
    )
    return Digits(train, digits.train_labels, test, digits.test_labels)

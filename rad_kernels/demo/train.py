"""Training runs that differ in the method alone: same initial weights, same minibatches, same evaluations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data import Digits
from .network import Method, build, loss

EVALUATIONS = 20
FINAL_EVALUATIONS = 5  # their mean is the result of a run
TRAINING_IMAGES_EVALUATED = 5000


@dataclass
class Curve:
    """One run: after steps[i] updates, the loss on the training images and the share of test images right."""

    seed: int
    steps: list[int] = field(default_factory=list)
    training_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    @property
    def final_loss(self) -> float:
        return statistics.fmean(self.training_loss[-FINAL_EVALUATIONS:])

    @property
    def final_accuracy(self) -> float:
        return statistics.fmean(self.test_accuracy[-FINAL_EVALUATIONS:])


def minibatches(images: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless index tensors [batch], without repetition within an epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(images, generator=generator)
        yield from order[: images // batch * batch].split(batch)


def train(
    method: Method, digits: Digits, batch: int, steps: int, seed: int, advance: Callable[[], None]
) -> Curve:
    """Trains once. A method with a smaller batch takes the first images of each minibatch of `batch`.

    `advance` is called after every step.
    """
    torch.manual_seed(seed)
    network = build(digits.train_images.shape[1], method.sketch)
    optimizer = torch.optim.Adam(network.parameters(), lr=method.learning_rate)
    evaluated_at = {round(steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    curve = Curve(seed)
    for step, indices in zip(range(1, steps + 1), minibatches(len(digits.train_images), batch, seed)):
        indices = indices[: method.batch]
        optimizer.zero_grad()
        loss(network, digits.train_images[indices], digits.train_labels[indices]).backward()
        optimizer.step()
        if step in evaluated_at:
            _evaluate(network, digits, step, curve)
        advance()
    return curve


@torch.no_grad()
def _evaluate(network: torch.nn.Module, digits: Digits, step: int, curve: Curve) -> None:
    network.eval()
    count = TRAINING_IMAGES_EVALUATED
    right = network(digits.test_images).argmax(1) == digits.test_labels
    curve.steps.append(step)
    curve.training_loss.append(loss(network, digits.train_images[:count], digits.train_labels[:count]).item())
    curve.test_accuracy.append(right.float().mean().item())
    network.train()

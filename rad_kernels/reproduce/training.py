"""One training run of one method: updates, evaluations, and the time that the updates alone took."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data import Digits
from ..demo.train import minibatches
from ..functional import SketchWarning
from .methods import Method, build, loss
from .tasks import Preset, Task

EVALUATIONS = 20
CHUNK = 500  # images that an evaluation takes at once


@dataclass
class Clocks:
    """Seconds of passing and of processor time between ``start`` and ``stop``, added up."""

    wall: float = 0.0
    cpu: float = 0.0

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]


def train(
    task: Task,
    method: Method,
    rate: float,
    preset: Preset,
    digits: Digits,
    seed: int,
    iterations: int,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """The curve of a run, as JSON: all methods of a seed see the same first weights and minibatches.

    A smaller batch takes the first images of each minibatch. Learning stops where the loss is no number; the
    rest of the curve is null then.
    """
    torch.manual_seed(seed)
    curve: dict[str, Any] = {name: [] for name in ("steps", "training_loss", "accuracy", "wall_s", "cpu_s")}
    evaluated_at = {max(1, round(iterations * i / EVALUATIONS)) for i in range(1, EVALUATIONS + 1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SketchWarning)
        network = build(task, method, digits.train_images.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        clocks, alive = Clocks(), True
        indices_of_steps = minibatches(len(digits.train_images), preset.batch, seed)
        for step, indices in zip(range(1, iterations + 1), indices_of_steps):
            if alive:
                clocks.start()
                alive = _update(task, network, optimizer, digits, indices[: method.batch])
                clocks.stop()
            if step in evaluated_at:
                found = _evaluate(task, network, digits, preset.evaluated) if alive else (None, None)
                for name, value in zip(curve, (step, *found, round(clocks.wall, 4), round(clocks.cpu, 4))):
                    curve[name].append(value)
            advance()
    return curve


def _update(
    task: Task, network: nn.Module, optimizer: torch.optim.Optimizer, digits: Digits, indices: torch.Tensor
) -> bool:
    """Whether the loss was finite, and so an update was made."""
    optimizer.zero_grad()
    value = loss(task, network, digits.train_images[indices], digits.train_labels[indices])
    if not math.isfinite(value.item()):
        return False
    value.backward()
    if task.clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), task.clip)
    optimizer.step()
    return True


@torch.inference_mode()
def _evaluate(task: Task, network: nn.Module, digits: Digits, count: int) -> tuple[float, float]:
    """(mean loss of the first training images, share of the first test images that are right)."""
    network.eval()
    images, labels = digits.train_images[:count], digits.train_labels[:count]
    losses = [
        loss(task, network, part, targets).item() * len(part)
        for part, targets in zip(images.split(CHUNK), labels.split(CHUNK))
    ]
    tests, targets = digits.test_images[:count], digits.test_labels[:count]
    right = [
        int((network(task.feed(part)).argmax(1) == wanted).sum())
        for part, wanted in zip(tests.split(CHUNK), targets.split(CHUNK))
    ]
    network.train()
    return round(sum(losses) / len(images), 6), round(sum(right) / len(tests), 6)

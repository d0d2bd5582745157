"""Bytes, peaks and times of one training step: forward and backward, without the optimizer."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..data import Digits
from ..memory import saved_bytes, step_peak
from .network import Method, build, loss, predicted_bytes

WARM_UP_ROUNDS = 10
TIMED_ROUNDS = 100


@dataclass(frozen=True)
class Cost:
    """retained, predicted: bytes kept for backward; peak: above the start of the step; time: seconds."""

    retained: int
    predicted: int
    peak: int
    time: float


def retained_bytes(method: Method, digits: Digits) -> int:
    images, labels = digits.train_images[: method.batch].clone(), digits.train_labels[: method.batch].clone()
    network = build(images.shape[1], method.sketch)
    return saved_bytes(lambda: loss(network, images, labels)).total


def costs(methods: list[Method], digits: Digits) -> list[Cost]:
    """Cost of each method; times are medians over rounds that run every method once."""
    steps = [_step(method, digits) for method in methods]
    times = _interleaved_times(steps)
    peaks = []
    for prepare, step in steps:
        prepare()
        peaks.append(step_peak(step))
    pixels = digits.train_images.shape[1]
    return [
        Cost(retained_bytes(method, digits), predicted_bytes(method, pixels), peak, seconds)
        for method, peak, seconds in zip(methods, peaks, times)
    ]


Step = tuple[Callable[[], None], Callable[[], None]]


def _step(method: Method, digits: Digits) -> Step:
    """(drop the gradients, one step). The step makes its own batch and holds on to nothing but the loss, as
    training does: what then keeps the batch alive until the backward pass is the graph alone."""
    images, labels = digits.train_images, digits.train_labels[: method.batch].clone()
    network = build(images.shape[1], method.sketch)
    return network.zero_grad, lambda: loss(network, images[: method.batch].clone(), labels).backward()


def _interleaved_times(steps: list[Step]) -> list[float]:
    samples: list[list[float]] = [[] for _ in steps]
    gc.disable()
    try:
        for round_ in range(WARM_UP_ROUNDS + TIMED_ROUNDS):
            for (prepare, step), mine in zip(steps, samples):
                prepare()
                start = time.perf_counter()
                step()
                if round_ >= WARM_UP_ROUNDS:
                    mine.append(time.perf_counter() - start)
    finally:
        gc.enable()
    return [statistics.median(mine) for mine in samples]

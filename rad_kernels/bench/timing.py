"""Times of several steps that take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

L2_FLUSH_BYTES = 256 * 2**20  # more than any GPU's L2 cache
QUEUE_CYCLES = 2_000_000  # of the GPU, about a millisecond: the host enqueues a step meanwhile


@dataclass(frozen=True)
class Step:
    """``prepare`` is not timed, ``run`` is."""

    prepare: Callable[[], Any]
    run: Callable[[], Any]


class Clock(Protocol):
    """Measures one call in seconds."""

    def __call__(self, run: Callable[[], Any]) -> float: ...


def wall_clock(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_clock(run: Callable[[], Any]) -> float:
    """Processor time of all threads: a busy machine does not stretch it, but it is not what passes."""
    start = time.process_time()
    run()
    return time.process_time() - start


class CudaClock:
    """GPU time between two events, with a cold L2 cache, after the host has enqueued the whole step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], Any]) -> float:
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            torch.cuda._sleep(QUEUE_CYCLES)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) * 1e-3


class CudaHostClock:
    """Host time until everything is enqueued: the overhead of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, run: Callable[[], Any]) -> float:
        torch.cuda.synchronize(self._device)
        seconds = wall_clock(run)
        torch.cuda.synchronize(self._device)
        return seconds


@dataclass(frozen=True)
class Rounds:
    """As many rounds as fit in ``seconds``, from ``least`` to ``most``, after ``warm_up`` untimed ones."""

    seconds: float = 4.0
    least: int = 7
    most: int = 300
    warm_up: int = 3

    def count(self, seconds_a_round: float) -> int:
        fitting = int(self.seconds / max(seconds_a_round, 1e-9))
        return max(self.least, min(self.most, fitting))


@dataclass(frozen=True)
class Timing:
    """Seconds of one step over the rounds; ratios are to the first step of the same rounds.

    ratio: median over the rounds of the quotient of two times that were taken one after the other.
    ratio_minimum: the quotient of the two minima.
    """

    median: float
    p20: float
    p80: float
    minimum: float
    ratio: float
    ratio_minimum: float
    rounds: int


def interleaved(steps: Mapping[str, Step], clock: Clock, rounds: Rounds) -> dict[str, list[float]]:
    """name -> seconds of every timed round. Each round runs every step once, every other one backwards."""
    order = list(steps.items())
    collecting = gc.isenabled()
    gc.disable()
    try:
        one_round = 0.0
        for _ in range(rounds.warm_up):
            begin = time.perf_counter()
            for _, step in order:
                step.prepare()
                clock(step.run)
            one_round = time.perf_counter() - begin
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds.count(one_round)):
            for name, step in order if number % 2 == 0 else order[::-1]:
                step.prepare()
                times[name].append(clock(step.run))
    finally:
        if collecting:
            gc.enable()
    return times


def summarise(times: Mapping[str, Sequence[float]]) -> dict[str, Timing]:
    """The statistics of ``interleaved``'s times; the first entry is the baseline."""
    baseline = next(iter(times.values()))
    return {name: _timing(mine, baseline) for name, mine in times.items()}


def _timing(mine: Sequence[float], baseline: Sequence[float]) -> Timing:
    quotients = [a / b for a, b in zip(mine, baseline, strict=True)]
    return Timing(
        median=statistics.median(mine),
        p20=quantile(mine, 0.2),
        p80=quantile(mine, 0.8),
        minimum=min(mine),
        ratio=statistics.median(quotients),
        ratio_minimum=min(mine) / min(baseline),
        rounds=len(mine),
    )


def quantile(values: Sequence[float], q: float) -> float:
    """Linearly interpolated, as numpy's default."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])

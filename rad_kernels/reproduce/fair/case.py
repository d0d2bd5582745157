"""One method, measured in a process of its own: ``python -m rad_kernels.reproduce.fair.case ORDER RESULT``.

ORDER is a JSON file with the task, the method, the plan and where the data lies; RESULT is written.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data import Digits
from ...demo.result import environment
from ...demo.train import minibatches
from ...functional import SketchWarning
from ...memory import step_peak
from .._runs import write_json
from ..tasks import TASKS, Task
from .methods import OFFLOAD, Method, build, loss, moved, retained

PILOT_SEED = 1000  # of no run that counts
CHUNK = 500  # images that an evaluation takes at once


@dataclass(frozen=True)
class Plan:
    """How a network is compared.

    batch: images of a minibatch. steps, seconds: where the losses of a run are compared; seconds are
    processor time of the updates alone. rates: Adam's learning rates, of which every method uses its own
    best. seeds: runs a method. points: evaluations on the way to either end. evaluated: images that each one
    looks at. rounds: timed steps.
    """

    batch: int
    steps: int
    seconds: float
    rates: tuple[float, ...]
    seeds: int
    points: int
    evaluated: int
    rounds: int


@dataclass
class Run:
    """A training run: what was found after steps[i] updates, which took seconds[i] of processor time.

    at_steps, at_seconds: the evaluation (steps, seconds, loss, accuracy) at either end; None if learning
    diverged before.
    """

    seed: int
    rate: float
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    at_steps: tuple[int, float, float, float] | None = None
    at_seconds: tuple[int, float, float, float] | None = None

    def note(self, step: int, seconds: float, found: tuple[float, float]) -> tuple[int, float, float, float]:
        """Keeps an evaluation, and returns it."""
        self.steps.append(step)
        self.seconds.append(round(seconds, 4))
        self.loss.append(round(found[0], 5))
        self.accuracy.append(round(found[1], 5))
        return step, self.seconds[-1], self.loss[-1], self.accuracy[-1]


def measure(task: Task, method: Method, plan: Plan, digits: Digits) -> dict[str, Any]:
    """Everything about a method: bytes, step, and runs with the rates that suit it."""
    several = len(plan.rates) > 1
    pilots = [train(task, method, plan, digits, PILOT_SEED, rate) for rate in plan.rates if several]
    best = {goal: _best(pilots, goal) if several else plan.rates[0] for goal in ("at_steps", "at_seconds")}
    runs = [
        train(task, method, plan, digits, seed, rate)
        for rate in dict.fromkeys(best.values())
        for seed in range(plan.seeds)
    ]
    return {
        "method": method.to_dict(),
        "retained_bytes": retained(task, method, digits),
        "moved_bytes": moved(task, method, digits) if method.way == OFFLOAD else 0,
        **step_cost(task, method, plan, digits),
        "rates": best,
        "pilots": [
            {"rate": run.rate, "at_steps": run.at_steps, "at_seconds": run.at_seconds} for run in pilots
        ],
        "runs": [vars(run) for run in runs],
    }


def _best(pilots: list[Run], goal: str) -> float:
    def final_loss(run: Run) -> float:
        end = getattr(run, goal)
        return math.inf if end is None else end[2]

    return min(pilots, key=final_loss).rate


def step_cost(task: Task, method: Method, plan: Plan, digits: Digits) -> dict[str, Any]:
    """Peak above the level at its start and time of a step: forward and backward, without the optimizer.

    The step makes its own batch and holds nothing but the loss, as training does.
    """
    torch.manual_seed(0)
    network = build(task, method, digits.train_images.shape[1])
    images, labels = digits.train_images, digits.train_labels[: method.batch].clone()

    def step() -> None:
        loss(task, method, network, images[: method.batch].clone(), labels).backward()

    processor, passed = _times(step, network.zero_grad, plan.rounds)
    network.zero_grad()
    return {
        "step_peak_bytes": step_peak(step),
        "step_processor_s": float(f"{statistics.median(processor):.4g}"),
        "step_wall_s": float(f"{statistics.median(passed):.4g}"),
    }


def _times(
    step: Callable[[], None], prepare: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Processor time and time that passes of each of the rounds; as many again, at most 3, warm up."""
    processor, passed = [], []
    gc.disable()
    try:
        for _ in range(min(rounds, 3) + rounds):
            prepare()
            start = time.process_time(), time.perf_counter()
            step()
            processor.append(time.process_time() - start[0])
            passed.append(time.perf_counter() - start[1])
    finally:
        gc.enable()
    return processor[-rounds:], passed[-rounds:]


def train(task: Task, method: Method, plan: Plan, digits: Digits, seed: int, rate: float) -> Run:
    """Trains until both ends of the plan are reached, from the same weights and on the same minibatches for
    all methods; a smaller batch takes the first images of each."""
    torch.manual_seed(seed)
    network = build(task, method, digits.train_images.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    run, seconds = Run(seed, rate), 0.0
    marks = {round(plan.steps * i / plan.points) for i in range(1, plan.points + 1)}
    passed = 0  # of the points at which the processor time is looked at
    for step, indices in enumerate(minibatches(len(digits.train_images), plan.batch, seed), 1):
        seconds += _update(task, method, network, optimizer, digits, indices[: method.batch])
        reached = min(int(seconds * plan.points / plan.seconds), plan.points)
        if reached > passed or step in marks:
            found = evaluate(task, network, digits, plan.evaluated)
            if not math.isfinite(found[0]):
                break
            end = run.note(step, seconds, found)
            run.at_steps = end if step == plan.steps else run.at_steps
            run.at_seconds = end if reached == plan.points > passed else run.at_seconds
            passed = reached
        if step >= plan.steps and passed == plan.points:
            break
    return run


def _update(
    task: Task,
    method: Method,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    digits: Digits,
    indices: torch.Tensor,
) -> float:
    """Processor seconds of the update."""
    start = time.process_time()
    optimizer.zero_grad()
    loss(task, method, network, digits.train_images[indices], digits.train_labels[indices]).backward()
    optimizer.step()
    return time.process_time() - start


@torch.inference_mode()
def evaluate(task: Task, network: nn.Module, digits: Digits, count: int) -> tuple[float, float]:
    """(mean loss of the first training images, share of the first test images that are right)."""
    network.eval()
    images, labels = digits.train_images[:count], digits.train_labels[:count]
    losses = [
        float(nn.functional.cross_entropy(network(task.feed(part)), wanted, reduction="sum"))
        for part, wanted in zip(images.split(CHUNK), labels.split(CHUNK))
    ]
    tests, labels = digits.test_images[:count], digits.test_labels[:count]
    right = [
        int((network(task.feed(part)).argmax(1) == wanted).sum())
        for part, wanted in zip(tests.split(CHUNK), labels.split(CHUNK))
    ]
    network.train()
    return sum(losses) / len(images), sum(right) / len(tests)


def main(order: Path, result: Path) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler behind the step's peak logs otherwise
    torch.set_num_threads(1)
    warnings.simplefilter("error", SketchWarning)  # a layer that stays exact is not the method asked for
    asked = json.loads(order.read_text(encoding="utf-8"))
    plan = Plan(**{**asked["plan"], "rates": tuple(asked["plan"]["rates"])})
    digits = Digits(*torch.load(asked["data"], mmap=True))
    before = os.getloadavg()[0]
    found = measure(TASKS[asked["task"]], Method.from_dict(asked["method"]), plan, digits)
    load = [round(before, 2), round(os.getloadavg()[0], 2)]
    write_json(result, {**found, "environment": {**environment(), "load": load}})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

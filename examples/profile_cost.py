"""What profiling costs in steps: times of a training step (forward and backward), of profile with and without
running, and of a prediction, in turns; writes a JSON file from which the table of docs/profile.md is made."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import gpt
import resnet
import torch
from torch import Tensor, nn

from rad_kernels import Sketch, predict, profile
from rad_kernels.demo.result import environment

Step = tuple[nn.Module, tuple[Tensor, Tensor], Callable[..., Tensor]]


def small_and_large(batches: tuple[int, int]) -> dict[str, Callable[[], Step]]:
    def larger_gpt(batch: int) -> Step:
        _, inputs, loss = gpt.step(batch)
        return gpt.GPT(width=128, depth=6), inputs, loss

    return {
        f"{name}, batch {batch}": lambda make=make, batch=batch: make(batch)
        for name, make in (("GPT, 6 blocks of 128", larger_gpt), ("ResNet-18, width 32", resnet.step))
        for batch in batches
    }


def timed(fn: Callable[[], Any]) -> float:
    """Processor seconds: on a machine that others use, passing time says little."""
    start = time.process_time()
    fn()
    return time.process_time() - start


def measure(make: Callable[[], Step], rounds: int) -> dict[str, float]:
    model, inputs, loss = make()

    def step() -> None:
        loss(model, *inputs).backward()
        model.zero_grad()

    tasks: dict[str, Callable[[], Any]] = {
        "step": step,
        "profile": lambda: profile(model, *inputs, loss=loss),
        "without running": lambda: profile(model, *inputs, loss=loss, run=False),
        "predict": lambda: predict(model, *inputs, loss=loss, sketch=Sketch(0.1)),
    }
    step()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            times[name].append(timed(task))
    return {name: median(values) for name, values in times.items()}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of which medians (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    torch.manual_seed(0)
    load, rows = os.getloadavg()[0], []
    for name, make in small_and_large((8, 64)).items():
        rows.append({"step_of": name, "seconds": measure(make, args.rounds)})
        print(
            name, *(f"{task} {1e3 * value:.0f} ms" for task, value in rows[-1]["seconds"].items()), sep="  "
        )
    content = {"environment": {**environment(), "load": [round(load, 2), round(os.getloadavg()[0], 2)]}}
    content |= {"rounds": args.rounds, "rows": rows}
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


if __name__ == "__main__":
    main()

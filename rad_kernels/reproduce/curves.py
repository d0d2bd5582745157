"""Figure 5 of the paper: training curves of its networks, as published and with this package's sketches."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from ..data import Digits
from ..demo.result import environment
from ._runs import Store
from .methods import Method, methods, retained
from .tasks import Preset, Task, samples
from .training import train

PILOT_SEED = 1000  # of no run that counts
FINAL_EVALUATIONS = 3  # their mean is the result of a run


class Shown(Protocol):
    """Tells how far the work is: ``start`` announces a run and returns what to call after each update."""

    def start(self, name: str) -> Callable[[], None]: ...


def run(
    task: Task,
    preset_name: str,
    data: Path | None,
    folder: Path,
    shown: Callable[[int, int], AbstractContextManager[Shown]],
) -> dict[str, Any]:
    """All runs of a task, those of earlier calls taken from ``folder``, as the content of a JSON file.

    ``shown`` is told how many runs and updates there are, pilots included.
    """
    preset = task.presets[preset_name]
    digits = samples(task, preset, data)
    found = methods(task, preset, digits)
    store = Store(folder / f"{task.name}-{preset_name}")
    runs, pilots = len(found) * preset.seeds, sum(len(m.rates) for m in found if len(m.rates) > 1)
    load_before = os.getloadavg()[0]
    with shown(runs + pilots, runs * preset.iterations + pilots * preset.pilot) as progress:
        rows = [_row(task, method, preset, digits, store, progress) for method in found]
    return {
        "environment": {**environment(), "load": [round(load_before, 2), round(os.getloadavg()[0], 2)]},
        "task": task.name,
        "title": task.title,
        "data": task.data_name if preset.real else "8x8 digits",
        "preset": preset_name,
        "settings": asdict(preset),
        "rows": rows,
    }


def _row(
    task: Task, method: Method, preset: Preset, digits: Digits, store: Store, progress: Shown
) -> dict[str, Any]:
    rate, pilots = _chosen_rate(task, method, preset, digits, store, progress)
    runs = []
    for seed in range(preset.seeds):
        settings = _settings(task, method, rate, preset, seed, preset.iterations)

        def work(seed: int = seed) -> dict[str, Any]:
            advance = progress.start(f"{method.name}, seed {seed}")
            return train(task, method, rate, preset, digits, seed, preset.iterations, advance)

        runs.append(store.get(f"{method.name}-{seed}", settings, work))
    return {
        "name": method.name,
        "kind": method.kind,
        "batch": method.batch,
        "sketch": str(method.sketch) if method.sketch else None,
        "rate": rate,
        "pilots": pilots,
        "retained_bytes": retained(task, method, digits),
        "runs": runs,
    }


def _chosen_rate(
    task: Task, method: Method, preset: Preset, digits: Digits, store: Store, progress: Shown
) -> tuple[float, dict[str, float | None]]:
    """The rate whose pilot ends with the lowest loss, and these losses; the only one without a pilot."""
    if len(method.rates) == 1:
        return method.rates[0], {}
    losses: dict[str, float | None] = {}
    for rate in method.rates:
        settings = _settings(task, method, rate, preset, PILOT_SEED, preset.pilot)

        def work(rate: float = rate) -> dict[str, Any]:
            advance = progress.start(f"{method.name}, pilot {rate:g}")
            return train(task, method, rate, preset, digits, PILOT_SEED, preset.pilot, advance)

        losses[f"{rate:g}"] = final(
            store.get(f"pilot-{method.name}-{rate:g}", settings, work), "training_loss"
        )
    best = min(method.rates, key=lambda rate: _or_infinity(losses[f"{rate:g}"]))
    return best, losses


def _or_infinity(value: float | None) -> float:
    return float("inf") if value is None else value


def _settings(
    task: Task, method: Method, rate: float, preset: Preset, seed: int, iterations: int
) -> dict[str, Any]:
    fixed = {key: value for key, value in asdict(preset).items() if key not in ("seeds", "pilot")}
    fixed["iterations"] = iterations
    sketch = str(method.sketch) if method.sketch else None
    return {
        **fixed,
        "task": task.name,
        "batch_of_method": method.batch,
        "sketch": sketch,
        "rate": rate,
        "seed": seed,
    }


def final(curve: dict[str, Any], name: str) -> float | None:
    """The mean of the last evaluations; None if the run diverged."""
    values = curve[name][-FINAL_EVALUATIONS:]
    return None if None in values else statistics.fmean(values)


def finals(row: dict[str, Any], name: str) -> list[float]:
    """Of the runs that did not diverge."""
    found = (final(curve, name) for curve in row["runs"])
    return [value for value in found if value is not None]

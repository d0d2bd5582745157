"""What the demo found: rows of one table, the curves behind them, and the JSON file that holds both."""

from __future__ import annotations

import json
import platform
import re
import statistics
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from .._version import __version__
from .measure import Cost
from .network import Method
from .train import Curve

DIGITS_KEPT = 5


@dataclass(frozen=True)
class Outcome:
    """A method, what its step costs, and its training runs, one a seed."""

    method: Method
    cost: Cost
    curves: list[Curve]

    @property
    def accuracies(self) -> list[float]:
        return [curve.final_accuracy for curve in self.curves]

    @property
    def training_loss(self) -> float:
        return statistics.fmean(curve.final_loss for curve in self.curves)

    @property
    def mean_accuracy(self) -> float:
        return statistics.fmean(self.accuracies)

    @property
    def accuracy_spread(self) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.curves) > 1 else 0.0


def environment() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "rad_kernels": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def as_dict(config: dict[str, Any], outcomes: list[Outcome]) -> dict[str, Any]:
    """Everything, for JSON: bytes are integers, times seconds, accuracies shares of the test images."""
    exact = outcomes[0].cost.retained
    return {
        "config": config,
        "environment": environment(),
        "rows": [
            {
                "method": outcome.method.name,
                "sketch": outcome.method.sketch.to_dict() if outcome.method.sketch else None,
                "batch": outcome.method.batch,
                "memory_of_keep": outcome.method.memory_of_keep,
                "learning_rate": outcome.method.learning_rate,
                "retained_bytes": outcome.cost.retained,
                "predicted_bytes": outcome.cost.predicted,
                "ratio_to_exact": round(outcome.cost.retained / exact, DIGITS_KEPT),
                "step_peak_bytes": outcome.cost.peak,
                "step_time_s": float(f"{outcome.cost.time:.4g}"),
                "training_loss": float(f"{outcome.training_loss:.4g}"),
                "test_accuracy": round(outcome.mean_accuracy, DIGITS_KEPT),
                "test_accuracy_std": round(outcome.accuracy_spread, DIGITS_KEPT),
                "test_accuracy_by_seed": [round(value, DIGITS_KEPT) for value in outcome.accuracies],
            }
            for outcome in outcomes
        ],
        "curves": {
            outcome.method.name: [_rounded(asdict(curve)) for curve in outcome.curves] for outcome in outcomes
        },
    }


def to_json(content: dict[str, Any]) -> str:
    """Indented, with each list of numbers on one line."""
    text = json.dumps(content, indent=2)
    return re.sub(r"\[([-+.\de,\s]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _rounded(curve: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [round(value, DIGITS_KEPT) for value in values] if isinstance(values, list) else values
        for name, values in curve.items()
    }

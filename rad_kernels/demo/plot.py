"""The demo's figure: test accuracy and training loss against the step, and the bytes kept for backward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind eyes tell apart; the first, for exact gradients, is black.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")


def draw(content: dict[str, Any], path: Path) -> None:
    """Writes the figure for the content of a demo's JSON as PNG."""
    config = content["config"]
    figure = Figure(figsize=(13, 4.4), dpi=120, layout="constrained")
    accuracy, loss, memory = figure.subplots(1, 3)

    _curves(accuracy, content, "test_accuracy", scale=100)
    accuracy.set(xlabel="training step", ylabel="test accuracy (%)")
    accuracy.set_ylim(_settled_minimum(content), None)
    accuracy.legend(loc="lower right", fontsize="small")

    _curves(loss, content, "training_loss", scale=1)
    loss.set(xlabel="training step", ylabel="training loss (nats)", yscale="log")

    _bars(memory, content)
    memory.set(xlabel="kept for backward (kB)")

    seeds = f"mean and range of {config['seeds']} seeds" if config["seeds"] > 1 else "one seed"
    figure.suptitle(f"{config['network']} on {config['data']['name']}, {seeds}", fontsize="medium")
    figure.savefig(path)


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _curves(axes: Axes, content: dict[str, Any], quantity: str, scale: float) -> None:
    for index, (name, curves) in enumerate(content["curves"].items()):
        steps = curves[0]["steps"]
        values = scale * np.array([curve[quantity] for curve in curves])
        line = "--" if content["rows"][index]["sketch"] is None else "-"
        axes.plot(steps, values.mean(0), line, color=_colour(index), label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=_colour(index), alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def _settled_minimum(content: dict[str, Any]) -> float:
    """Where the accuracy axis starts: below all that was seen after the first quarter of the training."""
    settled = [
        accuracy
        for curves in content["curves"].values()
        for curve in curves
        for accuracy in curve["test_accuracy"][len(curve["test_accuracy"]) // 4 :]
    ]
    return float(np.floor(100 * min(settled)))


def _bars(axes: Axes, content: dict[str, Any]) -> None:
    rows = content["rows"]
    kilobytes = [row["retained_bytes"] / 1e3 for row in rows]
    bars = axes.barh(
        [row["method"] for row in rows], kilobytes, color=[_colour(index) for index in range(len(rows))]
    )
    axes.bar_label(bars, [f"{value:,.1f}" for value in kilobytes], padding=3)
    axes.set_xlim(0, 1.25 * max(kilobytes))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)

"""The picture of a task's curves: loss by updates, loss by processor time, accuracy by bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ..bench.plot import COLOURS, MARKERS
from .findings import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"exact": "-", "paper": "--", "ours": "-"}


def draw(content: dict[str, Any], path: Path) -> None:
    """Writes a PNG. Lines are means over the seeds, bands their range."""
    figure = Figure(figsize=(17, 6), dpi=110, layout="constrained")
    by_steps, by_time, by_bytes = figure.subplots(1, 3)
    for number, row in enumerate(content["rows"]):
        colour = COLOURS[number % len(COLOURS)]
        losses = _stacked(row, "training_loss")
        style = ":" if number >= len(COLOURS) else STYLES[row["kind"]]
        for ax, name in ((by_steps, "steps"), (by_time, "cpu_s")):
            x = _stacked(row, name).mean(0)
            ax.plot(x, losses.mean(0), style, color=colour, label=row["name"], linewidth=1.4)
            ax.fill_between(x, losses.min(0), losses.max(0), color=colour, alpha=0.15, linewidth=0)
        _point(by_bytes, row, colour, MARKERS[number % len(MARKERS)])
    by_steps.set(xlabel="updates", ylabel="loss on training images", yscale="log")
    by_time.set(xlabel="processor time of the updates, s", ylabel="loss on training images", yscale="log")
    by_bytes.set(xlabel="bytes retained for backward", ylabel="test images right, %", xscale="log")
    for ax in (by_steps, by_time, by_bytes):
        ax.grid(which="both", alpha=0.25)
    lines = by_steps.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=6, fontsize="small")
    settings = content["settings"]
    figure.suptitle(
        f"{content['title']} on {content['data']}, batch {settings['batch']}, "
        f"{settings['iterations']} updates, "
        f"{len(content['rows'][0]['runs'])} seeds",
        fontsize="medium",
    )
    figure.savefig(path)


def _stacked(row: dict[str, Any], name: str) -> np.ndarray:
    """[seeds, evaluations]; not a number where a run has diverged."""
    return np.array([run[name] for run in row["runs"]], dtype=float)


def _point(ax: Axes, row: dict[str, Any], colour: str, marker: str) -> None:
    mean, spread = summary(row, "accuracy")
    if np.isfinite(mean):
        ax.errorbar(row["retained_bytes"], 100 * mean, 100 * spread, fmt=marker, color=colour, capsize=3)
        ax.annotate(f" {row['name']}", (row["retained_bytes"], 100 * mean), fontsize="x-small")

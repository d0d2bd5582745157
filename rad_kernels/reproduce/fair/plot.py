"""The comparison's figure: loss against updates and processor time, and bytes kept beside the peak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {"exact": "--", "checkpoint": ":", "offload": ":", "official": "-.", "ours": "-"}


def draw(content: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(15, 5), dpi=110, layout="constrained")
    by_steps, by_seconds, memory = figure.subplots(1, 3)
    _ends(by_steps, content, "at_steps", "steps")
    by_steps.set(xlabel="updates", ylabel="training loss (nats)", xlim=(0, content["plan"]["steps"]))
    _ends(by_seconds, content, "at_seconds", "seconds")
    by_seconds.set(
        xlabel="processor time of the updates (s)",
        ylabel="training loss (nats)",
        xlim=(0, content["plan"]["seconds"]),
    )
    by_seconds.legend(fontsize="x-small")
    _bars(memory, content)
    figure.suptitle(f"{content['title']} on {content['data']}: mean of {content['plan']['seeds']} seeds")
    figure.savefig(path)


def _ends(axes: Axes, content: dict[str, Any], goal: str, abscissa: str) -> None:
    """The runs with the rate that suits the goal, on a common axis."""
    for index, row in enumerate(content["rows"]):
        runs = [run for run in row["runs"] if run["rate"] == row["rates"][goal] and run[goal] is not None]
        if not runs:
            continue
        last = min(run[abscissa][-1] for run in runs)
        first = max(run[abscissa][0] for run in runs)
        common = np.linspace(first, max(first, min(last, content["plan"][abscissa])), 50)
        losses = np.array([np.interp(common, run[abscissa], run["loss"]) for run in runs])
        axes.plot(
            common,
            losses.mean(0),
            LINES[row["method"]["way"]],
            color=f"C{index}" if index < 10 else f"C{index - 10}",
            alpha=1 if index < 10 else 0.5,
            label=row["method"]["name"],
        )
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


def _bars(axes: Axes, content: dict[str, Any]) -> None:
    rows = content["rows"]
    names = [row["method"]["name"] for row in rows]
    place = np.arange(len(rows))
    axes.barh(place - 0.2, [row["retained_bytes"] / 1e6 for row in rows], 0.4, label="kept for backward")
    axes.barh(place + 0.2, [row["step_peak_bytes"] / 1e6 for row in rows], 0.4, label="peak of a step")
    axes.axvline(content["allowed_bytes"] / 1e6, color="black", linewidth=0.8, label="the budget")
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set(xlabel="MB", xscale="log")
    axes.legend(fontsize="x-small")
    axes.grid(axis="x", alpha=0.3)

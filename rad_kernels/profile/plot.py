"""The figure of a profile: memory over a step, and what each module retains, exact and under a sketch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .result import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIXED, FORWARD, BACKWARD, SKETCH = "#999999", "#0072B2", "#D55E00", "#009E73"
MEGABYTE = 1e6
SHOWN = 30  # modules: the largest, so that their names can be read


def draw(profile: Profile, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(13, 5.2), dpi=120, layout="constrained")
    over_time, by_module = figure.subplots(1, 2)
    _curve(over_time, profile)
    _bars(by_module, profile)
    figure.suptitle(f"{profile.model} on {profile.device}: memory of a training step", fontsize="medium")
    figure.savefig(path)


def _curve(axes: Axes, profile: Profile) -> None:
    curve = profile.curve
    fixed = profile.parameters + profile.buffers + (profile.optimizer or 0)
    scale, unit = (1e3, "time (ms)") if profile.ran else (1, "operation")
    start, turn = 0.0, scale * curve.backward
    times = [start, *(scale * time for time in curve.times)]
    levels = [level / MEGABYTE for level in (fixed, *(fixed + level for level in curve.levels))]
    base = fixed / MEGABYTE
    for colour, phase, inside in (
        (FORWARD, "forward", [time <= turn for time in times]),
        (BACKWARD, "backward", [time >= turn for time in times]),
    ):
        where = [index for index, is_inside in enumerate(inside) if is_inside]
        if where:
            xs, ys = [times[index] for index in where], [levels[index] for index in where]
            axes.fill_between(xs, base, ys, step="post", color=colour, alpha=0.5, linewidth=0, label=phase)
    axes.fill_between([start, times[-1]], 0, base, color=FIXED, alpha=0.5, linewidth=0)
    axes.step(times, levels, where="post", color="black", linewidth=0.7)
    axes.axhline(base, color=FIXED, label="parameters, buffers, optimizer state")
    axes.axhline(
        base + profile.step_peak / MEGABYTE, color="black", linestyle=":", label=f"{profile.needed:,} bytes"
    )
    if profile.prediction is not None and profile.prediction.peak is not None:
        peak = base + profile.prediction.peak / MEGABYTE
        axes.axhline(peak, color=SKETCH, linestyle=":", label=f"peak under {profile.sketch}")
    axes.set(xlabel=unit, ylabel="MB", ylim=(0, None))
    axes.legend(fontsize="small", loc="lower center")
    axes.grid(alpha=0.3)


def _bars(axes: Axes, profile: Profile) -> None:
    layers = sorted(profile.layers, key=lambda layer: -max(layer.retained, layer.predicted or 0))[:SHOWN]
    places = range(len(layers))
    sizes = [layer.retained / MEGABYTE for layer in layers]
    axes.barh(places, sizes, height=0.8, color=FORWARD, alpha=0.6, label=f"retained: {profile.retained:,}")
    if profile.prediction is not None:
        sizes = [(layer.predicted or 0) / MEGABYTE for layer in layers]
        label = f"under {profile.sketch}: {profile.predicted:,}"
        axes.barh(places, sizes, height=0.4, color=SKETCH, label=label)
    axes.set_yticks(places, [layer.name for layer in layers], fontsize="x-small")
    axes.invert_yaxis()
    axes.set(xlabel="MB kept for backward, by the module that saves it first")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)

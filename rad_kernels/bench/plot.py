"""The figures of a benchmark report."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .result import Report, Row, VarianceRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind eyes tell apart.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800")
MARKERS = "osD^vPX*"
BITS_STYLES = {"4 bit": "--", "2 bit": ":", "1 bit": "-."}


def draw(report: Report, path: Path) -> None:
    """Writes a PNG: the frontier of a variance run, else bars of the ratios.

    Raises:
        ValueError: the report is empty.
    """
    if report.variances:
        figure = _frontier(report)
    elif report.rows:
        figure = _ratios(report)
    else:
        raise ValueError("the report has no rows to plot")
    figure.savefig(path)


def _ratios(report: Report) -> Figure:
    """One panel a case: a bar a provider, a tick where its floor is."""
    panels = [(key, list(group)) for key, group in groupby(report.rows, lambda r: (r.suite, r.case, r.dtype))]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    tallest = max(len(rows) for _, rows in panels)
    figure = Figure(figsize=(5.2 * columns, (0.9 + 0.24 * tallest) * lines), dpi=110, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for ax, (key, rows) in zip(axes, panels):
        _bars(ax, " ".join(key), rows)
    for ax in list(figure.axes)[len(panels) :]:
        ax.remove()
    where = report.environment
    figure.suptitle(
        f"time relative to the first of each case; tick: floor.  {where.get('device', where['cpu'])}, "
        f"{where['threads']} CPU threads, torch {where['torch']}",
        fontsize="medium",
    )
    return figure


def _bars(ax: Axes, title: str, rows: list[Row]) -> None:
    names = [row.provider for row in rows]
    ratios = [row.ratio for row in rows]
    colours = ["#999999" if index == 0 else COLOURS[2] for index in range(len(rows))]
    bars = ax.barh(names, ratios, color=colours)
    ax.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=3, fontsize="small")
    for place, row in enumerate(rows):
        if row.floor is not None:
            ax.plot([row.floor] * 2, [place - 0.4, place + 0.4], color=COLOURS[4], linewidth=2)
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_xlim(0, 1.15 * max(ratios))
    ax.invert_yaxis()
    ax.set_title(title, fontsize="small")
    ax.tick_params(labelsize="small")


def _frontier(report: Report) -> Figure:
    """Relative variance of the weight gradients against bytes a value; dots measured, lines by formula."""
    figure = Figure(figsize=(10, 6.4), dpi=120, layout="constrained")
    ax = figure.subplots()
    families: dict[str, list[VarianceRow]] = {}
    for row in report.variances:
        families.setdefault(row.family, []).append(row)
    kinds = list(dict.fromkeys(name.split(" + ")[0] for name in families))
    for name, rows in families.items():
        rows = sorted(rows, key=lambda row: row.bytes_per_value)
        kind, _, bits = name.partition(" + ")
        colour, marker = COLOURS[kinds.index(kind)], MARKERS[kinds.index(kind)]
        style = BITS_STYLES.get(bits, "-")
        bytes_ = [row.bytes_per_value for row in rows]
        expected = [row.measured if row.formula is None else row.formula for row in rows]
        ax.plot(bytes_, expected, style, color=colour, linewidth=1.6)
        ax.plot(bytes_, [row.measured for row in rows], marker, color=colour, markersize=5)
        ax.plot([], [], marker + style, color=colour, label=name)
        if kind == "dither alone":
            for row in rows:
                label = f"{row.sketch.rsplit(':', 1)[1]} "
                ax.annotate(
                    label, (row.bytes_per_value, row.measured), ha="right", va="top", fontsize="small"
                )
    if (noise := report.settings.get("minibatch_noise")) is not None:
        ax.axhline(noise, color="#777777", linewidth=1, linestyle=":")
        label = f" noise of the minibatch itself ({report.settings['batch']} images)"
        ax.annotate(label, (0, noise), xycoords=("axes fraction", "data"), va="bottom", fontsize="small")
    ax.set(xscale="log", yscale="log", xlabel="bytes kept for each value of the activation (exact: 4)")
    ax.set_ylabel("variance of the weight gradients / their square")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(which="both", alpha=0.25)
    ax.legend(ncols=2, fontsize="small", loc="lower left")
    ax.set_title(f"{report.settings['network']} on {report.settings['data']}, one step", fontsize="medium")
    return figure

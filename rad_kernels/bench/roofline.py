"""The roofline of a benchmark report: rates that were reached, under what memory and arithmetic allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .plot import COLOURS, MARKERS
from .result import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(report: Report, path: Path) -> None:
    """Writes a PNG: for each dtype the roofline, and beside it the bandwidth of what only moves memory.

    Raises:
        ValueError: no row of the report states its least work.
    """
    rows = [row for row in report.rows if row.moved]
    if not rows:
        raise ValueError("the report has no row that states its least work")
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    tallest = max(sum(row.dtype == dtype and not row.flops for row in rows) for dtype in dtypes)
    height = max(5.5, 1.2 + 0.2 * tallest)
    figure = Figure(figsize=(15, height * len(dtypes)), dpi=110, layout="constrained")
    panels = figure.subplots(len(dtypes), 2, squeeze=False)
    for (left, right), dtype in zip(panels, dtypes):
        of_dtype, limits = [row for row in rows if row.dtype == dtype], report.limits[dtype]
        _roofline(left, [row for row in of_dtype if row.flops], limits, dtype)
        _bandwidths(right, [row for row in of_dtype if not row.flops], limits["bytes_per_s"])
    where = report.environment
    figure.suptitle(f"{where.get('device', where['cpu'])}, torch {where['torch']}", fontsize="medium")
    figure.savefig(path)


def _roofline(ax: Axes, rows: list[Row], limits: dict[str, float], dtype: str) -> None:
    """Least arithmetic over time, against least arithmetic over least bytes; both logarithmic."""
    flops, bandwidth = limits["flops_per_s"], limits["bytes_per_s"]
    ridge = flops / bandwidth
    intensities = [_intensity(row) for row in rows] or [ridge]
    ends = [min(ridge / 4, *intensities) / 2, max(ridge * 4, *intensities) * 2]
    places = [ends[0], ridge, ends[1]]
    ax.plot(places, [min(flops, place * bandwidth) for place in places], color="black", linewidth=1)
    providers = list(dict.fromkeys(row.provider for row in rows))
    for number, provider in enumerate(providers):
        mine = [row for row in rows if row.provider == provider]
        ax.plot(
            [_intensity(row) for row in mine],
            [(row.flops or 0) / row.median for row in mine],
            MARKERS[number // len(COLOURS) % len(MARKERS)],
            color=COLOURS[number % len(COLOURS)],
            label=provider,
        )
    ax.set(xscale="log", yscale="log", title=f"roofline, {dtype}")
    ax.set(xlabel="least FLOP for each least byte", ylabel="least FLOP for each second of the median")
    ax.grid(which="both", alpha=0.25)
    if providers:
        ax.legend(fontsize="small")


def _intensity(row: Row) -> float:
    return (row.flops or 0.0) / (row.moved or 1.0)


def _bandwidths(ax: Axes, rows: list[Row], bandwidth: float) -> None:
    names = [f"{row.suite} {row.case}: {row.provider}" for row in rows]
    shares = [(row.moved or 0.0) / row.median / bandwidth for row in rows]
    bars = ax.barh(range(len(rows)), shares, color=COLOURS[2])
    ax.bar_label(bars, [f"{share:.2f}" for share in shares], padding=3, fontsize="small")
    ax.set_yticks(range(len(rows)), names, fontsize="small")
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set_title("least bytes for each second, in parts of a copy's", fontsize="medium")

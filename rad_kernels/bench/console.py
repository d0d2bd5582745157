"""The tables that a run prints."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table

from .result import Report, Row

PLAIN_WIDTH = 160  # of output that goes to a file or pipe: no line of the table breaks

COLUMNS = (
    "provider",
    "time",
    "20-80 %",
    "minimum",
    "to first",
    "minima",
    "floor",
    "x limit",
    "retained",
    "peak",
)


def console() -> Console:
    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def print_rows(shown: Console, rows: list[Row]) -> None:
    """One table for each (suite, case, dtype)."""
    for (suite, case, dtype), group in groupby(rows, lambda row: (row.suite, row.case, row.dtype)):
        table = Table(title=f"{suite} {case} {dtype}", title_justify="left")
        for index, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if index else "left", no_wrap=True)
        for row in group:
            table.add_row(*cells(row))
        shown.print(table)


def cells(row: Row) -> tuple[str, ...]:
    return (
        row.provider,
        duration(row.median),
        f"{duration(row.p20)} - {duration(row.p80)}",
        duration(row.minimum),
        f"{row.ratio:.3f}",
        f"{row.ratio_minimum:.3f}",
        _optional(row.floor, ".3f"),
        _optional(row.to_limit, ".2f"),
        _optional(row.retained, ","),
        _optional(row.peak, ","),
    )


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def duration(seconds: float) -> str:
    """Three digits and a unit.

    >>> duration(0.0123)
    '12.3 ms'
    """
    for scale, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def print_variances(shown: Console, report: Report) -> None:
    table = Table(title="noise of the weight gradients, relative to their square", title_justify="left")
    for index, column in enumerate(("sketch", "bytes a value", "by formula", "measured", "± error")):
        table.add_column(column, justify="right" if index else "left")
    for row in report.variances:
        table.add_row(
            row.sketch,
            f"{row.bytes_per_value:.4g}",
            _optional(row.formula, ".3e"),
            f"{row.measured:.3e}",
            f"{row.error:.0e}",
        )
    shown.print(table)


NOTE = (
    "time: median, with the 20th and 80th percentile; to first: median over the rounds of the ratio to the "
    "first provider; minima: ratio of the minima; floor: that ratio if both were at their limit; x limit: "
    "time over the provider's own limit; retained: bytes kept for backward; peak: bytes above the start of "
    "the step."
)


def print_notes(shown: Console, report: Report) -> None:
    if report.rows:
        shown.print(NOTE)
    for dtype, limit in report.limits.items():
        gflops, gbytes = limit["flops_per_s"] / 1e9, limit["bytes_per_s"] / 1e9
        shown.print(f"limits of {dtype}, measured in this run: {gflops:,.0f} GFLOP/s, {gbytes:,.1f} GB/s")
    where = report.environment
    shown.print(", ".join(f"{key} {value}" for key, value in where.items()))

"""What the demo prints: a progress bar on a terminal, a line a run elsewhere, and one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .table import COLUMNS, notes, table_cells

PLAIN_WIDTH = 160  # of output that goes to a file or pipe: no line of the table breaks


def console() -> Console:
    shown = Console(highlight=False)
    return shown if shown.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


class Runs:
    """Tells how far a number of equally long training runs has come."""

    def __init__(self, shown: Console, bar: Progress | None, runs: int, steps: int) -> None:
        self._console, self._bar, self._runs, self._started = shown, bar, runs, 0
        self._task = bar.add_task("", total=runs * steps) if bar else None

    def start(self, name: str) -> Callable[[], None]:
        """Announces a run; returns what to call after each of its steps."""
        self._started += 1
        if self._bar is None or self._task is None:
            self._console.print(f"training {self._started}/{self._runs}: {name}")
            return lambda: None
        bar, task = self._bar, self._task
        bar.update(task, description=name)
        return lambda: bar.advance(task)


@contextmanager
def runs_shown(shown: Console, runs: int, steps: int) -> Iterator[Runs]:
    if not shown.is_terminal:
        yield Runs(shown, None, runs, steps)
        return
    text = TextColumn("{task.description:<28}")
    with Progress(text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=shown) as bar:
        yield Runs(shown, bar, runs, steps)


def print_result(shown: Console, content: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(COLUMNS):
        stacked = column.replace(" ", "\n")  # so that all columns fit in 80 characters
        table.add_column(stacked, justify="left" if index == 0 else "right", no_wrap=True)
    for cells in table_cells(content):
        table.add_row(*cells)
    shown.print(table)
    for note in notes(content):
        shown.print(note, soft_wrap=not shown.is_terminal)

"""What the curves print: the demo's progress, a table and the findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..demo.console import console
from .findings import sentences, table

__all__ = ["Runs", "console", "print_result", "print_table", "progress"]


class Runs:
    """Tells how far a number of runs with so many updates in all has come: a bar on a terminal, else a line
    a run."""

    def __init__(self, shown: Console, bar: Progress | None, runs: int, updates: int) -> None:
        self._console, self._bar, self._runs, self._started = shown, bar, runs, 0
        self._task = bar.add_task("", total=updates) if bar else None

    def start(self, name: str) -> Callable[[], None]:
        """Announces a run; returns what to call after each of its updates."""
        self._started += 1
        if self._bar is None or self._task is None:
            self._console.print(f"run {self._started} of at most {self._runs}: {name}", soft_wrap=True)
            return lambda: None
        bar, task = self._bar, self._task
        bar.update(task, description=name)
        return lambda: bar.advance(task)


@contextmanager
def _shown(shown: Console, runs: int, updates: int) -> Iterator[Runs]:
    if not shown.is_terminal:
        yield Runs(shown, None, runs, updates)
        return
    text = TextColumn("{task.description:<36}")
    with Progress(text, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=shown) as bar:
        yield Runs(shown, bar, runs, updates)


def progress(shown: Console) -> Callable[[int, int], AbstractContextManager[Runs]]:
    return partial(_shown, shown)


def print_result(shown: Console, content: dict[str, Any]) -> None:
    print_table(shown, f"{content['title']} on {content['data']}", table(content))
    for sentence in sentences(content):
        shown.print(f"- {sentence}", soft_wrap=True)


def print_table(shown: Console, title: str, lines: Sequence[Sequence[str]]) -> None:
    """``lines``: header and body."""
    header, *body = lines
    printed = Table(title=title, title_justify="left")
    for index, column in enumerate(header):
        printed.add_column(column, justify="right" if index else "left", no_wrap=True)
    for cells in body:
        printed.add_row(*cells)
    shown.print(printed)

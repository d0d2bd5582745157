"""What a plan is: the setting of each layer, its bytes, and the noise that is expected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PlanRow:
    """Layers that are decided on together (one, or several that share a pack).

    exact, planned: bytes retained for them as they were and under ``setting`` ("exact" leaves them alone).
    variance: that the setting adds to the gradients, summed over all their entries.
    """

    layers: tuple[str, ...]
    kind: str
    setting: str
    exact: int
    planned: int
    variance: float


@dataclass(frozen=True)
class Plan:
    """What ``fit`` decided; str() is a table, and rich prints a better one.

    budget: bytes; of: "retained" or "step peak". before, after: bytes retained by a step, measured. peak: of
    a step, measured. gradient: squared norm of the gradients in the probe step. variance: expected to be
    added to them. minibatch: variance of the gradients of the matrices over minibatches of this size,
    estimated from parts of this one. recompute: what is computed again in backward, or None.
    """

    rows: tuple[PlanRow, ...]
    budget: int
    of: str
    before: int
    after: int
    peak: int
    gradient: float
    variance: float
    minibatch: float
    recompute: str | None

    @property
    def used(self) -> float:
        """Share of the budget that is used."""
        return (self.after if self.of == "retained" else self.peak) / self.budget

    @property
    def settings(self) -> tuple[str, ...]:
        """The different settings."""
        return tuple(dict.fromkeys(row.setting for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers, for JSON."""
        return asdict(self)

    def notes(self) -> Iterator[str]:
        yield (
            f"retained {self.after:,} of {self.before:,} bytes ({self.after / self.before:.1%}), step peak "
            f"{self.peak:,}; budget {self.budget:,} ({self.of}), {self.used:.1%} of it used"
        )
        share = self.variance / self.gradient if self.gradient else float("nan")
        noise = f"expected variance {self.variance:.3g}, {share:.3g} of the squared gradient"
        if self.minibatch:
            noise += f", {self.variance / self.minibatch:.3g} of the minibatch's own {self.minibatch:.3g}"
        yield noise
        if self.recompute:
            yield f"computed again in backward: {self.recompute}"

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for row in self.rows:
            names = ", ".join(row.layers)
            share = row.variance / self.variance if self.variance else 0.0
            yield names, row.kind, row.setting, f"{row.exact:,}", f"{row.planned:,}", f"{share:.1%}"

    def __str__(self) -> str:
        cells = [COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))
            ).rstrip()
            for row in cells
        ]
        return "\n".join([*lines, *self.notes()])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for number, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if number < 3 else "right")
        for row in self._cells():
            table.add_row(*row)
        return Group(table, *self.notes())


COLUMNS = ("layers", "kind", "setting", "exact bytes", "planned", "of the variance")

"""What a conversion did to each layer, and what the model still keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One layer.

    layer: its class before. became: setting of the converted layer, "" if it was left alone. reason: why it
    was left alone, or a remark. before, after: bytes that it retained in the probe step, None without one.
    """

    name: str
    layer: str
    became: str
    reason: str
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class Kept:
    """What one operation of one module still retains after the conversion.

    instead: the function of this package that retains less, "" if there is none.
    """

    module: str
    op: str
    tensors: int
    bytes: int
    instead: str


@dataclass(frozen=True)
class Report:
    """``model.rad_report``; str() is a table.

    rows: one for each layer that was converted or could have been. kept: from the probe step, largest first.
    shared: groups of layers that share one pack. gated: modules whose product act(gate) * up is kept in a few
    bits. recomputed: modules whose attention is recomputed.
    before, after: all that a training step retains, None without a probe.
    """

    rows: tuple[Row, ...]
    kept: tuple[Kept, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    gated: tuple[str, ...] = ()
    recomputed: tuple[str, ...] = ()
    before: int | None = None
    after: int | None = None

    @property
    def converted(self) -> tuple[str, ...]:
        """Names of the converted layers."""
        return tuple(row.name for row in self.rows if row.became)

    @property
    def skipped(self) -> dict[str, str]:
        """Name -> reason of the layers left alone."""
        return {row.name: row.reason for row in self.rows if not row.became}

    def to_dict(self) -> dict[str, object]:
        """Plain lists, dicts, strings and numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cells = [("layer", "was", "is", "before", "after", "remark")]
        for row in self.rows:
            became = row.became or "as it was"
            cells.append((row.name, row.layer, became, _count(row.before), _count(row.after), row.reason))
        cells.append(("whole step", "", "", _count(self.before), _count(self.after), ""))
        lines = _table(cells)
        lines += [f"one pack for {', '.join(group)}" for group in self.shared]
        lines += [f"act_fn(gate_proj) * up_proj in a few bits: {name}" for name in self.gated]
        lines += [f"recomputed in backward: {name}" for name in self.recomputed]
        if self.kept:
            lines += ["", "still kept:"]
            kept = [("module", "operation", "tensors", "bytes", "instead")]
            kept += [(k.module, k.op, str(k.tensors), f"{k.bytes:,}", k.instead) for k in self.kept]
            lines += _table(kept)
        return "\n".join(lines)


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    numbers = {i for i, name in enumerate(rows[0]) if name in ("before", "after", "tensors", "bytes")}
    return [
        "  ".join(
            c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]

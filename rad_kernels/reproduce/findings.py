"""What the curves say: a table, and where the paper's finding holds, both made from the JSON alone."""

from __future__ import annotations

import statistics
from typing import Any

from .curves import finals

COLUMNS = ("method", "rate", "retained bytes", "of exact", "training loss", "test right, %", "cpu s")


def summary(row: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean and standard deviation over the seeds; infinite where every run diverged."""
    values = finals(row, name)
    if not values:
        return float("inf"), 0.0
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Header and a line a method."""
    exact = content["rows"][0]["retained_bytes"]
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in content["rows"]:
        (loss, loss_spread), (right, spread) = (summary(row, n) for n in ("training_loss", "accuracy"))
        seconds = statistics.fmean(run["cpu_s"][-1] for run in row["runs"])
        diverged = loss == float("inf")
        lines.append(
            (
                row["name"],
                f"{row['rate']:.3g}",
                f"{row['retained_bytes']:,}",
                f"{100 * row['retained_bytes'] / exact:.1f} %",
                "diverged" if diverged else f"{loss:.4f} ± {loss_spread:.4f}",
                "" if diverged else f"{100 * right:.2f} ± {100 * spread:.2f}",
                f"{seconds:.1f}",
            )
        )
    return lines


def verdict(content: dict[str, Any], better: str, worse: str) -> str:
    """One sentence on two methods' training losses, by the paired difference of their runs of one seed."""
    rows = {row["name"]: row for row in content["rows"]}
    mine, other = (finals(rows[name], "training_loss") for name in (better, worse))
    if len(mine) < len(rows[better]["runs"]) or len(other) < len(rows[worse]["runs"]):
        return f"{better} against {worse}: a run diverged."
    differences = [b - a for a, b in zip(mine, other)]
    mean = statistics.fmean(differences)
    says = "ends lower than" if mean > 0 else "ends higher than"
    clear = all(d > 0 for d in differences) or all(d < 0 for d in differences)
    count = len(differences)
    seeds = (
        "with the one seed" if count == 1 else f"{'with each' if clear else 'on the mean'} of {count} seeds"
    )
    return (
        f"{better} {says} {worse}: training loss {statistics.fmean(mine):.4f} against "
        f"{statistics.fmean(other):.4f}, {seeds}."
    )


def sentences(content: dict[str, Any]) -> list[str]:
    """The paper's finding first: its sketches against the smaller batch; then ours against the paper's."""
    rows = content["rows"]
    small = rows[1]["name"]
    papers = [row["name"] for row in rows if row["kind"] == "paper"]
    ours = [row for row in rows if row["kind"] == "ours"]
    found = [verdict(content, name, small) for name in papers]
    if "paper: same" in papers and "paper: different" in papers:
        found.append(verdict(content, "paper: different", "paper: same"))
    best_paper = min(papers, key=lambda name: summary(_named(rows, name), "training_loss")[0])
    for row in sorted(ours, key=lambda row: summary(row, "training_loss")[0]):
        found.append(verdict(content, row["name"], best_paper))
    if ours:
        best = min(ours, key=lambda row: summary(row, "training_loss")[0])
        found.append(verdict(content, best["name"], rows[0]["name"]))
    return found


def _named(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name)

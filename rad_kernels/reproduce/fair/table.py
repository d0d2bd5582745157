"""The comparison in words: a table, and sentences that say what came out, good or bad."""

from __future__ import annotations

import math
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

STEPS, SECONDS = "at_steps", "at_seconds"
LOSS, ACCURACY = 2, 3  # places in an evaluation
# Student's t: with so many degrees of freedom, 95 % lie within so many standard errors.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


def ends(row: dict[str, Any], goal: str) -> list[list[float]]:
    """At one end, for each seed, the evaluation with the rate that suits it; [] if one diverged."""
    found = [run[goal] for run in row["runs"] if run["rate"] == row["rates"][goal]]
    return [] if None in found else found


def columns(content: dict[str, Any]) -> tuple[str, ...]:
    steps, seconds = content["plan"]["steps"], content["plan"]["seconds"]
    return (
        "method",
        "batch",
        "kept for backward, bytes",
        "of the budget",
        "step peak, MB",
        "step, ms",
        f"loss after {steps} updates",
        "accuracy, %",
        f"updates in {seconds:g} s",
        f"loss after {seconds:g} s",
        "accuracy, %",
    )


def cells(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """One tuple of strings a method, in the order of ``columns``."""
    lines: list[tuple[str, ...]] = []
    for row in content["rows"]:
        late = ends(row, SECONDS)
        lines.append(
            (
                row["method"]["name"],
                str(row["method"]["batch"]),
                f"{row['retained_bytes']:,}",
                f"{row['retained_bytes'] / content['allowed_bytes']:.2f}",
                f"{row['step_peak_bytes'] / 1e6:.2f}",
                f"{1e3 * row['step_processor_s']:.2f}",
                _loss(ends(row, STEPS)),
                _accuracy(ends(row, STEPS)),
                f"{fmean(end[0] for end in late):,.0f}" if late else "diverged",
                _loss(late),
                _accuracy(late),
            )
        )
    return lines


def _loss(found: list[list[float]]) -> str:
    values = [end[LOSS] for end in found]
    if not values:
        return "diverged"
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _accuracy(found: list[list[float]]) -> str:
    return f"{100 * fmean(end[ACCURACY] for end in found):.1f}" if found else "diverged"


def notes(content: dict[str, Any]) -> list[str]:
    """What the columns mean, and what came out."""
    plan, rows = content["plan"], content["rows"]
    train, test = content["images"]
    loads = [value for row in rows for value in row["environment"]["load"]]
    seeds = f"{plan['seeds']} seeds (± standard deviation)" if plan["seeds"] > 1 else "one seed"
    sentences = [
        f"{content['title']} on {content['data']}, {train:,} training and {test:,} test images, Adam, "
        f"{seeds}. Equal seeds start from equal weights and see the same minibatches of {plan['batch']}; a "
        "smaller batch takes the first images of each.",
        f"The budget is {content['allowed_bytes']:,} bytes: what `different:0.1` retains. The other methods "
        "within it have the largest batch, or the largest keep in thousandths, whose measured bytes are no "
        "more. Parameters are not counted, the batch itself is, where autograd holds it.",
        "Step: forward and backward without the optimizer, in a process of its own; peak: above the memory "
        "at its start; time: median of processor time, one thread. The load of the machine was "
        f"{min(loads):.1f} to {max(loads):.1f}: where it is above 1, other work stretches the time that "
        "passes and, by way of shared caches and cores, processor time too, unevenly.",
        f"{_rates(plan)} Loss: of the first {plan['evaluated']:,} training images; accuracy: of as many test "
        "images at most. Better and worse are said of differences that Student's t at 95 % tells from none.",
    ]
    if edges := _at_the_edge(rows, plan["rates"]):
        sentences.append(f"The best rate is the least or the greatest for {edges}: a wider grid may help.")
    return [*sentences, *findings(content)]


def _rates(plan: dict[str, Any]) -> str:
    rates = ", ".join(f"{rate:g}" for rate in plan["rates"])
    if len(plan["rates"]) == 1:
        return f"All methods use the learning rate {rates}, so that none has the one that suits it best."
    return (
        f"Every method uses the best of the rates {rates} for {plan['steps']} updates, and the best for "
        f"{plan['seconds']:g} s of updates, each found with one run of a seed that does not count."
    )


def _at_the_edge(rows: list[dict[str, Any]], rates: list[float]) -> str:
    if len(rates) == 1:
        return ""
    outer = {min(rates), max(rates)}
    return ", ".join(row["method"]["name"] for row in rows if outer & set(row["rates"].values()))


def findings(content: dict[str, Any]) -> list[str]:
    """Sentences from the figures alone."""
    rows, allowed = content["rows"], content["allowed_bytes"]
    sketches = [row for row in rows if row["method"]["way"] == "ours"]
    rivals = [
        row
        for row in rows[1:]
        if row["method"]["way"] in ("exact", "checkpoint", "official") and row["retained_bytes"] <= allowed
    ]
    found = []
    plan = content["plan"]
    for goal, when in (
        (STEPS, f"After {plan['steps']} updates"),
        (SECONDS, f"After {plan['seconds']:g} s of updates"),
    ):
        for rival in rivals if sketches else ():
            verdicts = [f"{row['method']['name']} {_against(row, rival, goal)}" for row in sketches]
            found.append(f"{when}, loss against {rival['method']['name']}: {'; '.join(verdicts)}.")
    for row in rows:
        if row["moved_bytes"]:
            found.append(
                f"{row['method']['name']}: on a CPU torch's save_on_cpu moves nothing, so that it keeps what "
                f"exact gradients keep. On a GPU a step would copy {row['moved_bytes'] / 1e6:.2f} MB to the "
                "host, parameters included, and back; what that costs is not measured here."
            )
    relative = "; ".join(_relative(row, rows[0]) for row in rows[1:])
    whole = [row for row in rows if row["method"]["batch"] == plan["batch"]]
    peaks = " and ".join(_peak(min(group, key=lambda row: row["step_peak_bytes"])) for group in (rows, whole))
    return [
        *found,
        f"Retained bytes, peak and time a step, exact's being 1: {relative}.",
        f"The lowest peak, of all and of those with the whole batch: {peaks}.",
    ]


def _against(mine: dict[str, Any], other: dict[str, Any], goal: str) -> str:
    """The mean difference of the losses, paired by seed, its standard error, and whether it is certain."""
    ours, theirs = ends(mine, goal), ends(other, goal)
    if not ours or not theirs:
        return "cannot be compared, as one diverged"
    differences = [a[LOSS] - b[LOSS] for a, b in zip(ours, theirs)]
    difference = fmean(differences)
    if len(differences) == 1:
        return f"{difference:+.3f} (one seed)"
    error = stdev(differences) / math.sqrt(len(differences))
    certain = abs(difference) > T95[len(differences) - 1] * error
    verdict = ("better" if difference < 0 else "worse") if certain else "no clear difference"
    return f"{difference:+.3f} ± {error:.3f} ({verdict})"


def _peak(row: dict[str, Any]) -> str:
    return f"{row['method']['name']} with {row['step_peak_bytes'] / 1e6:.2f} MB"


def _relative(row: dict[str, Any], exact: dict[str, Any]) -> str:
    costs = ("retained_bytes", "step_peak_bytes", "step_processor_s")
    return f"{row['method']['name']} " + ", ".join(f"{row[cost] / exact[cost]:.2f}" for cost in costs)


def print_result(shown: Console, content: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns(content)):
        stacked = column.replace(" ", "\n")  # so that columns are narrow
        table.add_column(stacked, justify="left" if index == 0 else "right", no_wrap=True)
    for line in cells(content):
        table.add_row(*line)
    shown.print(table)
    for note in notes(content):
        shown.print(f"- {note}", soft_wrap=not shown.is_terminal)

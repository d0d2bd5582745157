"""The demo's table, from the content of its JSON: for the terminal here, for pages through `table_cells`."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

COLUMNS = (
    "method",
    "batch",
    "kept for backward, bytes",
    "by formula, bytes",
    "of exact",
    "step peak, MB",
    "step time, ms",
    "training loss",
    "test accuracy, %",
)


def table_cells(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """One tuple of strings a row, in the order of COLUMNS."""
    several = content["config"]["seeds"] > 1
    cells: list[tuple[str, ...]] = []
    for row in content["rows"]:
        spread = f" ± {100 * row['test_accuracy_std']:.1f}" if several else ""
        cells.append(
            (
                row["method"],
                str(row["batch"]),
                f"{row['retained_bytes']:,}",
                f"{row['predicted_bytes']:,}",
                f"{row['ratio_to_exact']:.3f}",
                f"{row['step_peak_bytes'] / 1e6:.2f}",
                f"{1e3 * row['step_time_s']:.2f}",
                f"{row['training_loss']:.2g}",
                f"{100 * row['test_accuracy']:.1f}{spread}",
            )
        )
    return cells


def notes(content: dict[str, Any]) -> list[str]:
    """What the columns mean, and what came out, in sentences."""
    config, rows = content["config"], content["rows"]
    data = config["data"]
    seeds = f"{config['seeds']} seeds (± standard deviation)" if config["seeds"] > 1 else "one seed"
    rates = ", ".join(f"{row['method']} {row['learning_rate']:g}" for row in rows)
    threads = content["environment"]["threads"]
    share = rows[0]["test_accuracy"]
    error = 100 * (share * (1 - share) / data["test"]) ** 0.5
    return [
        f"Data: {data['name']}, {data['train']:,} training and {data['test']:,} test images of "
        f"{data['size']} pixels. Network {config['network']}, Adam, {config['steps']:,} steps; all methods "
        "see the same minibatches and start from the same weights.",
        "Kept for backward: all that autograd retains except parameters, measured, and as the formula "
        "predicts it. Step: forward and backward, without the optimizer; peak: above the memory at its "
        f"start; time: median, {threads} CPU thread{'s' if threads > 1 else ''}.",
        f"Training loss and test accuracy: mean of the last {config['final_evaluations']} of "
        f"{config['evaluations']} evaluations, {seeds}. The standard error of an accuracy on "
        f"{data['test']:,} images is {error:.1f} points.",
        f"Learning rates: {rates} (rows: chosen on MNIST for this demo; others: published with the paper).",
        *comparisons(content),
    ]


def comparisons(content: dict[str, Any]) -> list[str]:
    """A sentence a sketch: against the small batch that keeps as many bytes, paired by seed."""
    rows = content["rows"]
    small = {row["memory_of_keep"]: row for row in rows if row["memory_of_keep"] is not None}
    sentences = []
    for row in rows:
        other = small.get(row["sketch"]["keep"]) if row["sketch"] else None
        if other is None:
            continue
        pairs = zip(row["test_accuracy_by_seed"], other["test_accuracy_by_seed"])
        gains = [100 * (mine - theirs) for mine, theirs in pairs]
        spread = f" ± {stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
        sentences.append(
            f"{row['method']} against batch {other['batch']} in the same memory: {fmean(gains):+.2f}{spread} "
            "points of test accuracy, "
            f"training loss {row['training_loss']:.3g} against {other['training_loss']:.3g}."
        )
    return sentences

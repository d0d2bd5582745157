"""Sampled paths and injected matrices (the paper's section 3): exact variances, over every outcome."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .. import graph
from ..demo.result import environment
from ._runs import write_json

WIDTH = 4
NETWORKS = 9  # of random weights, of which the median is told
PATHS = (1, 4, 16)
# Layers of the networks. Each layer more has WIDTH times the paths and outcomes.
DEPTHS = {"ci": (1, 2), "desk": (1, 2, 3, 4), "paper": (1, 2, 3, 4, 5)}
SAMPLED = 3  # paths marked in the drawing


def example(x1: Any, x2: Any) -> Any:
    """The paper's figure 1."""
    a = np.exp(x1)
    b = np.sin(x2)
    c = b * x2
    d = a * c
    return a * d


def weights(depth: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH) for _ in range(depth)]


def by_arrays(depth: int, seed: int) -> graph.LinearGraph:
    """sum of a network of tanh layers: a vertex is a whole layer."""
    matrices = weights(depth, seed)

    def network(x: Any) -> Any:
        for matrix in matrices:
            x = np.tanh(matrix @ x)
        return x.sum()

    return graph.trace(network, np.linspace(-1, 1, WIDTH))


def by_scalars(depth: int, seed: int) -> graph.LinearGraph:
    """The same network: a vertex is a number, so that paths go through single units."""
    matrices = weights(depth, seed)

    def network(*x: Any) -> Any:
        units = list(x)
        for matrix in matrices:
            units = [np.tanh(sum(w * u for w, u in zip(row, units, strict=True))) for row in matrix]
        return sum(units[1:], start=units[0])

    return graph.trace(network, *np.linspace(-1, 1, WIDTH))


def relative_variance(estimates: list[list[Any]], exact: list[Any]) -> float:
    """Of equally likely estimates, relative to the gradient's square."""
    errors = [sum(np.square(a - b).sum() for a, b in zip(found, exact, strict=True)) for found in estimates]
    return float(np.mean(errors) / sum(np.square(e).sum() for e in exact))


def variances(depth: int, seed: int) -> tuple[float, float, float]:
    """Relative ones of one path, and of one unit of the last layer and of every layer."""
    scalars, arrays = by_scalars(depth, seed), by_arrays(depth, seed)
    paths = [scalars.path_estimate([path]) for path in scalars.paths()]
    layers = ["tanh", *(f"tanh_{i}" for i in range(2, depth + 1))]

    def injected(groups: list[list[str]]) -> float:
        injection = graph.Injection(arrays, groups)
        found = [injection.estimate(outcome) for outcome in injection.outcomes()]
        return relative_variance(found, arrays.derivatives())

    one_path = relative_variance(paths, scalars.derivatives())
    return one_path, injected([layers[-1:]]), injected([[name] for name in layers])


def depth_row(depth: int) -> dict[str, Any]:
    one_path, last, every = np.median([variances(depth, seed) for seed in range(NETWORKS)], axis=0)
    return {
        "depth": depth,
        "paths": by_scalars(depth, 0).path_count,
        "path_variance": float(one_path),
        "last_layer": float(last),
        "every_layer": float(every),
    }


def measure(name: str) -> dict[str, Any]:
    g = graph.trace(example, 0.5, 2.0)
    paths = list(g.paths())
    return {
        "environment": environment(),
        "preset": name,
        "width": WIDTH,
        "networks": NETWORKS,
        "example": {
            "paths": [str(path) for path in paths],
            "gradient": [float(d) for d in g.derivatives()],
            "one_path_variance": relative_variance([g.path_estimate([p]) for p in paths], g.derivatives()),
        },
        "rows": [depth_row(depth) for depth in DEPTHS[name]],
    }


SAMPLES = tuple(f"{n} path{'s' * (n > 1)}" for n in PATHS)
HEADER = ("layers", "paths", *SAMPLES, "P at the last layer", "P at every layer")


def table(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Relative variances; n paths have 1/n of the variance of one."""
    lines: list[tuple[str, ...]] = [HEADER]
    for row in content["rows"]:
        by_paths = (f"{row['path_variance'] / n:.3g}" for n in PATHS)
        injected = (f"{row[where]:.3g}" for where in ("last_layer", "every_layer"))
        lines.append((str(row["depth"]), f"{row['paths']:,}", *by_paths, *injected))
    return lines


def draw(content: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from ..bench.plot import COLOURS, MARKERS

    figure = Figure(figsize=(7.5, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    rows = content["rows"]
    depths = [row["depth"] for row in rows]
    lines = {name: [row["path_variance"] / n for row in rows] for name, n in zip(SAMPLES, PATHS, strict=True)}
    lines["one unit of the last layer"] = [row["last_layer"] for row in rows]
    lines["one unit of every layer"] = [row["every_layer"] for row in rows]
    for number, (label, values) in enumerate(lines.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(depths, values, marker=marker, color=colour, label=label)
    axes.set(xlabel=f"layers of {content['width']} units", ylabel="relative variance, median", yscale="log")
    axes.set_xticks(depths)
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(path)


def run(args: argparse.Namespace) -> None:
    """Writes ``out``/graph-PRESET.json and .png and the drawing of the example, and prints the table."""
    from . import console

    shown = console.console()
    content = measure(args.preset)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"graph-{args.preset}.json"
    write_json(path, content)
    draw(content, path.with_suffix(".png"))
    g = graph.trace(example, 0.5, 2.0)
    drawing = args.out / "graph-example.png"
    graph.draw(g, drawing, g.sample_paths(SAMPLED, np.random.default_rng(0)))
    title = f"relative variance of gradients, median of {NETWORKS} networks of {WIDTH} units a layer"
    console.print_table(shown, title, table(content))
    shown.print(f"written: {path}, {path.with_suffix('.png').name} and {drawing.name}", soft_wrap=True)

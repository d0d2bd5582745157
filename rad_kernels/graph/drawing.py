"""A picture of a linearised graph: layers from the inputs up, sampled paths in colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path as FilePath

from .linear import Edge, LinearGraph, Path

GREY, MARKED = "#888888", "#D55E00"
BEND = 0.5  # of edges that pass a layer by, so that they do not hide behind vertices
LABEL = {"fc": "white", "ec": "none", "pad": 1}


def layers(graph: LinearGraph) -> list[int]:
    """Of each vertex, the number of edges of the longest path that leads there."""
    level = [0] * len(graph.vertices)
    for vertex in graph.vertices:
        level[vertex.index] = max((level[e.source] + 1 for e in graph.into[vertex.index]), default=0)
    return level


def places(graph: LinearGraph) -> list[tuple[float, float]]:
    """(across, up) of each vertex: layers side by side, each in the order of its parents."""
    level = layers(graph)
    across = [0.0] * len(graph.vertices)
    for height in range(max(level) + 1):
        row = [v.index for v in graph.vertices if level[v.index] == height]

        def wanted(i: int) -> float:
            parents = [across[e.source] for e in graph.into[i]]
            return sum(parents) / len(parents) if parents else 0.0

        row.sort(key=wanted)
        for position, i in enumerate(row):
            across[i] = 1.6 * (position - (len(row) - 1) / 2)
    return [(across[v.index], float(level[v.index])) for v in graph.vertices]


def label(edge: Edge) -> str:
    shape = "x".join(map(str, edge.jacobian.shape))
    if edge.jacobian.size == 1:
        return f"{float(edge.jacobian.reshape(-1)[0]):.3g}"
    return f"diag {shape}" if edge.is_diagonal else shape


def draw(graph: LinearGraph, file: str | FilePath, marked: Sequence[Path] = ()) -> None:
    """Writes the graph as a picture; needs matplotlib.

    Edges show their Jacobian: a scalar's value, else its shape, "diag" where it is condensed. Edges of
    ``marked`` paths are coloured, the wider the more often they were sampled.

    Args:
        graph: from ``trace``.
        file: its suffix says the format (.png, .pdf, .svg).
        marked: sampled paths.
    """
    from matplotlib.figure import Figure

    place, level = places(graph), layers(graph)
    wide = max(x for x, _ in place) - min(x for x, _ in place)
    figure = Figure(figsize=(3.5 + wide, 2 + 1.1 * max(level)), dpi=120, layout="constrained")
    axes = figure.subplots()
    times = Counter(id(edge) for path in marked for edge in path.edges)
    for edge in graph.edges:
        count = times[id(edge)]
        colour = MARKED if count else GREY
        (x, y), (to_x, to_y) = start, end = place[edge.source], place[edge.target]
        outwards = BEND if x > to_x else -BEND
        bend = outwards if level[edge.target] - level[edge.source] > 1 else 0.0
        arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1 + min(count, 5), "shrinkA": 14, "shrinkB": 14}
        axes.annotate("", end, start, arrowprops={**arrow, "connectionstyle": f"arc3,rad={bend}"})
        middle = (x + to_x + bend * (to_y - y)) / 2, (y + to_y - bend * (to_x - x)) / 2
        axes.text(*middle, label(edge), color=colour, fontsize=7, ha="center", va="center", bbox=LABEL)
    for vertex in graph.vertices:
        box = {"boxstyle": "round", "fc": "#DCEBF7" if vertex.index in graph.inputs else "white"}
        axes.text(*place[vertex.index], vertex.name, ha="center", va="center", fontsize=9, bbox=box)
    xs, ys = zip(*place, strict=True)
    axes.set_xlim(min(xs) - 1.1, max(xs) + 1.1)
    axes.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(file)

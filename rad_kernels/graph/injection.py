"""Random matrix injection: at chosen vertices a P that is zero but for ones on its diagonal, scaled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .linear import Edge, Floats, LinearGraph, Vertex, as_count, as_generator

Outcome = Sequence[NDArray[np.int64]]  # of each group, the elements that were drawn


@dataclass(frozen=True, eq=False)
class Injection:
    """Groups of vertices, of each of which ``draws`` elements are drawn uniformly with replacement.

    A group's elements are the elements of all its vertices, N together. P has ``N / draws`` on the diagonal
    for each time that an element was drawn, so E[P] = I. Right-multiplied by P, the Jacobians that leave the
    group select those elements, and nothing else behind the group is needed. Groups draw independently.

    Args:
        graph: from ``trace``.
        groups: each a list of names of vertices, no two of which lie on one path: P's elements are not
            independent of each other, so a product of two of them would be biased.
        draws: of each group.

    Raises:
        TypeError: groups is no list of lists of names, or draws no integer.
        ValueError: a name is unknown or used twice, a group is empty, two of its vertices lie on one path, or
            draws is less than 1.
    """

    graph: LinearGraph
    groups: Sequence[Sequence[str]]
    draws: int = 1

    def __post_init__(self) -> None:
        as_count("draws", self.draws)
        if isinstance(self.groups, str) or any(isinstance(group, str) for group in self.groups):
            raise TypeError(f"groups must be a list of lists of names, got {self.groups!r}")
        names = [name for group in self.groups for name in group]
        if len(set(names)) < len(names):
            raise ValueError(f"groups must name each vertex once, got {self.groups!r}")
        for group in self._vertices:
            if not group:
                raise ValueError(f"groups must not have an empty group, got {self.groups!r}")
            for first, second in itertools.combinations(group, 2):
                if second.index in self._behind(first):
                    raise ValueError(
                        f"{first.name!r} and {second.name!r} lie on one path and must not share a group"
                    )

    @cached_property
    def _vertices(self) -> list[list[Vertex]]:
        return [
            sorted((self.graph.vertex(name) for name in group), key=lambda v: v.index)
            for group in self.groups
        ]

    @property
    def sizes(self) -> list[int]:
        """N of each group."""
        return [sum(v.size for v in group) for group in self._vertices]

    def sample(self, rng: np.random.Generator) -> Outcome:
        """One outcome: of each group [draws] elements."""
        rng = as_generator(rng)
        return [rng.integers(size, size=self.draws) for size in self.sizes]

    def outcomes(self) -> Iterator[Outcome]:
        """All outcomes, which are equally likely: prod N^draws of them."""
        each = [itertools.product(range(size), repeat=self.draws) for size in self.sizes]
        for outcome in itertools.product(*each):
            yield [np.array(drawn, np.int64) for drawn in outcome]

    def estimate(self, outcome: Outcome) -> list[Floats]:
        """The unbiased estimate of the derivative by each input."""
        return self.graph.accumulate(self._scales(outcome))

    def entries(self, outcome: Outcome) -> int:
        """How many numbers of the local Jacobians the estimate needs."""
        kept = {number: scale != 0 for number, scale in self._scales(outcome).items()}

        def needed(edge: Edge) -> int:
            ends = [
                kept.get(end, np.ones(self.graph.vertices[end].size, bool))
                for end in (edge.target, edge.source)
            ]
            if edge.is_diagonal:
                return int((ends[0] & ends[1]).sum())
            return int(ends[0].sum() * ends[1].sum())

        return sum(map(needed, self.graph.edges))

    def _scales(self, outcome: Outcome) -> dict[int, Floats]:
        """The diagonals of P by vertex."""
        scales = {}
        for group, drawn, size in zip(self._vertices, outcome, self.sizes, strict=True):
            diagonal = np.bincount(drawn, minlength=size) * (size / self.draws)
            for vertex, part in zip(
                group, np.split(diagonal, np.cumsum([v.size for v in group])[:-1]), strict=True
            ):
                scales[vertex.index] = part
        return scales

    def _behind(self, first: Vertex) -> set[int]:
        """The vertices that depend on this one."""
        found = {first.index}
        for vertex in self.graph.vertices[first.index :]:
            if any(edge.source in found for edge in self.graph.into[vertex.index]):
                found.add(vertex.index)
        return found

"""The linearised computational graph: local Jacobians on edges, Bauer's formula, path sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vertex:
    """A variable: an input by its parameter's name, or what an operation made, with its value."""

    index: int
    name: str
    value: Floats

    @property
    def size(self) -> int:
        return self.value.size


@dataclass(frozen=True, eq=False)
class Edge:
    """The local Jacobian of ``target`` by ``source``, both vertex numbers.

    ``jacobian`` is [target size, source size], values in row-major order, or, where the operation works
    element by element, just the diagonal [size].
    """

    source: int
    target: int
    jacobian: Floats

    @property
    def is_diagonal(self) -> bool:
        return self.jacobian.ndim == 1


def times(left: Floats, jacobian: Floats) -> Floats:
    """left [m, target size] @ jacobian, a diagonal one in a single pass over left."""
    return left * jacobian if jacobian.ndim == 1 else left @ jacobian


@dataclass(frozen=True)
class Path:
    """Edges from an input to the output; none where the output is the input."""

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    source: int

    def __str__(self) -> str:
        return " -> ".join(self.names)


def as_generator(rng: object) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng must be a numpy.random.Generator, got {rng!r}")
    return rng


def as_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


@dataclass(frozen=True, eq=False)
class LinearGraph:
    """Vertices in the order in which they were computed, edges, and the numbers of inputs and output.

    Derivatives come as one array for each input, of shape output.shape + input.shape.
    """

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    inputs: tuple[int, ...]
    output: int

    @property
    def value(self) -> Floats:
        """The function's value."""
        return self.vertices[self.output].value

    @property
    def entries(self) -> int:
        """How many numbers the local Jacobians are: what reverse accumulation has to have kept."""
        return sum(edge.jacobian.size for edge in self.edges)

    @cached_property
    def into(self) -> tuple[tuple[Edge, ...], ...]:
        """The edges that end in each vertex."""
        found: list[list[Edge]] = [[] for _ in self.vertices]
        for edge in self.edges:
            found[edge.target].append(edge)
        return tuple(map(tuple, found))

    @cached_property
    def path_counts(self) -> tuple[int, ...]:
        """Of each vertex, how many paths lead there from the inputs."""
        counts = [int(v.index in self.inputs) for v in self.vertices]
        for vertex in self.vertices:
            counts[vertex.index] += sum(counts[edge.source] for edge in self.into[vertex.index])
        return tuple(counts)

    @property
    def path_count(self) -> int:
        """How many paths lead from the inputs to the output: the terms of Bauer's formula."""
        return self.path_counts[self.output]

    def vertex(self, name: str) -> Vertex:
        """The vertex of that name.

        Raises:
            ValueError: there is none.
        """
        for vertex in self.vertices:
            if vertex.name == name:
                return vertex
        raise ValueError(
            f"no vertex is called {name!r}; there are {', '.join(v.name for v in self.vertices)}"
        )

    def derivatives(self) -> list[Floats]:
        """Reverse accumulation: the exact derivative by each input."""
        return self.accumulate({})

    def accumulate(self, scale: dict[int, Floats]) -> list[Floats]:
        """Reverse accumulation with a diagonal matrix, if ``scale`` has one, put at each vertex."""
        size = self.vertices[self.output].size
        adjoints = [np.zeros((size, v.size)) for v in self.vertices]
        adjoints[self.output] += np.eye(size)
        for vertex in reversed(self.vertices):
            if vertex.index in scale:
                adjoints[vertex.index] *= scale[vertex.index]
            for edge in self.into[vertex.index]:
                adjoints[edge.source] += times(adjoints[vertex.index], edge.jacobian)
        return self._shaped(adjoints)

    def paths(self) -> Iterator[Path]:
        """All paths, those of the first input first."""
        leaving: list[list[Edge]] = [[] for _ in self.vertices]
        for edge in self.edges:
            leaving[edge.source].append(edge)

        def onwards(edges: tuple[Edge, ...], at: int) -> Iterator[tuple[Edge, ...]]:
            if at == self.output:
                yield edges
            for edge in leaving[at]:
                yield from onwards((*edges, edge), edge.target)

        for source in self.inputs:
            for edges in onwards((), source):
                yield self._path(source, edges)

    def bauer(self) -> list[Floats]:
        """Bauer's formula as it stands: the exact derivative as a sum over all paths, often very many."""
        return self._sum_of_products(self.paths(), 1.0)

    def sample_paths(self, count: int, rng: np.random.Generator) -> list[Path]:
        """``count`` paths, uniformly with replacement, without listing them all.

        Raises:
            TypeError: count is no integer or rng no Generator.
            ValueError: count is less than 1.
        """
        count, rng = as_count("count", count), as_generator(rng)
        return [self._sampled_path(rng) for _ in range(count)]

    def path_estimate(self, paths: Sequence[Path]) -> list[Floats]:
        """The unbiased estimate from a uniform sample of paths: the mean of their products, times the number
        of all paths.

        Raises:
            ValueError: paths is empty.
        """
        if not paths:
            raise ValueError("paths must not be empty")
        return self._sum_of_products(iter(paths), self.path_count / len(paths))

    def path_entries(self, paths: Sequence[Path]) -> int:
        """How many numbers of the local Jacobians the estimate from these paths needs."""
        return sum(edge.jacobian.size for edge in {id(e): e for path in paths for e in path.edges}.values())

    def _sampled_path(self, rng: np.random.Generator) -> Path:
        edges: list[Edge] = []
        at = self.output
        while self.into[at]:
            ticket = int(rng.integers(self.path_counts[at]))
            for edge in self.into[at]:
                if ticket < self.path_counts[edge.source]:
                    break
                ticket -= self.path_counts[edge.source]
            edges.insert(0, edge)
            at = edge.source
        return self._path(at, tuple(edges))

    def _path(self, source: int, edges: tuple[Edge, ...]) -> Path:
        numbers = (source, *(edge.target for edge in edges))
        return Path(tuple(self.vertices[i].name for i in numbers), edges, source)

    def _sum_of_products(self, paths: Iterator[Path], factor: float) -> list[Floats]:
        size = self.vertices[self.output].size
        totals = [np.zeros((size, v.size)) for v in self.vertices]
        for path in paths:
            product = np.eye(size)
            for edge in reversed(path.edges):
                product = times(product, edge.jacobian)
            totals[path.source] += factor * product
        return self._shaped(totals)

    def _shaped(self, by_vertex: list[Floats]) -> list[Floats]:
        shape = self.value.shape
        return [by_vertex[i].reshape(shape + self.vertices[i].value.shape) for i in self.inputs]

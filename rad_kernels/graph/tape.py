"""Tracing: a function of scalars and arrays, run once on variables that write down their local Jacobians."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from .linear import Edge, Floats, LinearGraph, Vertex

# Element by element: the derivative from the argument x and the value y.
UNARY: dict[np.ufunc, Callable[[Floats, Floats], Any]] = {
    np.negative: lambda x, y: -1.0,
    np.positive: lambda x, y: 1.0,
    np.exp: lambda x, y: y,
    np.expm1: lambda x, y: y + 1,
    np.log: lambda x, y: 1 / x,
    np.log1p: lambda x, y: 1 / (1 + x),
    np.sqrt: lambda x, y: 0.5 / y,
    np.square: lambda x, y: 2 * x,
    np.reciprocal: lambda x, y: -y * y,
    np.absolute: lambda x, y: np.sign(x),
    np.sin: lambda x, y: np.cos(x),
    np.cos: lambda x, y: -np.sin(x),
    np.tan: lambda x, y: 1 + y * y,
    np.arctan: lambda x, y: 1 / (1 + x * x),
    np.sinh: lambda x, y: np.cosh(x),
    np.cosh: lambda x, y: np.sinh(x),
    np.tanh: lambda x, y: 1 - y * y,
}

# The derivatives by a and by b, from a, b and the value y.
BINARY: dict[np.ufunc, tuple[Callable[..., Any], Callable[..., Any]]] = {
    np.add: (lambda a, b, y: 1.0, lambda a, b, y: 1.0),
    np.subtract: (lambda a, b, y: 1.0, lambda a, b, y: -1.0),
    np.multiply: (lambda a, b, y: b, lambda a, b, y: a),
    np.divide: (lambda a, b, y: 1 / b, lambda a, b, y: -y / b),
    np.power: (lambda a, b, y: b * a ** (b - 1), lambda a, b, y: y * np.log(a)),
    np.maximum: (lambda a, b, y: a >= b, lambda a, b, y: a < b),
    np.minimum: (lambda a, b, y: a <= b, lambda a, b, y: a > b),
}

# Without a derivative: their results are plain numpy, so that a function may branch on its values.
COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal, np.sign)


class Tape:
    """What has been computed so far."""

    def __init__(self) -> None:
        self.vertices: list[Vertex] = []
        self.edges: list[Edge] = []
        self._uses: dict[str, int] = {}

    def add(self, name: str, value: Floats, parents: list[tuple[Variable, Floats]]) -> Variable:
        """A vertex and its edges: ``parents`` are arguments and the Jacobians by them."""
        uses = self._uses[name] = self._uses.get(name, 0) + 1
        vertex = Vertex(len(self.vertices), name if uses == 1 else f"{name}_{uses}", value)
        self.vertices.append(vertex)
        self.edges += [Edge(parent.index, vertex.index, jacobian) for parent, jacobian in parents]
        return Variable(self, vertex)


def _value(operand: object) -> Floats:
    return operand.value if isinstance(operand, Variable) else np.asarray(operand, np.float64)


def _elementwise(derivative: object, operand: Floats, value: Floats) -> Floats:
    """The Jacobian of an elementwise operation: its diagonal alone, unless the operand was broadcast."""
    diagonal = np.broadcast_to(np.asarray(derivative, np.float64), value.shape).reshape(-1)
    if operand.shape == value.shape:
        return diagonal.copy()
    places = np.broadcast_to(np.arange(operand.size).reshape(operand.shape), value.shape).reshape(-1)
    jacobian = np.zeros((value.size, operand.size))
    jacobian[np.arange(value.size), places] = diagonal
    return jacobian


def _linear(function: Callable[[Floats], Any], operand: Floats) -> Floats:
    """The Jacobian of a linear function: its values on the unit vectors."""
    units = np.eye(operand.size).reshape(operand.size, *operand.shape)
    columns = [np.asarray(function(unit), np.float64).reshape(-1) for unit in units]
    return np.stack(columns, 1) if columns else np.zeros((0, 0))


class Variable(np.lib.mixins.NDArrayOperatorsMixin):
    """A value on a tape. numpy's functions and operators work on it as on an array.

    Elementwise functions (exp, log, sin, tanh, ...), + - * / ** with broadcasting, @, indexing, ``sum``,
    ``mean``, ``reshape`` and ``T``. Comparisons give plain booleans.
    """

    def __init__(self, tape: Tape, vertex: Vertex) -> None:
        self.tape, self.vertex = tape, vertex

    @property
    def index(self) -> int:
        return self.vertex.index

    @property
    def value(self) -> Floats:
        return self.vertex.value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            raise TypeError(f"np.{ufunc.__name__}.{method} with {options or 'no options'} cannot be traced")
        if ufunc in COMPARISONS:
            return ufunc(*map(_value, operands))
        if ufunc is np.matmul:
            return self._matmul(*operands)
        values = [_value(operand) for operand in operands]
        if ufunc in UNARY:
            y = np.asarray(ufunc(*values))
            derivatives: tuple[Any, ...] = (UNARY[ufunc](values[0], y),)
        elif ufunc in BINARY:
            y = np.asarray(ufunc(*values))
            both = zip(operands, BINARY[ufunc], strict=True)
            derivatives = tuple(d(*values, y) if isinstance(operand, Variable) else 0 for operand, d in both)
        else:
            known = ", ".join(sorted(f.__name__ for f in (*UNARY, *BINARY, np.matmul)))
            raise TypeError(f"np.{ufunc.__name__} has no derivative here; there are {known}")
        parents = [
            (operand, _elementwise(derivative, value, y))
            for operand, derivative, value in zip(operands, derivatives, values, strict=True)
            if isinstance(operand, Variable)
        ]
        return self.tape.add(ufunc.__name__, y, parents)

    def _matmul(self, a: Any, b: Any) -> Variable:
        left, right = _value(a), _value(b)
        parents = []
        if isinstance(a, Variable):
            parents.append((a, _linear(lambda unit: unit @ right, left)))
        if isinstance(b, Variable):
            parents.append((b, _linear(lambda unit: left @ unit, right)))
        return self.tape.add("matmul", np.asarray(left @ right), parents)

    def _linear(self, name: str, function: Callable[[Floats], Any]) -> Variable:
        return self.tape.add(name, np.asarray(function(self.value)), [(self, _linear(function, self.value))])

    def __getitem__(self, index: Any) -> Variable:
        return self._linear("getitem", lambda x: x[index])

    def sum(self, axis: Any = None, dtype: None = None, out: None = None) -> Variable:
        """np.sum; dtype and out are there because np.sum passes them on, and must be None."""
        return self._linear("sum", lambda x: x.sum(axis))

    def mean(self, axis: Any = None, dtype: None = None, out: None = None) -> Variable:
        """np.mean, as ``sum``."""
        return self._linear("mean", lambda x: x.mean(axis))

    def reshape(self, *shape: Any) -> Variable:
        return self._linear("reshape", lambda x: x.reshape(*shape))

    @property
    def T(self) -> Variable:
        return self._linear("transpose", lambda x: x.T)

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        raise TypeError("a traced variable is no float: use numpy's functions, such as np.exp, not math's")

    def __repr__(self) -> str:
        return f"Variable({self.vertex.name}, {self.value!r})"


def trace(function: Callable[..., Any], *arguments: Any) -> LinearGraph:
    """Run ``function`` on variables that hold ``arguments`` and return its linearised graph.

    Args:
        function: takes as many positional arguments as given, and returns one scalar or array that depends on
            them. It is run once: branches and loops are followed as these values take them.
        arguments: numbers or arrays; held as float64.

    Returns:
        The graph of what the result depends on; vertices are named after parameters and operations.

    Raises:
        TypeError: function is not callable, uses something that cannot be traced, or returns no variable.
        ValueError: there are no arguments.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if not arguments:
        raise ValueError("arguments must not be empty")
    tape = Tape()
    inputs = [
        tape.add(name, np.asarray(value, np.float64), [])
        for name, value in zip(_parameter_names(function, len(arguments)), arguments, strict=True)
    ]
    result = function(*inputs)
    if not isinstance(result, Variable) or result.tape is not tape:
        raise TypeError(f"function must return a variable that depends on its arguments, got {result!r}")
    return _pruned(tape, [variable.index for variable in inputs], result.index)


def _parameter_names(function: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [positional[i] if i < len(positional) else f"input{i + 1}" for i in range(count)]


def _pruned(tape: Tape, inputs: list[int], output: int) -> LinearGraph:
    """Without what the result does not depend on; inputs always stay."""
    needed = {output}
    for edge in reversed(tape.edges):  # an edge's target is later than all edges into its source
        if edge.target in needed:
            needed.add(edge.source)
    kept = [v for v in tape.vertices if v.index in needed or v.index in inputs]
    number = {v.index: i for i, v in enumerate(kept)}
    return LinearGraph(
        tuple(Vertex(number[v.index], v.name, v.value) for v in kept),
        tuple(Edge(number[e.source], number[e.target], e.jacobian) for e in tape.edges if e.target in needed),
        tuple(number[i] for i in inputs),
        number[output],
    )

"""Randomized AD on graphs: Bauer's formula, and every outcome of both estimates enumerated."""

import doctest
import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from rad_kernels import graph
from rad_kernels.graph.tape import BINARY, UNARY

RNG = np.random.default_rng(3)


def paper(x1, x2):
    a = np.exp(x1)
    b = np.sin(x2)
    c = b * x2
    d = a * c
    return a * d


def layers(x, w1, w2):
    """Arrays, broadcasting, a residual path and a sum."""
    h = np.tanh(w1 @ x + 0.5)
    h = h * x[:3] + np.sin(h)
    return ((w2 @ h) ** 2).sum() / np.sqrt(1 + np.square(h).mean())


ARRAYS = (RNG.standard_normal(4), RNG.standard_normal((3, 4)), RNG.standard_normal((2, 3)))


def close(found, want, tolerance=1e-12):
    for a, b in zip(found, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


def test_the_doctest():
    assert doctest.testmod(graph).failed == 0 and doctest.testmod(graph).attempted > 10


def test_derivatives_are_torchs():
    tensors = [torch.tensor(x, requires_grad=True) for x in ARRAYS]
    x, w1, w2 = tensors
    h = torch.tanh(w1 @ x + 0.5)
    h = h * x[:3] + torch.sin(h)
    y = ((w2 @ h) ** 2).sum() / torch.sqrt(1 + torch.square(h).mean())
    want = [g.numpy() for g in torch.autograd.grad(y, tensors)]
    g = graph.trace(layers, *ARRAYS)
    assert abs(g.value - y.item()) <= 1e-13 * abs(y.item())
    close(g.derivatives(), want)
    close(g.bauer(), want)


def check_quotients(function, arguments):
    """Central differences with step h err by about h^2 f''' / 6 and 1e-16 / h."""
    h = 1e-5
    for which, jacobian in enumerate(graph.trace(function, *arguments).derivatives()):
        for place in np.ndindex(arguments[which].shape):
            moved = [a.copy() for a in arguments]
            moved[which][place] += h
            up = function(*moved)
            moved[which][place] -= 2 * h
            quotient = (up - function(*moved)) / (2 * h)
            np.testing.assert_allclose(jacobian[(..., *place)], quotient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("function", [*UNARY, *BINARY], ids=lambda f: f.__name__)
def test_local_jacobians_are_difference_quotients(function):
    shapes = [(2, 3), (3,)] if function in BINARY else [(2, 3)]
    arguments = [0.3 + RNG.random(shape) for shape in shapes]
    check_quotients(lambda *a: function(*a), arguments)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a @ b,
        lambda a, b: a.sum(0) @ b,
        lambda a, b: a @ b[:, 1],
        lambda a, b: np.mean(a, 1) - np.sum(b) / 3.0,
        lambda a, b: a.T.reshape(2, 6)[1] * 2.0 + 1 / (1 + b.reshape(6)),
    ],
    ids=itertools.count(),
)
def test_matrices_and_linear_operations(function):
    check_quotients(function, [RNG.standard_normal((4, 3)), RNG.random((3, 2))])


def test_diagonals_are_condensed():
    g = graph.trace(lambda x, s: np.exp(x) * s, np.ones(5), 2.0)
    assert [edge.jacobian.shape for edge in g.edges] == [(5,), (5,), (5, 1)]
    assert [edge.is_diagonal for edge in g.edges] == [True, True, False] and g.entries == 15


def test_what_the_result_does_not_need_is_left_out():
    def function(x, y):
        np.exp(y)
        return np.sin(x) if x > 0 else np.cos(y)  # branches are followed as they are taken

    g = graph.trace(function, 1.0, 2.0)
    assert [v.name for v in g.vertices] == ["x", "y", "sin"] and g.path_count == 1
    assert g.derivatives()[1] == 0 and g.derivatives()[0] == np.cos(1.0)
    same = graph.trace(lambda x: x, 3.0)
    assert same.path_count == 1 and same.bauer() == [1.0] and str(next(same.paths())) == "x"
    square = graph.trace(lambda x: x * x, 3.0)  # two edges side by side
    assert square.path_count == 2 and square.bauer() == [6.0] == square.derivatives()


def test_paths_of_the_papers_example():
    g = graph.trace(paper, 0.5, 2.0)
    assert g.path_count == len(list(g.paths())) == 4
    assert g.path_counts == (1, 1, 1, 1, 2, 3, 4)
    for drawn, function in ((2.0, paper), (None, layers)):
        g = graph.trace(function, *((0.5, drawn) if drawn else ARRAYS))
        assert g.path_count == len(list(g.paths()))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "function, arguments", [(paper, (0.5, 2.0)), (layers, ARRAYS)], ids=["paper", "arrays"]
)
def test_path_estimates_over_every_sample(function, arguments, count):
    """Mean and variance: V = (P sum ||a_p||^2 - ||D||^2) / n, as of rows with replacement (docs/maths.md)."""
    g = graph.trace(function, *arguments)
    paths, exact = list(g.paths()), g.derivatives()
    if len(paths) ** count > 2000:
        count = 1
    found = [g.path_estimate(sample) for sample in itertools.product(paths, repeat=count)]
    close([np.mean([f[i] for f in found], 0) for i in range(len(exact))], exact)
    square = sum(np.square(f).sum() for path in paths for f in g.path_estimate([path])) / len(paths)
    variance = np.mean([sum(np.square(a - b).sum() for a, b in zip(f, exact)) for f in found])
    np.testing.assert_allclose(
        variance, (square - sum(np.square(e).sum() for e in exact)) / count, rtol=1e-10
    )


def test_sampled_paths_are_uniform():
    """Every ticket once: the sampler's choices, enumerated with a generator that hands out all tickets."""

    def residual(x, w):
        h = w @ x
        return (np.tanh(h) * h + h).sum() * x.sum()

    for g in (graph.trace(paper, 0.5, 2.0), graph.trace(residual, ARRAYS[0], ARRAYS[1])):
        check_uniform(g)


def check_uniform(g):
    probability = {}

    class Tickets(np.random.Generator):
        def __init__(self, prefix):
            super().__init__(np.random.PCG64())
            self.given, self.sizes = list(prefix), []

        def integers(self, size):
            self.sizes.append(size)
            return self.given.pop(0) if self.given else 0

    todo = [()]
    while todo:
        prefix = todo.pop()
        tickets = Tickets(prefix)
        (path,) = g.sample_paths(1, tickets)
        sizes = tickets.sizes
        if len(prefix) < len(sizes):
            todo += [(*prefix, i) for i in range(sizes[len(prefix)])]
            continue
        key = tuple(map(id, path.edges))
        probability[key] = probability.get(key, 0) + Fraction(1, int(np.prod(sizes, dtype=object)))
    assert set(probability) == {tuple(map(id, p.edges)) for p in g.paths()}
    assert set(probability.values()) == {Fraction(1, g.path_count)}


INJECTIONS = [
    (paper, (0.5, 2.0), [["exp", "multiply"]], 1),
    (paper, (0.5, 2.0), [["exp", "sin"], ["x1", "x2"]], 2),
    (paper, (0.5, 2.0), [["sin", "exp"], ["multiply_2"], ["multiply_3"]], 3),
    (layers, ARRAYS, [["tanh"]], 2),
    (layers, ARRAYS, [["matmul"], ["tanh", "getitem"]], 1),
    (layers, ARRAYS, [["matmul"], ["add_2"], ["x"]], 1),
]


@pytest.mark.parametrize("function, arguments, groups, draws", INJECTIONS, ids=itertools.count())
def test_injections_over_every_outcome(function, arguments, groups, draws):
    g = graph.trace(function, *arguments)
    injection = graph.Injection(g, groups, draws)
    outcomes = list(injection.outcomes())
    assert len(outcomes) == np.prod([n**draws for n in injection.sizes])
    exact = g.derivatives()
    found = [injection.estimate(outcome) for outcome in outcomes]
    close([np.mean([f[i] for f in found], 0) for i in range(len(exact))], exact)
    assert max(injection.entries(outcome) for outcome in outcomes) <= g.entries
    assert np.std([f[0] for f in found]) > 0


def test_p_selects_a_vertex_by_definition():
    """One draw at tanh: the derivative by h, times P = N e_i e_i^T, times the derivative of h."""
    x, w1, w2 = ARRAYS

    def front(x):
        return np.tanh(w1 @ x)

    def back(h):
        return (w2 @ h).sum()

    g = graph.trace(lambda x: back(front(x)), x)
    first = graph.trace(front, x).derivatives()[0]
    last = graph.trace(back, front(x)).derivatives()[0]
    injection = graph.Injection(g, [["tanh"]])
    assert injection.sizes == [3]
    for i in range(3):
        p = np.zeros((3, 3))
        p[i, i] = 3
        close(injection.estimate([np.array([i])]), [last @ p @ first])
    # Of tanh's diagonal and both matrices at it one entry, row or column; of the sum all there is.
    assert injection.entries([np.array([0])]) == 2 * 1 + 1 + 3 * 4 + 2
    assert g.entries == 2 * 3 + 3 + 3 * 4 + 2


def test_drawing(tmp_path):
    from matplotlib.image import imread

    g = graph.trace(paper, 0.5, 2.0)
    pictures = []
    for name, marked in (("plain", ()), ("marked", g.sample_paths(2, np.random.default_rng(0)))):
        graph.draw(g, tmp_path / f"{name}.png", marked)
        pictures.append(imread(tmp_path / f"{name}.png")[..., :3])
    plain, marked = pictures
    orange = (marked[..., 0] > 0.7) & (marked[..., 2] < 0.2)
    assert orange.sum() > 200 and not ((plain[..., 0] > 0.7) & (plain[..., 2] < 0.2)).any()
    graph.draw(graph.trace(layers, *ARRAYS), tmp_path / "arrays.png")


EXAMPLE = graph.trace(paper, 0.5, 2.0)
WRONG = [
    (lambda: graph.trace(3, 1.0), TypeError, "function must be callable, got 3"),
    (lambda: graph.trace(paper), ValueError, "arguments must not be empty"),
    (lambda: graph.trace(lambda x: 3.0, 1.0), TypeError, "depends on its arguments, got 3.0"),
    (lambda: graph.trace(lambda x: __import__("math").exp(x), 1.0), TypeError, "np.exp, not math's"),
    (lambda: graph.trace(np.cbrt, 1.0), TypeError, "np.cbrt has no derivative here; there are absolute"),
    (lambda: graph.trace(lambda x: np.add.reduce(x), np.ones(3)), TypeError, "np.add.reduce"),
    (lambda: EXAMPLE.sample_paths(0, RNG), ValueError, "count must be at least 1, got 0"),
    (lambda: EXAMPLE.sample_paths(1.5, RNG), TypeError, "count must be an integer, got 1.5"),
    (lambda: EXAMPLE.sample_paths(1, 7), TypeError, "rng must be a numpy.random.Generator, got 7"),
    (lambda: EXAMPLE.path_estimate([]), ValueError, "paths must not be empty"),
    (lambda: EXAMPLE.vertex("cos"), ValueError, "no vertex is called 'cos'; there are x1, x2"),
    (lambda: graph.Injection(EXAMPLE, ["exp"]), TypeError, "list of lists"),
    (lambda: graph.Injection(EXAMPLE, [["exp"], ["exp"]]), ValueError, "each vertex once"),
    (lambda: graph.Injection(EXAMPLE, [[]]), ValueError, "empty group"),
    (lambda: graph.Injection(EXAMPLE, [["exp"]], 0), ValueError, "draws must be at least 1"),
    (
        lambda: graph.Injection(EXAMPLE, [["sin", "multiply"]]),
        ValueError,
        "'sin' and 'multiply' lie on one path",
    ),
]


@pytest.mark.parametrize("action, error, message", WRONG, ids=itertools.count())
def test_wrong_arguments(action, error, message):
    with pytest.raises(error, match=message):
        action()

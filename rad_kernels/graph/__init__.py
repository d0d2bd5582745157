"""Randomized automatic differentiation on the computational graph of any function (Oktay et al. 2021).

``trace`` runs a function of scalars and numpy arrays once and returns its linearised graph: vertices are
variables, edges carry local Jacobians. The derivative is Bauer's formula, the sum over all paths from an
input to the output of the products of Jacobians along them, and two estimates of it are unbiased: paths drawn
uniformly with replacement, and random matrices P with E[P] = I put at chosen vertices. docs/general.md tells
the mathematics and what each costs.

The paper's example has four paths:

>>> import numpy as np
>>> from rad_kernels import graph
>>> def f(x1, x2):
...     a = np.exp(x1)
...     b = np.sin(x2)
...     c = b * x2
...     d = a * c
...     return a * d
>>> g = graph.trace(f, 0.5, 2.0)
>>> for path in g.paths():
...     print(path)
x1 -> exp -> multiply_2 -> multiply_3
x1 -> exp -> multiply_3
x2 -> sin -> multiply -> multiply_2 -> multiply_3
x2 -> multiply -> multiply_2 -> multiply_3

Bauer's formula is the gradient: d/dx1 = 2 f and d/dx2 = exp(2 x1) (sin x2 + x2 cos x2).

>>> x1, x2 = g.bauer()
>>> bool(np.isclose(x1, 2 * g.value) and np.isclose(x2, np.e * (np.sin(2.0) + 2 * np.cos(2.0))))
True
>>> all(np.allclose(a, b) for a, b in zip(g.bauer(), g.derivatives()))
True

One path, times the number of paths, is an unbiased estimate: its mean over all paths is the gradient.

>>> each = [g.path_estimate([path]) for path in g.paths()]
>>> np.allclose(np.mean(each, axis=0), g.derivatives())
True
>>> estimate = g.path_estimate(g.sample_paths(2, np.random.default_rng(0)))

Or a random matrix is put at vertices that no path joins, here exp (a) and multiply (c): one of the two is
kept, times two, and the other one cut off.

>>> cut = graph.Injection(g, [["exp", "multiply"]])
>>> each = [cut.estimate(outcome) for outcome in cut.outcomes()]
>>> len(each), np.allclose(np.mean(each, axis=0), g.derivatives())
(2, True)
"""

from .drawing import draw
from .injection import Injection
from .linear import Edge, LinearGraph, Path, Vertex
from .tape import Variable, trace

__all__ = ["Edge", "Injection", "LinearGraph", "Path", "Variable", "Vertex", "draw", "trace"]

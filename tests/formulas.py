"""The variances of docs/maths.md, weight gradient: one function a line of its table, and the check of them.

Each takes the design and, in float64, x [rows, features] and dy [rows, outputs]. ``total`` is E ||dW - D||^2
in the Frobenius norm, ``along`` the variance of <direction, dW> for a direction [outputs, features].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from enumeration import Design, check_unbiased, check_variance

from rad_kernels.reference import Float64s, strata

Total = Callable[[Design, Float64s, Float64s], float]
Along = Callable[[Design, Float64s, Float64s, Float64s], float]


class Line(NamedTuple):
    total: Total
    along: Along


def _square(a: Float64s, axis=None):
    return np.square(a).sum(axis)


def _over_strata(n: int, k: int, f: Callable[[slice, int], float]) -> float:
    return float(sum(f(slice(begin, begin + length), length) for begin, length in zip(*strata(n, k))))


# rows: entries are the rows' own gradients T_n = g_n x_n^T, tau_n = <C, T_n>


def _tau(c: Float64s, x: Float64s, dy: Float64s) -> Float64s:
    return np.einsum("of,no,nf->n", c, dy, x)


def _rows_stratified(d: Design, x: Float64s, dy: Float64s) -> float:
    norms = _square(x, 1) * _square(dy, 1)
    return _over_strata(d.rows, d.kept, lambda h, s: s * norms[h].sum() - _square(dy[h].T @ x[h]))


def _rows_stratified_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    tau = _tau(c, x, dy)
    return _over_strata(d.rows, d.kept, lambda h, s: s * _square(tau[h]) - tau[h].sum() ** 2)


def _rows_replaced(d: Design, x: Float64s, dy: Float64s) -> float:
    return (d.rows * (_square(x, 1) @ _square(dy, 1)) - _square(dy.T @ x)) / d.kept


def _rows_replaced_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    tau = _tau(c, x, dy)
    return (d.rows * _square(tau) - tau.sum() ** 2) / d.kept


# same: entries are the columns D_j of the exact gradient, q_j = <C_j, D_j>


def _same_stratified(d: Design, x: Float64s, dy: Float64s) -> float:
    columns = _square(dy.T @ x, 0)
    return _over_strata(d.features, d.kept, lambda h, s: (s - 1) * columns[h].sum())


def _same_stratified_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    q = (c * (dy.T @ x)).sum(0)
    return _over_strata(d.features, d.kept, lambda h, s: s * _square(q[h]) - q[h].sum() ** 2)


def _same_replaced(d: Design, x: Float64s, dy: Float64s) -> float:
    return (d.features - 1) / d.kept * _square(dy.T @ x)


def _same_replaced_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    q = (c * (dy.T @ x)).sum(0)
    return (d.features * _square(q) - q.sum() ** 2) / d.kept


# different: the lines of `same` row by row, with q_nj = C_j . g_n x_nj


def _different_stratified(d: Design, x: Float64s, dy: Float64s) -> float:
    by_feature = _square(dy, 1) @ np.square(x)
    return _over_strata(d.features, d.kept, lambda h, s: (s - 1) * by_feature[h].sum())


def _different_stratified_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    q = (dy @ c) * x
    return _over_strata(d.features, d.kept, lambda h, s: s * _square(q[:, h]) - _square(q[:, h].sum(1)))


def _different_replaced(d: Design, x: Float64s, dy: Float64s) -> float:
    return (d.features - 1) / d.kept * (_square(dy, 1) @ _square(x, 1))


def _different_replaced_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    q = (dy @ c) * x
    return (d.features * _square(q) - _square(q.sum(1))) / d.kept


VARIANCES = {
    ("rows", "stratified"): Line(_rows_stratified, _rows_stratified_along),
    ("rows", "with_replacement"): Line(_rows_replaced, _rows_replaced_along),
    ("same", "stratified"): Line(_same_stratified, _same_stratified_along),
    ("same", "with_replacement"): Line(_same_replaced, _same_replaced_along),
    ("different", "stratified"): Line(_different_stratified, _different_stratified_along),
    ("different", "with_replacement"): Line(_different_replaced, _different_replaced_along),
}


def check_estimates(
    design: Design, dw: Float64s, x: Float64s, dy: Float64s, probability: Float64s | None = None
) -> None:
    """All that is promised of the estimates dw [outcomes, outputs, features] of every outcome."""
    exact = dy.T @ x
    line = VARIANCES[design.sampling, design.draw]
    check_unbiased(dw, exact, probability)
    check_variance(dw, exact, line.total(design, x, dy), None, probability)
    for direction in (exact, np.ones_like(exact), np.eye(*exact.shape)):
        check_variance(dw, exact, line.along(design, x, dy, direction), direction, probability)

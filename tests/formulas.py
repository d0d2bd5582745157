"""The variances of docs/maths.md, weight gradient: one function a line of its table, and the check of them.

Each takes the design and, in float64, x [rows, features] and dy [rows, outputs]. ``total`` is E ||dW - D||^2
in the Frobenius norm, ``along`` the variance of <direction, dW> for a direction [outputs, features].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from enumeration import BIAS, CANCELLATION, Design, check_unbiased, check_variance

from rad_kernels.reference import TILE, Float64s, fixed_norms, norm_probability, strata

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


# without replacement: the lines of with replacement, less what distinct draws spare


def _distinct(n: int, k: int) -> float:
    return (n - k) / max(n - 1, 1)


def _rows_distinct(d: Design, x: Float64s, dy: Float64s) -> float:
    return _distinct(d.rows, d.kept) * _rows_replaced(d, x, dy)


def _rows_distinct_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    return _distinct(d.rows, d.kept) * _rows_replaced_along(d, x, dy, c)


def _same_distinct(d: Design, x: Float64s, dy: Float64s) -> float:
    return (d.features - d.kept) / d.kept * _square(dy.T @ x)


def _same_distinct_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    return _distinct(d.features, d.kept) * _same_replaced_along(d, x, dy, c)


# norm: p_n is the probability of row n in one draw


def _norm(d: Design, x: Float64s, dy: Float64s) -> float:
    p = norm_probability(fixed_norms(x))
    return ((_square(x, 1) * _square(dy, 1) / p).sum() - _square(dy.T @ x)) / d.kept


def _norm_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    tau = _tau(c, x, dy)
    return ((np.square(tau) / norm_probability(fixed_norms(x))).sum() - tau.sum() ** 2) / d.kept


# tile_rows: tiles are independent, each a line of `rows`


def _tiled(line: Line) -> Line:
    def tiles(d: Design) -> list[slice]:
        return [slice(begin, begin + TILE) for begin in range(0, d.features, TILE)]

    return Line(
        lambda d, x, dy: sum(line.total(d, x[:, t], dy) for t in tiles(d)),
        lambda d, x, dy, c: sum(line.along(d, x[:, t], dy, c[:, t]) for t in tiles(d)),
    )


# project: <C, D R R^T> / k is a mean of k independent r^T S r with S the symmetric part of C^T D


def _projected(d: Design, x: Float64s, dy: Float64s) -> float:
    return (d.features - 1) / d.kept * _square(dy.T @ x)


def _projected_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    s = c.T @ dy.T @ x
    s = (s + s.T) / 2
    return 2 / d.kept * (_square(s) - _square(np.diag(s)))


# its hadamard draw: k of N columns without replacement, N the order of the transform


def _transformed(d: Design, x: Float64s, dy: Float64s) -> float:
    return _distinct(d.order, d.kept) * _projected(d, x, dy)


def _transformed_along(d: Design, x: Float64s, dy: Float64s, c: Float64s) -> float:
    return _distinct(d.order, d.kept) * _projected_along(d, x, dy, c)


ROWS = {
    "stratified": Line(_rows_stratified, _rows_stratified_along),
    "with_replacement": Line(_rows_replaced, _rows_replaced_along),
    "without_replacement": Line(_rows_distinct, _rows_distinct_along),
}
VARIANCES = {
    **{("rows", draw): line for draw, line in ROWS.items()},
    **{("tile_rows", draw): _tiled(line) for draw, line in ROWS.items()},
    ("rows", "norm"): Line(_norm, _norm_along),
    ("same", "stratified"): Line(_same_stratified, _same_stratified_along),
    ("same", "with_replacement"): Line(_same_replaced, _same_replaced_along),
    ("same", "without_replacement"): Line(_same_distinct, _same_distinct_along),
    ("different", "stratified"): Line(_different_stratified, _different_stratified_along),
    ("different", "with_replacement"): Line(_different_replaced, _different_replaced_along),
    ("project", "stratified"): Line(_projected, _projected_along),
    ("project", "hadamard"): Line(_transformed, _transformed_along),
}

WEIGHT_ROUNDING = 2.0**-24  # of the norm draw's weights, which are stored in fp32


def check_estimates(
    design: Design, dw: Float64s, x: Float64s, dy: Float64s, probability: Float64s | None = None
) -> None:
    """All that is promised of the estimates dw [outcomes, outputs, features] of every outcome."""
    exact = dy.T @ x
    line = VARIANCES[design.sampling, design.draw]
    bias, moment = BIAS, CANCELLATION
    if design.draw == "norm":
        terms = np.sqrt(_square(x, 1) * _square(dy, 1)).sum()
        bias, moment = WEIGHT_ROUNDING * terms / np.linalg.norm(exact), 4 * WEIGHT_ROUNDING
    check_unbiased(dw, exact, probability, bias)
    check_variance(dw, exact, line.total(design, x, dy), None, probability, moment)
    for direction in (exact, np.ones_like(exact), np.eye(*exact.shape)):
        check_variance(dw, exact, line.along(design, x, dy, direction), direction, probability, moment)

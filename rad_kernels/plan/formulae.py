"""Closed forms of the noise that a sketch or a number of bits adds (docs/maths.md), on real activations.

All return sums over entries of variances, in float64 numbers. x and dy are what one call of a layer reads and
the gradient of its output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..sketch import Sketch

GROUP = 64  # consecutive stored values that share a dither's step
UNIFORM_TENTH = 0.1  # of the norm draw


def dither_steps(x: Tensor, bits: int, low_in_bf16: bool = False) -> Tensor:
    """Step of the group that each value of x [lines, stored] belongs to, in float64.

    low_in_bf16: as of normalised values, whose offset is a bf16 number that is at most the least of them.
    """
    steps = []
    for group in x.split(GROUP, dim=1):
        low = group.amin(1)
        if low_in_bf16:
            bits32 = low.float().view(torch.int32)  # negative numbers: towards larger sizes
            down = torch.where(low < 0, bits32 + 0xFFFF, bits32) & -0x10000
            low = down.view(torch.float32).to(group.dtype)
        spread = group.amax(1) - low
        exact = (spread / (2**bits - 1)).float()
        up = ((exact.view(torch.int32) + 0xFFFF) & -0x10000).view(torch.float32).double()
        steps.append(up[:, None].expand(group.shape))
    return torch.cat(steps, 1)


def norm_probability(norms: Tensor) -> Tensor:
    """How likely each row is in one draw by norm: a tenth of the draws is uniform."""
    return (1 - UNIFORM_TENTH) * norms / norms.sum() + UNIFORM_TENTH / len(norms)


def has_closed_form(sketch: Sketch) -> bool:
    """Steps of dithered feature samples depend on what was drawn."""
    return sketch.bits is None or sketch.keep == 1 or sketch.sampling in ("rows", "tile_rows")


def linear_variances(sketches: Iterable[Sketch], x: Tensor, dy: Tensor) -> dict[Sketch, float]:
    """E ||dW - D||^2 of each sketch for a linear layer: docs/maths.md, weight gradient.

    Args:
        sketches: each with a closed form.
        x: [rows, features]. dy: [rows, outputs].
    Raises:
        ValueError: a sketch has no closed form.
    """
    line = _Linear(x, dy)
    return {sketch: line.variance(sketch) for sketch in sketches}


class _Linear:
    """What several sketches need of one x and dy, computed once."""

    def __init__(self, x: Tensor, dy: Tensor) -> None:
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.x, self.dy = x.to(precise), dy.to(precise)
        self.dy_squares = self.dy.double().square().sum(1)
        self.terms = self.dy_squares * self.x.double().square().sum(1)  # ||T_n||^2
        self._steps: dict[int, Tensor] = {}

    def variance(self, sketch: Sketch) -> float:
        if not has_closed_form(sketch):
            raise ValueError(f"the variance of {sketch} has no closed form")
        n, d = self.x.shape
        if sketch.spec[0] == sketch.spec[1]:
            return 0.0 if sketch.bits is None else self._dither(sketch.bits, torch.ones_like(self.terms))
        if sketch.sampling in ("rows", "tile_rows"):  # tiles are columns, and their variances add up to these
            sampled, squared_weights = self._rows(n, sketch.kept(n), sketch.draw)
            return sampled + (0.0 if sketch.bits is None else self._dither(sketch.bits, squared_weights))
        k = sketch.kept(d)
        if sketch.sampling == "project":
            order = 1 << (d - 1).bit_length()
            distinct = (order - k) / (order - 1) if sketch.draw == "hadamard" else 1.0
            return distinct * (d - 1) / k * float(self._columns().sum())
        by_feature = self._columns()
        if sketch.sampling == "different":
            by_feature = self.dy_squares @ self.x.double().square()
        if sketch.draw == "with_replacement":
            return (d - 1) / k * float(by_feature.sum())
        if sketch.draw == "without_replacement":
            return (d - k) / k * float(by_feature.sum())
        return float(sum((size - 1) * by_feature[part].sum() for part, size in runs(d, k)))

    def _rows(self, n: int, k: int, draw: str) -> tuple[float, Tensor]:
        """(variance without dither, expected sum of the squared weights of each row's copies)."""
        if draw == "stratified":
            weights = torch.cat([self.terms.new_full((p.stop - p.start,), s) for p, s in runs(n, k)])
            together = sum(self._within_strata(part, size) for part, size in runs(n, k))
            return float(weights @ self.terms) - together, weights
        if draw == "norm":
            p = norm_probability(self.x.double().norm(dim=1))
            return float((self.terms / p).sum() - self._columns().sum()) / k, 1 / (k * p)
        distinct = (n - k) / max(n - 1, 1) if draw == "without_replacement" else 1.0
        replaced = float(n * self.terms.sum() - self._columns().sum()) / k
        return distinct * replaced, torch.full_like(self.terms, n / k)

    def _within_strata(self, part: slice, size: int) -> float:
        """sum over strata of ||sum of T_n||^2, by the products of the rows of a stratum with each other."""
        x, dy = (t[part].unflatten(0, (-1, size)) for t in (self.x, self.dy))
        return float(((x @ x.mT) * (dy @ dy.mT)).sum(dtype=torch.float64))

    def _columns(self) -> Tensor:
        """||D_j||^2 [features]"""
        return (self.dy.mT @ self.x).double().square().sum(0)

    def _dither(self, bits: int, squared_weights: Tensor) -> float:
        if bits not in self._steps:
            self._steps[bits] = dither_steps(self.x, bits).square().sum(1) / 12
        return float((squared_weights * self.dy_squares) @ self._steps[bits])


def runs(n: int, k: int) -> Iterator[tuple[slice, int]]:
    """The two runs of equally long strata of [0, n): (entries, length of a stratum)."""
    size, longer = divmod(n, k)
    switch = longer * (size + 1)
    if longer:
        yield slice(0, switch), size + 1
    if switch < n:
        yield slice(switch, n), size


def conv_variance(bits: int, matrix: Tensor, reach: Tensor) -> float:
    """E ||dW - D||^2 of a convolution whose whole input is kept in codes.

    Args:
        matrix: [lines, stored], the packed input. reach: of the same shape, the sum of dy^2 over all outputs
            that an input value enters, taps and channels together: ||T||^2 / x^2.
    """
    return float((dither_steps(matrix, bits).square() * reach).sum()) / 12


def derivative_variance(step: float, dy: Tensor, tangent: Tensor) -> float:
    """Variance along the tangent of an activation's input of the noise in its dx."""
    return step**2 / 12 * float((dy.double() * tangent.double()).square().sum())


def norm_variance(variance: Tensor, xhat: Tensor, a: Tensor, rstd: Tensor, tangent: Tensor) -> float:
    """Variance along the tangent of a normalisation's input of the noise in its dx.

    With independent noises e of x^ (variance v = step^2 / 12, E e^3 = 0, E e^4 = 9/5 v^2), z the tangent and
    m = mean(a x^), the noise of dx along z is -rstd times

        sum_i e_i (m z_i + a_i mean(x^ z))  +  (sum_ij z_i a_j e_i e_j - sum_i z_i a_i v_i) / d

    Both parts are uncorrelated; the second is a quadratic form, whose variance is that of its symmetric part.

    Args:
        variance, xhat, a, tangent: [sets, d]; a = weight dy. rstd: [sets, 1].
    """
    v, z, d = variance, tangent, xhat.shape[1]
    m, s = (a * xhat).mean(1, True), (xhat * z).mean(1, True)
    linear = (v * (m * z + a * s).square()).sum(1, True)
    crossed = (z.square() * v).sum(1, True) * (a.square() * v).sum(1, True) + (z * a * v).sum(
        1, True
    ).square()
    square = crossed - 1.2 * (z * a * v).square().sum(1, True)
    return float((rstd.square() * (linear + square / d**2)).sum())

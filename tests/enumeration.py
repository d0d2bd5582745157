"""Exact expectation without statistics: every outcome of a sampled Linear, one key that draws each, and the
checks of mean and variance. Used on the real ops and on planted mistakes alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb

import numpy as np
import torch

from rad_kernels import Sketch, ops, reference
from rad_kernels.reference import Float64s, Int64s, UInt64s

BATCH = 1 << 16  # samples searched or estimates held at a time


@cache
def subsets(n: int, k: int) -> tuple[Int64s, Int64s]:
    """All ascending k of n [count, k], and the number of the one with each set of bits."""
    index = np.array(list(combinations(range(n), k)), np.int64)
    number = np.full(1 << n, -1)
    number[(1 << index).sum(-1)] = np.arange(len(index))
    return index, number


@dataclass(frozen=True)
class Design:
    """A Linear [rows, features] -> [rows, outputs] that keeps ``kept`` rows or features.

    An outcome is an array of indices [lines, kept], ascending where drawn without replacement; of ``project``
    it is the matrix of signs [features, kept], or of its hadamard draw a 0 or 1 for each feature's sign and
    then the columns, ascending.
    """

    sampling: str
    draw: str
    rows: int
    features: int
    kept: int
    outputs: int = 2

    def __str__(self) -> str:
        return f"{self.sampling}-{self.draw}-{self.rows}x{self.features}-keep-{self.kept}"

    @property
    def sketch(self) -> Sketch:
        return Sketch(self.kept / self.length, self.sampling, self.draw)

    @property
    def length(self) -> int:
        """n: what one sample is drawn from."""
        return self.rows if self.sampling in ("rows", "tile_rows") else self.features

    @property
    def lines(self) -> int:
        """How many independent samples one call draws."""
        tiles = -(-self.features // reference.TILE)
        return {"different": self.rows, "tile_rows": tiles}.get(self.sampling, 1)

    @property
    def order(self) -> int:
        """Of the Hadamard matrix."""
        return reference.hadamard_order(self.features)

    @property
    def radix(self) -> Int64s:
        """How many values each digit of an outcome's number can take."""
        if self.draw == "hadamard":
            return np.array([*[2] * self.features, comb(self.order, self.kept)])
        if self.sampling == "project":
            return np.full(self.features * self.kept, 2)
        if self.draw == "without_replacement":
            return np.full(self.lines, comb(self.length, self.kept))
        if self.draw == "norm":
            return np.full(self.kept, self.rows)
        return np.tile(reference.index_ranges(self.draw, self.length, self.kept)[1], self.lines)

    @property
    def outcomes(self) -> int:
        """How many joint outcomes there are."""
        return int(np.prod(self.radix))

    def _first(self) -> Int64s:
        if self.draw == "norm":
            return np.zeros(self.kept, np.int64)
        return reference.index_ranges(self.draw, self.length, self.kept)[0]

    def number(self, outcome: Int64s) -> Int64s:
        """[...]: the numbers of outcomes [..., lines, kept]."""
        if self.draw == "hadamard":
            columns = subsets(self.order, self.kept)[1][(1 << outcome[:, self.features :]).sum(-1)]
            digits = np.column_stack([outcome[:, : self.features], columns])
        elif self.sampling == "project":
            digits = (outcome + 1) // 2
        elif self.draw == "without_replacement":
            digits = subsets(self.length, self.kept)[1][(1 << outcome).sum(-1)]
        else:
            digits = outcome - self._first()
        place = self.outcomes // np.cumprod(self.radix)
        return digits.reshape(len(outcome), place.size).astype(np.int64) @ place

    def outcome(self, number: Int64s) -> Int64s:
        """The inverse of ``number``: [len(number), lines, kept]."""
        digits = np.stack(np.unravel_index(number, self.radix), axis=-1)
        if self.draw == "hadamard":
            return np.column_stack([digits[:, :-1], subsets(self.order, self.kept)[0][digits[:, -1]]])
        if self.sampling == "project":
            return 2 * digits.reshape(-1, self.features, self.kept) - 1
        if self.draw == "without_replacement":
            return subsets(self.length, self.kept)[0][digits]
        return digits.reshape(-1, self.lines, self.kept) + self._first()

    def drawn(self, key: UInt64s, salt: int) -> Int64s:
        """[len(key), lines, kept]: the outcome of each key."""
        if self.draw == "hadamard":
            signs, columns = reference.hadamard_drawn(self.features, self.kept, key, salt)
            return np.concatenate([(signs + 1) // 2, np.sort(columns)], axis=-1)
        if self.sampling == "project":
            return reference.signs(self.features, self.kept, key, salt)
        if self.draw == "norm":
            return reference.norm_drawn(self.fixed_norms, self.kept, key, salt)[:, None]
        index = reference.drawn(self.sketch.spec, self.length, key[:, None], salt, np.arange(self.lines))
        return np.sort(index) if self.draw == "without_replacement" else index

    @property
    def fixed_norms(self) -> UInt64s:
        return reference.fixed_norms(self.data()[0].numpy())

    def probability(self, outcome: Int64s) -> Float64s | None:
        """[...]: of outcomes [..., lines, kept]; None where all are equally likely."""
        if self.draw != "norm":
            return None
        return reference.norm_probability(self.fixed_norms)[outcome].prod((-1, -2))

    @property
    def weight(self) -> Float64s:
        """[kept]: what kept entries are multiplied by; for the norm draw [rows], by where they came from."""
        if self.draw == "norm":
            return reference.norm_weight(self.fixed_norms, self.kept).astype(np.float64)
        return reference.weights(self.draw, self.length, self.kept)

    def data(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """x [rows, features] and dy [rows, outputs], the same at every call."""
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.rows, self.features, dtype=torch.float64, generator=generator)
        dy = torch.randn(self.rows, self.outputs, dtype=torch.float64, generator=generator)
        if self.draw == "norm":  # rows of different weight
            x *= torch.arange(1.0, self.rows + 1)[:, None]
        return x.to(dtype), dy.to(dtype)


def search_keys(design: Design, salt: int) -> UInt64s:
    """[outcomes]: for each outcome a key that draws it."""
    rng = np.random.default_rng(design.outcomes)
    keys = np.zeros(design.outcomes, np.uint64)  # 0: not found yet
    batch = max(min(BATCH, 16 * design.outcomes) // design.lines, 256)
    while not keys.all():
        candidates = rng.integers(1, 2**63, batch, dtype=np.uint64)
        keys[design.number(design.drawn(candidates, salt))] = candidates
    return keys


def estimates(design: Design, keys: UInt64s, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """[len(keys), outputs, features]: dW of the real forward and backward op under each key."""
    spec, weight = design.sketch.spec, x.new_zeros(design.outputs, design.features)
    found = []
    for key in torch.from_numpy(keys.view(np.int64)).unbind():
        _, saved = ops.linear(x, weight, None, spec, key)
        found.append(ops.linear_wgrad(dy, saved, design.features, spec))
    return torch.stack(found)


def multipliers(design: Design, outcome: Int64s, factor: Float64s | float = 1.0) -> Float64s:
    """[len(outcome), rows, features] or a shape that broadcasts to it: what each entry of x is multiplied by.

    ``factor`` (of each kept entry, or one for all) falsifies the weights.
    """
    if design.draw == "norm":
        counts = reference.multipliers(outcome, np.ones(design.kept) * factor, design.length)
        z = counts * design.weight
    else:
        z = reference.multipliers(outcome, factor * design.weight, design.length)  # [outcomes, lines, length]
    if design.sampling == "tile_rows":
        z = z[:, np.arange(design.features) // reference.TILE]
    return z.swapaxes(1, 2) if design.sampling in ("rows", "tile_rows") else z


def model(
    design: Design, outcome: Int64s, x: torch.Tensor, dy: torch.Tensor, factor: Float64s | float = 1.0
) -> Float64s:
    """[len(outcome), outputs, features]: the estimate of outcomes by definition, in float64."""
    if design.sampling == "project":
        exact = dy.double().numpy().T @ x.double().numpy()
        if design.draw == "hadamard":
            signs, columns = outcome[:, : design.features], outcome[:, design.features :]
            outcome = reference.hadamard_signs(2 * signs - 1, columns).astype(np.int64)
        return factor * (exact @ outcome @ outcome.swapaxes(1, 2)) / design.kept
    return dy.double().numpy().T @ (x.double().numpy() * multipliers(design, outcome, factor))


def batches(design: Design) -> Iterator[Int64s]:
    """All outcomes, [<= BATCH, lines, kept] at a time."""
    for start in range(0, design.outcomes, BATCH):
        yield design.outcome(np.arange(start, min(start + BATCH, design.outcomes)))


# ---- checks: AssertionError when a promise is broken ----

BIAS = 1e-12  # relative to the exact gradient; pairwise sums of doubles stay 100 times below
VARIANCE = 1e-10  # relative to the formula
# A formula subtracts sums of squares as large as the second moment, so a variance of 0 comes out within
# rounding of that: 90 units of a double.
CANCELLATION = 1e-14


def mean(dw: Float64s, probability: Float64s | None = None) -> Float64s:
    """Over outcomes dw [outcomes, ...]: equally likely ones, or [outcomes] probabilities."""
    by_entry = np.moveaxis(dw, 0, -1).copy()  # contiguous over outcomes: numpy then sums pairwise
    return by_entry.mean(-1) if probability is None else (by_entry * probability).sum(-1)


def check_unbiased(
    dw: Float64s, exact: Float64s, probability: Float64s | None = None, tolerance: float = BIAS
) -> None:
    """The mean over outcomes dw [outcomes, outputs, features] is ``exact``."""
    bias = np.linalg.norm(mean(dw, probability) - exact) / np.linalg.norm(exact)
    assert bias <= tolerance, f"relative bias {bias:.3g}"


def check_variance(
    dw: Float64s,
    exact: Float64s,
    expected: float,
    direction: Float64s | None = None,
    probability: Float64s | None = None,
    rounding: float = CANCELLATION,
) -> None:
    """E ||dw - exact||^2, or the variance of <direction, dw>, is ``expected``.

    ``rounding``: of the second moment, relatively.
    """
    if direction is None:
        error, moment = np.square(dw - exact).sum((1, 2)), np.square(dw).sum((1, 2))
    else:
        along = np.tensordot(dw, direction, 2)
        error, moment = np.square(along - np.vdot(direction, exact)), np.square(along)
    variance, second_moment = float(mean(error, probability)), float(mean(moment, probability))
    assert abs(variance - expected) <= VARIANCE * expected + rounding * second_moment, (
        f"variance {variance:.12g}, the formula says {expected:.12g}"
    )

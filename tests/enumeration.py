"""Exact expectation without statistics: every outcome of a sampled Linear, one key that draws each, and the
checks of mean and variance. Used on the real ops and on planted mistakes alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rad_kernels import Sketch, ops, reference
from rad_kernels.reference import Float64s, Int64s, UInt64s

BATCH = 1 << 16  # samples searched or estimates held at a time


@dataclass(frozen=True)
class Design:
    """A Linear [rows, features] -> [rows, outputs] that keeps ``kept`` rows or features."""

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
        return self.rows if self.sampling == "rows" else self.features

    @property
    def lines(self) -> int:
        """How many independent samples one call draws."""
        return self.rows if self.sampling == "different" else 1

    @property
    def radix(self) -> Int64s:
        """[lines * kept]: how many values each drawn index can take, all of them equally likely."""
        return np.tile(reference.index_ranges(self.draw, self.length, self.kept)[1], self.lines)

    @property
    def outcomes(self) -> int:
        """How many equally likely joint outcomes there are."""
        return int(np.prod(self.radix))

    def number(self, index: Int64s) -> Int64s:
        """[...]: the number of the outcome ``index`` [..., lines, kept]."""
        place = self.outcomes // np.cumprod(self.radix)
        digits = index - reference.index_ranges(self.draw, self.length, self.kept)[0]
        return digits.reshape(*index.shape[:-2], place.size) @ place

    def outcome(self, number: Int64s) -> Int64s:
        """The inverse of ``number``: [len(number), lines, kept]."""
        digits = np.stack(np.unravel_index(number, self.radix), axis=-1)
        first = reference.index_ranges(self.draw, self.length, self.kept)[0]
        return digits.reshape(-1, self.lines, self.kept) + first

    def drawn(self, key: UInt64s, salt: int) -> Int64s:
        """[len(key), lines, kept]: the outcome of each key."""
        spec = self.sketch.spec
        return reference.drawn(spec, self.length, key[:, None], salt, np.arange(self.lines))

    def data(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """x [rows, features] and dy [rows, outputs], the same at every call."""
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(self.rows, self.features, dtype=torch.float64, generator=generator)
        dy = torch.randn(self.rows, self.outputs, dtype=torch.float64, generator=generator)
        return x.to(dtype), dy.to(dtype)


def search_keys(design: Design, salt: int) -> UInt64s:
    """[outcomes]: for each outcome a key that draws it."""
    rng = np.random.default_rng(design.outcomes)
    keys = np.zeros(design.outcomes, np.uint64)  # 0: not found yet
    batch = max(BATCH // design.lines, 256)
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


def model(
    design: Design, index: Int64s, x: torch.Tensor, dy: torch.Tensor, factor: Float64s | float = 1.0
) -> Float64s:
    """[len(index), outputs, features]: the estimate of outcomes ``index`` by definition, in float64.

    ``factor`` (of each kept entry, or one for all) falsifies the weights.
    """
    weight = factor * reference.weights(design.draw, design.length, design.kept)
    z = reference.multipliers(index, weight, design.length)  # [outcomes, lines, length]
    if design.sampling == "rows":
        z = z.swapaxes(1, 2)
    return dy.double().numpy().T @ (x.double().numpy() * z)


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
) -> None:
    """E ||dw - exact||^2, or the variance of <direction, dw>, is ``expected``."""
    if direction is None:
        error, moment = np.square(dw - exact).sum((1, 2)), np.square(dw).sum((1, 2))
    else:
        along = np.tensordot(dw, direction, 2)
        error, moment = np.square(along - np.vdot(direction, exact)), np.square(along)
    variance, second_moment = float(mean(error, probability)), float(mean(moment, probability))
    assert abs(variance - expected) <= VARIANCE * expected + CANCELLATION * second_moment, (
        f"variance {variance:.12g}, the formula says {expected:.12g}"
    )

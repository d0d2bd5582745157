"""Subtractive dither (docs/maths.md, dither), one rounding an operation and in the order stated there.

Arrays are float32, or float64 for fp64 activations; nothing here widens them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .samples import ROLES
from .words import Int64s, UInt32s, random_words

Reals = NDArray[Any]  # float32 or float64

GROUP = 64  # consecutive values of a line that share lo and step


def dither_noise(key: int, salt: int, line: ArrayLike, count: int) -> UInt32s:
    """[..., count]: the 16 random bits of each value of the stored lines ``line``, as numbers."""
    calls = np.arange(-(-count // 8))
    words = random_words(key, salt, ROLES["dither"], np.asarray(line)[..., None], calls)
    halves = words.astype("<u4").reshape(*words.shape[:-2], -1).view("<u2")
    return halves[..., :count].astype(np.uint32)


def group_range(values: Reals) -> tuple[Reals, Reals]:
    """``(lo, hi)`` [...] of groups [..., width]; NaN where a value is not finite. Zeros are positive."""
    finite = np.isfinite(values).all(-1)
    nan = values.dtype.type(np.nan)
    lo, hi = (np.where(finite, end, nan) + values.dtype.type(0) for end in (values.min(-1), values.max(-1)))
    return lo, hi


def bf16_below(lo: Reals) -> Reals:
    """The greatest bf16 number that is at most lo, in lo's dtype; NaN stays."""
    pattern: Int64s = lo.astype(np.float32).view(np.uint32).astype(np.int64)
    # Numbers in order, so that dropping the low half rounds down.
    ordered: Int64s = np.where(pattern >> 31, -(pattern & 0x7FFFFFFF), pattern) >> 16

    def number(n: Int64s) -> Reals:
        magnitude = (abs(n) << 16).astype(np.uint32).view(np.float32)
        return np.where(n < 0, -magnitude, magnitude).astype(lo.dtype)

    below = number(ordered)
    return np.where(below > lo, number(ordered - 1), below)  # above lo: a float64 rounded up


def step_for(lo: Reals, hi: Reals, bits: int) -> NDArray[np.float32]:
    """A bf16 number of at least (hi - lo) / (2^bits - 1); NaN where none is finite."""
    levels = lo.dtype.type(2**bits - 1)
    with np.errstate(all="ignore"):
        span = hi - lo
        quotient = (span / levels).astype(np.float32)
        pattern = (quotient.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
        short = span / pattern.view(np.float32).astype(lo.dtype) > levels
        pattern += np.where(short, np.uint32(0x10000), np.uint32(0))
        fits = (quotient <= np.float32(2**128 - 2**120)) & (pattern < 0x7F800000)  # False for NaN
    return np.where(fits, pattern.view(np.float32), np.float32(np.nan))


def _fraction(noise: UInt32s, real: type) -> Reals:
    return (2 * noise.astype(np.int64) + 1).astype(real) * real(1 / 131072)


def fused(a: Reals, x: Reals, b: Reals) -> Reals:
    """a x + b: in float32 rounded once, in float64 twice."""
    if a.dtype == np.float64:
        return a * x + b
    product = a.astype(np.float64) * x  # exact
    total = product + b
    part = total - product
    error = (product - (total - part)) + (np.float64(b) - part)
    # The last bit set where anything was lost: a second rounding then rounds as one from the exact number.
    pattern = total.view(np.int64)
    lost = (error != 0) & (pattern & 1 == 0) & np.isfinite(total)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(lost, pattern + toward, pattern).view(np.float64).astype(np.float32)


def range_encode(values: Reals, lo: float, step: float, noise: UInt32s) -> Int64s:
    """Codes of values within a range that is known to hold them all."""
    real = values.dtype.type
    return np.floor(
        fused(values, np.full_like(values, 1 / step), np.full_like(values, -lo / step))
        + _fraction(noise, real)
    ).astype(np.int64)


def encode(values: Reals, lo: Reals, step: NDArray[np.float32], noise: UInt32s, bits: int) -> Int64s:
    """Codes of values [..., width] of groups with lo and step [...]."""
    real = values.dtype.type
    low, size = lo[..., None], step[..., None].astype(values.dtype)
    with np.errstate(all="ignore"):
        t = np.where(size > 0, (values - low) / size, real(0))
        whole = np.trunc(t)
        code = whole.astype(np.int64) + (_fraction(noise, real) >= real(1) - (t - whole))
    return np.where(size > 0, np.minimum(code, 2**bits - 1), 0)


def decode(codes: Int64s, lo: Reals, step: NDArray[np.float32], noise: UInt32s) -> Reals:
    """The numbers [..., width] that codes stand for, in lo's dtype."""
    real = lo.dtype.type
    centred = codes.astype(lo.dtype) - (_fraction(noise, real) - real(0.5))
    with np.errstate(over="ignore"):  # ranges close to the largest number
        return lo[..., None] + step[..., None].astype(lo.dtype) * centred

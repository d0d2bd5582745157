"""Codes of probabilities (docs/maths.md, cross-entropy)."""

from __future__ import annotations

import numpy as np

from .dither import GROUP, Reals, decode, encode, fused, group_range, step_for
from .samples import ROLES
from .words import UInt32s, random_words

_LEAST = {np.float32: -87.0, np.float64: -708.0}
# 2^r from its highest power.
_EXP2 = (0.000153458124, 0.00133999309, 0.00961848907, 0.0555032864, 0.240226462, 0.693147182, 1.0)


def _exp32(x: Reals) -> tuple[Reals, Reals]:
    """``(p, n)`` with exp(x) = p 2^n."""

    def number(value: float) -> Reals:
        return np.full_like(x, value)

    magic = number(3 * 2.0**22)
    n = fused(number(1.44269502), x, magic) - magic
    r = fused(number(1.92596303e-8), x, fused(number(1.44269502), x, -n))
    p = number(_EXP2[0])
    for coefficient in _EXP2[1:]:
        p = fused(p, r, number(coefficient))
    return p, n


def _exp64(x: Reals) -> tuple[Reals, Reals]:
    magic = 3 * 2.0**51
    n = (1.4426950408889634 * x + magic) - magic
    r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10
    factorials = np.cumprod([1.0, *range(1, 14)])
    p = 1 / factorials[13]
    for f in factorials[12::-1]:
        p = p * r + 1 / f
    return p, n


def probability(log_p: Reals) -> Reals:
    """exp of numbers up to 0 as ``csrc/core/exponential.h`` rounds it; 0 where that is no normal number."""
    real = log_p.dtype.type
    x = np.maximum(log_p, real(_LEAST[real]))
    p, n = (_exp32 if real is np.float32 else _exp64)(x)
    return np.where(log_p < real(_LEAST[real]), real(0), np.ldexp(p, np.nan_to_num(n).astype(np.int64)))


def probability_noise(key: int, salt: int, count: int) -> UInt32s:
    """[count]: the 16 random bits of each probability, in memory order."""
    words = random_words(key, salt, ROLES["probability"], 0, np.arange(-(-count // 8)))
    return words.astype("<u4").reshape(-1).view("<u2")[:count].astype(np.uint32)


def probability_codes(log_p: Reals, key: int, salt: int, bits: int) -> tuple[np.ndarray, np.ndarray, Reals]:
    """``(codes, steps, decoded)`` of log-probabilities [count], in float32 or float64."""
    count = log_p.size
    padding = -count % GROUP
    p = np.pad(probability(log_p), (0, padding)).reshape(-1, GROUP)
    noise = np.pad(probability_noise(key, salt, count), (0, padding)).reshape(-1, GROUP)
    zero = np.zeros(len(p), p.dtype)
    steps = step_for(zero, group_range(p)[1], bits)
    codes = encode(p, zero, steps, noise, bits)
    decoded = decode(codes, zero, steps, noise)
    return codes.reshape(-1)[:count], steps, decoded.reshape(-1)[:count]

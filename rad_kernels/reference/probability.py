"""Codes of probabilities (docs/maths.md, cross-entropy)."""

from __future__ import annotations

import numpy as np

from .dither import GROUP, Reals, decode, encode, group_range, step_for
from .samples import ROLES
from .words import UInt32s, random_words

_MAGIC = {np.float32: 3 * 2.0**22, np.float64: 3 * 2.0**51}
_LOG2E = {np.float32: 1.44269504, np.float64: 1.4426950408889634}
_LN2 = {
    np.float32: (0.693145751953125, 1.428606765330187e-6),
    np.float64: (6.93147180369123816490e-01, 1.90821492927058770002e-10),
}
_LEAST = {np.float32: -87.0, np.float64: -708.0}


def probability(log_p: Reals) -> Reals:
    """exp of numbers up to 0, one rounding an operation; 0 where it is no normal number."""
    real = log_p.dtype.type
    x = np.maximum(log_p, real(_LEAST[real]))
    n = (real(_LOG2E[real]) * x + real(_MAGIC[real])) - real(_MAGIC[real])
    high, low = _LN2[real]
    r = (x - n * real(high)) - n * real(low)
    terms = 6 if real is np.float32 else 13
    factorials = np.cumprod([1.0, *range(1, terms + 1)])
    p = real(1) / real(factorials[terms])
    for f in factorials[terms - 1 :: -1]:
        p = p * r + real(1) / real(f)
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

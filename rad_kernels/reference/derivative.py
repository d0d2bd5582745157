"""Codes of a derivative within its fixed range (docs/maths.md, derivatives)."""

from __future__ import annotations

import numpy as np

from .dither import Reals, decode, range_encode, step_for
from .samples import ROLES
from .words import UInt32s, random_words

# name -> the extremes of f', to nine digits; they are moved outwards by MARGIN.
EXTREMES = {
    "gelu": (-0.128904146, 1.128904146),
    "gelu_tanh": (-0.128993069, 1.128993069),
    "silu": (-0.099839321, 1.099839321),
    "mish": (-0.112526123, 1.088498162),
    "hardswish": (-0.5, 1.5),
    "tanh": (0.0, 1.0),
    "sigmoid": (0.0, 0.25),
    "logsigmoid": (0.0, 1.0),
    "softplus": (0.0, 1.0),
}
MARGIN = 4e-6


def derivative_range(
    function: str, parameters: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[float, float]:
    """(lo, hi), within which derivatives are coded. Ends that are exactly 0 stay."""
    if function == "elu":
        alpha, scale, input_scale = parameters
        ends = (0.0, scale, alpha * scale * input_scale)
        return min(ends) * (1 + MARGIN), max(ends) * (1 + MARGIN)
    lo, hi = EXTREMES[function]
    return lo - MARGIN if lo else 0.0, hi + MARGIN


def derivative_step(lo: float, hi: float, bits: int) -> np.float32:
    return np.float32(step_for(np.array(lo), np.array(hi), bits))


def derivative_noise(key: int, salt: int, count: int) -> UInt32s:
    """[count]: the 16 random bits of each element, in memory order."""
    words = random_words(key, salt, ROLES["derivative"], 0, np.arange(-(-count // 8)))
    return words.astype("<u4").reshape(-1).view("<u2")[:count].astype(np.uint32)


def derivative_codes(
    derivatives: Reals, lo: float, hi: float, key: int, salt: int, bits: int
) -> tuple[np.ndarray, Reals]:
    """``(codes, decoded)`` of derivatives [count], in float32 or float64."""
    dtype = derivatives.dtype
    noise = derivative_noise(key, salt, derivatives.size)
    step = derivative_step(lo, hi, bits)
    codes = range_encode(derivatives, lo, float(step), noise)
    return codes, decode(codes, np.asarray(lo, dtype), np.asarray(step), noise)

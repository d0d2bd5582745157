"""Normalised values as they are kept, and the gradient made of them (docs/maths.md, normalisation)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .words import Float64s

LANES = 256


def lane_sum(values: NDArray[Any]) -> NDArray[Any]:
    """[sets]: sums of values [sets, d] as the kernels order them, in their dtype."""
    sets, d = values.shape
    padded = np.zeros((sets, -(-d // LANES) * LANES), values.dtype)
    padded[:, :d] = values
    lanes = np.zeros((sets, LANES), values.dtype)
    for start in range(0, padded.shape[1], LANES):
        count = min(LANES, d - start)
        lanes[:, :count] += padded[:, start : start + count]
    half = LANES // 2
    while half:
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
        half //= 2
    return lanes[:, 0]


def normalised(x: NDArray[Any], eps: float, centred: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """(x_hat [sets, d], rstd [sets]) of x [sets, d], float32 or float64, every operation rounded once."""
    real, d = x.dtype.type, x.dtype.type(x.shape[1])
    mean = lane_sum(x) / d if centred else np.zeros(len(x), real)
    off = x - mean[:, None]
    rstd = real(1) / np.sqrt(lane_sum(off * off) / d + real(eps))
    return off * rstd[:, None], rstd


def norm_input_grad(
    a: Float64s, q: Float64s, square_step: Float64s, rstd: Float64s, centred: bool
) -> Float64s:
    """dx [sets, d] from a = weight * dy, the decoded values q and each one's squared step, in float64."""
    d = a.shape[1]
    mean = a.mean(1, keepdims=True) if centred else 0.0
    inner = q * (a * q).mean(1, keepdims=True) - a * square_step / (12 * d)
    return rstd[:, None] * (a - mean - inner)

"""Codes within a range that is known beforehand (docs/maths.md, derivatives)."""

import numpy as np
import pytest
import torch

from rad_kernels import reference

KEY = 0x0123_4567_89AB_CDEF
BITS = (8, 4, 2, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_codes_are_the_twins(dtype):
    """Hardswish's derivative is one that numpy has bit for bit, so its codes must be the twin's."""
    x = torch.linspace(-3.2, 3.2, 20_001, dtype=dtype)
    derivative = torch.where(x <= -3, 0, torch.where(x >= 3, 1, x / 3 + 0.5)).numpy()
    for bits in BITS:
        lo, hi = reference.derivative_range("hardswish")
        codes, _ = reference.derivative_codes(derivative, lo, hi, KEY, 7, bits)
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
        saved = torch.ops.rad_kernels.derivative_codes(x, 9, (0, 0, 0), bits, 7, torch.tensor(KEY)).numpy()
        assert saved[:-64].tobytes() == number.to_bytes(saved.nbytes - 64, "little")


@pytest.mark.parametrize("bits", BITS)
def test_every_place_between_two_codes_is_unbiased_in_float32(bits):
    """Over all 2^16 noises of the twin; codes stay in their range at both ends of it."""
    noise = np.arange(2**16, dtype=np.uint32)
    for case in ("gelu", "silu", "tanh", "sigmoid"):
        lo, hi = reference.derivative_range(case)
        step = float(reference.derivative_step(lo, hi, bits))
        inner = lo + 4e-6 * (lo < 0), hi - 4e-6
        for value in np.linspace(*inner, 23).astype(np.float32):
            codes = reference.range_encode(np.full(2**16, value), lo, step, noise)
            assert codes.min() >= 0 and codes.max() < 2**bits
            decoded = reference.decode(codes, np.asarray(lo), np.asarray(np.float32(step)), noise)
            assert abs(decoded.mean() - value) <= (3 if bits == 8 else 1.1) * step * 2**-17

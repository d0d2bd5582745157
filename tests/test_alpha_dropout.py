"""Alpha dropout from a key: torch's two maps, their rate, backward's mask; channel dropout is torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from checks import draws, rng_untouched, same_bits

from rad_kernels import functional, nn
from rad_kernels.memory import saved_bytes


def test_kept_and_dropped_elements_have_torchs_values():
    for p in (0.1, 0.5, 0.8):
        for dtype in (torch.float32, torch.float64):
            x = torch.full((4096,), 0.75, dtype=dtype, requires_grad=True)
            y = functional.alpha_dropout(x, p)
            dropped, kept = F.alpha_dropout(x, p, True).unique().tolist()
            tolerance = 4e-6  # dropout's scale is rounded to float32 for every dtype
            is_kept = (y - kept).abs() <= tolerance
            assert (is_kept | ((y - dropped).abs() <= tolerance)).all()
            # 6 standard deviations
            assert abs(is_kept.sum() - 4096 * (1 - p)) <= 6 * math.sqrt(4096 * p * (1 - p))
            (dx,) = torch.autograd.grad(y.sum(), x)
            slope = torch.where(is_kept, (1.7580993408473766**2 * p + 1) ** -0.5 * (1 - p) ** -0.5, 0.0)
            torch.testing.assert_close(dx, slope.to(dtype))


def test_it_keeps_a_key_and_draws_one():
    layer, x = nn.AlphaDropout(0.3), torch.randn(300, 300, requires_grad=True)
    assert saved_bytes(lambda: layer(x * 1)).total == 64
    assert draws(lambda: layer(x)) == 1
    inner = x * 1
    assert nn.AlphaDropout(0.3, inplace=True)(inner) is inner
    inner.sum().backward()
    with rng_untouched():
        assert same_bits(layer.eval()(x), x)
        functional.alpha_dropout(x, 0.0)
    for p, error in ((1.5, ValueError), ("0.5", TypeError)):
        with pytest.raises(error, match="p must be"):
            functional.alpha_dropout(x, p)


def test_torchs_channel_dropout_keeps_one_number_a_channel():
    for dims in (1, 2, 3):
        x = torch.randn(2, 5, *[4] * dims, requires_grad=True)
        layer = getattr(torch.nn, f"Dropout{dims}d")(0.5)
        assert saved_bytes(lambda x=x, layer=layer: layer(x * 1)).total == 2 * 5 * 4

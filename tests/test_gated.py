"""Gated units: torch's output, unbiased gradients from two independent packs, bytes and modes."""

import numpy as np
import pytest
import torch
from cases import DTYPES
from checks import draws, rng_untouched, same_bits
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, nn, ops, reference
from rad_kernels.memory import saved_bytes

KEYS = torch.tensor([2**62 + 12345, 77])
every_gate = pytest.mark.parametrize("activation", ops.GATES)


def leaves(*shape, dtype=torch.float32):
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2)]


def exact(gate, up, activation):
    return ops.GATES[activation][0](gate) * up


@every_gate
def test_y_is_torchs_and_gradients_are_within_half_a_step(activation):
    for dtype in DTYPES:
        for layout in (lambda t: t, lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[0, 0]):
            gate, up = leaves(20, 130, dtype=dtype)
            y = functional.gated(layout(gate), layout(up), activation, bits=8)
            expected = exact(layout(gate), layout(up), activation)
            assert same_bits(y, expected)
            dy = torch.randn_like(expected)
            for got, want in zip(
                *(torch.autograd.grad(v, (gate, up), dy) for v in (y, expected)), strict=True
            ):
                # A factor's range is below 16, its step below 16/255 and half of that .0314.
                assert got.dtype == dtype
                assert ((got - want).abs() <= 0.04 * dy.abs().max() + 0.02 * want.abs()).all()


@every_gate
def test_factors_are_the_twins_codes_with_keys_of_their_own(activation):
    gate, up = leaves(3, 100)
    _, *saved = ops.gated(gate.detach(), up.detach(), activation, 4, True, True, KEYS)
    factors = torch.autograd.grad(exact(gate, up, activation).sum(), (gate, up))
    for key, buffer, factor in zip(KEYS.tolist(), saved, factors, strict=True):
        expected = reference.pack(
            factor.numpy().view(np.uint32), (1, 1, 0, 0, 4), key, ops.rank_salt(), "float32"
        )
        assert np.array_equal(buffer.numpy(), expected)
        assert buffer.numel() == ops.gated_nbytes(factor, 4)


def test_the_mean_over_keys_is_the_gradient():
    gate, up = leaves(2, 64, dtype=torch.float64)
    want = torch.autograd.grad(exact(gate, up, "silu").sum(), (gate, up))
    runs = 4000
    total = [torch.zeros(2, 64, dtype=torch.float64) for _ in want]
    product = torch.zeros(2, 64, dtype=torch.float64)
    for key in range(runs):
        _, *saved = ops.gated(gate.detach(), up.detach(), "silu", 1, keys=torch.tensor([key, key + 2**40]))
        parts = [ops.gated_product(torch.ones_like(gate), s, 1).detach() for s in saved]
        total = [t + p for t, p in zip(total, parts, strict=True)]
        product += (parts[0] - want[0]) * (parts[1] - want[1])
    for t, w in zip(total, want, strict=True):
        # With one bit a group's step is its range R, and the error uniform on (-R/2, R/2).
        span = (w.max(-1, keepdim=True)[0] - w.min(-1, keepdim=True)[0]) * 1.01
        assert ((t / runs - w).abs() <= 5.5 * span / (12 * runs) ** 0.5).all()
    spans = [w.max(-1, keepdim=True)[0] - w.min(-1, keepdim=True)[0] for w in want]
    assert ((product / runs).abs() <= 5.5 * 1.03 * spans[0] * spans[1] / 12 / runs**0.5).all()


def test_only_what_is_needed_is_kept():
    for needs in ((True, True), (True, False), (False, True)):
        gate, up = (t.detach().requires_grad_(need) for t, need in zip(leaves(30, 100), needs, strict=True))
        report = saved_bytes(lambda g=gate, u=up: functional.gated(g * 1, u * 1))
        assert report.total == sum(needs) * ops.gated_nbytes(gate, 4)
        y = functional.gated(gate, up)
        y.sum().backward()
        assert (gate.grad is not None, up.grad is not None) == needs
        assert draws(lambda g=gate, u=up: functional.gated(g, u)) == 2
        with torch.no_grad():
            assert draws(lambda g=gate, u=up: functional.gated(g, u)) == 2
    assert draws(lambda: functional.gated(gate.detach(), up.detach())) == 2


def test_evaluation_and_bits_none_are_torchs():
    gate, up = leaves(3, 7)
    with rng_untouched():
        for layer in (nn.SwiGLU(bits=None), nn.SwiGLU().eval()):
            grads = (
                torch.autograd.grad(y.sum(), (gate, up)) for y in (layer(gate, up), exact(gate, up, "silu"))
            )
            assert all(map(same_bits, *grads))
        with torch.inference_mode():
            nn.SwiGLU()(gate, up)
        functional.gated(gate[:0], up[:0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    layers, results = (nn.SwiGLU("gelu"), torch.nn.Dropout(0.5)), []
    gate, up = leaves(8, 70)
    run = lambda g, u: layers[1](layers[0](g * 1, u * 1))  # noqa: E731
    for call in (run, lambda g, u: checkpoint(run, g, u, use_reentrant=use_reentrant)):
        torch.manual_seed(4)
        gate.grad = up.grad = None
        y = call(gate, up)
        y.square().sum().backward()
        results.append([y.detach(), gate.grad, up.grad])
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()
    compiled = torch.compile(nn.SwiGLU(bits=8), backend=backend, fullgraph=True)
    gate, up = leaves(9, 70)
    y, want = compiled(gate, up), exact(gate, up, "silu")
    torch.testing.assert_close(y, want)
    for got, expected in zip(*(torch.autograd.grad(v.sum(), (gate, up)) for v in (y, want)), strict=True):
        assert (got - expected).abs().max() <= 0.04 and not torch.equal(got, expected)


def test_a_second_derivative_raises():
    gate, up = leaves(3, 7)
    (dg,) = torch.autograd.grad(functional.gated(gate, up).sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="coded gate cannot be differentiated again"):
        dg.sum().backward()


def test_layer_and_errors():
    assert (
        repr(nn.SwiGLU("gelu", bits=2)) == "SwiGLU(activation='gelu', bits=2)"
        and not nn.SwiGLU().state_dict()
    )
    x = torch.ones(3)
    for call, message in (
        (lambda: functional.gated(x, torch.ones(4)), r"must have one shape, got \(3,\) and \(4,\)"),
        (lambda: functional.gated(x, x, "swish"), "activation must be one of silu, .*got 'swish'"),
        (lambda: nn.SwiGLU(bits=5), "bits must be None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="must have one dtype"):
        functional.gated(x, x.double())


def test_opcheck():
    gate, up = torch.randn(4, 70), torch.randn(4, 70)
    opcheck(torch.ops.rad_kernels.gated, (gate, up, 0, 4, True, True, 0, KEYS))
    opcheck(torch.ops.rad_kernels.gated, (gate.t(), up.t(), 1, 2, False, True, 0, KEYS))

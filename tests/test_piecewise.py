"""Piecewise linear functions with one bit an element: torch's bits in y and dx, 4 * ceil(n / 32) bytes."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import rng_untouched, same_bits
from test_relu import special_values
from torch.library import opcheck

from rad_kernels import functional, nn, ops
from rad_kernels.memory import saved_bytes

# name -> ours and torch's on the same arguments, and where the slope changes.
CASES = {
    "relu6": (functional.relu6, F.relu6, (0, 6)),
    "hardtanh": (functional.hardtanh, F.hardtanh, (-1, 1)),
    "hardtanh 0.1": (
        lambda x: functional.hardtanh(x, -0.3, 0.1), lambda x: F.hardtanh(x, -0.3, 0.1), (-0.3, 0.1)
    ),
    "leaky_relu": (functional.leaky_relu, F.leaky_relu, (0,)),
    "leaky_relu -0.2": (
        lambda x: functional.leaky_relu(x, -0.2), lambda x: F.leaky_relu(x, -0.2), (0,)
    ),
    "threshold": (
        lambda x: functional.threshold(x, 0.1, 20), lambda x: F.threshold(x, 0.1, 20), (0.1,)
    ),
    "hardsigmoid": (functional.hardsigmoid, F.hardsigmoid, (-3, 3)),
    "softshrink": (functional.softshrink, F.softshrink, (-0.5, 0.5)),
    "softshrink 0.1": (
        lambda x: functional.softshrink(x, 0.1), lambda x: F.softshrink(x, 0.1), (-0.1, 0.1)
    ),
    "hardshrink": (functional.hardshrink, F.hardshrink, (-0.5, 0.5)),
    "hardshrink 0.1": (
        lambda x: functional.hardshrink(x, 0.1), lambda x: F.hardshrink(x, 0.1), (-0.1, 0.1)
    ),
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES)
INPLACE = (nn.ReLU6, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid)


def values(dtype, kinks, shape=(7, 157)):
    """Random, special, and next to every kink on both sides."""
    x = torch.randn(shape, dtype=torch.float64).mul(3).to(dtype)
    flat, special = x.view(-1), special_values(dtype)
    near = torch.tensor(kinks, dtype=dtype)
    near = torch.cat([near, *(torch.nextafter(near, torch.tensor(end, dtype=dtype)) for end in (-9.0, 9.0))])
    part = torch.cat([special, near])
    flat[: len(part)] = part
    flat[-len(part) :] = part.flip(0)
    return x


def gradients(function, x, dy):
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    return y, torch.autograd.grad(y, leaf, dy)[0]


@every_case
def test_torchs_bits(case):
    ours, theirs, kinks = CASES[case]
    for dtype in DTYPES:
        x = values(dtype, kinks)
        for dy in (torch.randn_like(x), values(dtype, kinks).t().reshape(x.shape)):
            for layout in (lambda t: t, lambda t: t.t(), lambda t: t[:, ::2], lambda t: t[:1].expand(5, -1)):
                got, expected = (
                    gradients(ours, layout(x), layout(dy)),
                    gradients(theirs, layout(x), layout(dy)),
                )
                assert same_bits(got[0], expected[0]), dtype
                # For NaN in x, torch's vectorised loops and their tails differ; of NaN in dx, the payloads.
                known = ~layout(x).isnan()
                assert torch.equal(got[1].isnan()[known], expected[1].isnan()[known]), dtype
                known &= ~expected[1].isnan()
                assert same_bits(got[1][known], expected[1][known]), dtype


@every_case
def test_one_bit_is_retained(case):
    for n in (1, 32, 33, 4097):
        x = torch.randn(n, requires_grad=True)
        assert saved_bytes(lambda x=x: CASES[case][0](x * 1)).total == 4 * ((n + 31) // 32)
    with rng_untouched(), torch.no_grad():
        assert same_bits(CASES[case][0](x), CASES[case][1](x))


@pytest.mark.parametrize("layer", INPLACE)
def test_inplace(layer):
    torchs = getattr(torch.nn, layer.__name__)
    x = torch.randn(40, requires_grad=True)
    for make in (lambda x: x * 1, lambda x: (x * 1)[::2], lambda x: (x * 1).view(5, 8).t()):
        inner = make(x)
        y = layer(inplace=True)(inner)
        assert y is inner
        other = make(x)
        expected = torchs(inplace=True)(other)
        assert same_bits(y, expected)
        assert same_bits(*(torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (y, expected)))
    with pytest.raises(RuntimeError, match="leaf Variable"):
        layer(inplace=True)(x)


def test_all_derivatives():
    for case in ("leaky_relu", "hardsigmoid", "hardtanh"):
        x = torch.linspace(-5, 5, 33, dtype=torch.float64).add(0.017).requires_grad_()
        assert torch.autograd.gradcheck(CASES[case][0], x)
        assert torch.autograd.gradgradcheck(CASES[case][0], x)
        ours, theirs = (
            torch.func.grad(lambda x, f=f: f(x).pow(2).sum())(x.detach()) for f in CASES[case][:2]
        )
        assert same_bits(ours, theirs)


def test_layers_are_torchs():
    x = torch.randn(50, requires_grad=True)
    made = [nn.ReLU6(), nn.LeakyReLU(0.3), nn.Hardtanh(-2, 0.5), nn.Threshold(0.1, 4.0), nn.Hardsigmoid(),
            nn.Softshrink(0.2), nn.Hardshrink(0.3)]  # fmt: skip
    for layer in made:
        base = type(layer).__mro__[1]
        exact = base.__new__(base)
        exact.__dict__.update(layer.__dict__)
        assert base.__module__.startswith("torch.nn") and repr(layer) == repr(exact)
        assert all(map(same_bits, *(gradients(f, x, torch.ones_like(x)) for f in (layer, exact))))
        assert saved_bytes(lambda layer=layer: layer(x * 1)).total == 8
        assert "Piecewise" in type(layer(x).grad_fn).__name__
        assert "Piecewise" not in type(layer.eval()(x).grad_fn).__name__


def test_compiled():
    torch._dynamo.reset()

    def network(x):
        return functional.hardsigmoid(functional.leaky_relu(functional.relu6(x * 2) - 1))

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(33, 5, requires_grad=True)
    assert all(
        map(same_bits, gradients(compiled, x, torch.ones_like(x)), gradients(network, x, torch.ones_like(x)))
    )


def test_opcheck():
    x = torch.randn(6, 7).t()
    opcheck(torch.ops.rad_kernels.kink, (x, 2, -0.5, 0.5))
    mask = ops.kink(x, "between", -0.5, 0.5)
    opcheck(torch.ops.rad_kernels.sloped, (x, mask, 1.0, 0.1, x.stride()))
    with pytest.raises(RuntimeError, match="mask must hold 2 int32 words"):
        ops.sloped(x, mask[:1], 1.0, 0.0, x.stride())
    with pytest.raises(RuntimeError, match="unknown rule 5"):
        torch.ops.rad_kernels.kink(x, 5, 0.0, 0.0)


def test_errors():
    x = torch.ones(3)
    for call, message in (
        (lambda: functional.hardtanh(x, 1.0, -1.0), "min_val must not be above max_val, got 1.0 and -1.0"),
        (lambda: functional.softshrink(x, -1), "lambd must be at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: functional.leaky_relu(x, "0.1"), "negative_slope must be a number, got '0.1'"),
        (lambda: functional.threshold(x, None, 0), "threshold must be a number, got None"),
        (lambda: functional.relu6(torch.ones(3, dtype=torch.int32)), "x must have dtype"),
    ):
        with pytest.raises(TypeError, match=message):
            call()

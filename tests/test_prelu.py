"""PReLU: torch's bits in y and dx, an unbiased gradient of the slopes, bytes, modes and refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import ROUNDING, draws, rng_untouched, same_bits, same_strides
from test_relu import special_values
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import rad_kernels
from rad_kernels import Sketch, functional, nn, ops, reference
from rad_kernels.memory import saved_bytes

# name -> shape of x, number of slopes, view of x.
CASES = {
    "matrix": ((40, 7), 7, lambda t: t),
    "one slope": ((40, 77), 1, lambda t: t),
    "images": ((3, 5, 6, 11), 5, lambda t: t),
    "channels_last": ((3, 5, 6, 11), 5, lambda t: t.contiguous(memory_format=torch.channels_last)),
    "transposed": ((7, 40), 7, lambda t: t.t()),
    "sliced": ((40, 14), 7, lambda t: t[1:, ::2]),
    "expanded": ((1, 5, 1), 5, lambda t: t.expand(30, 5, 9)),
    "vector": ((130,), 1, lambda t: t),
    "scalar": ((), 1, lambda t: t),
}
every_case = pytest.mark.parametrize("case", CASES)


def make(case, dtype=torch.float32):
    shape, slopes, view = CASES[case]
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.linspace(-0.5, 2.0, slopes, dtype=torch.float64).to(dtype).requires_grad_()
    return x, weight, view


def gradients(function, x, weight, view, dy):
    y = function(view(x), weight)
    return y, *torch.autograd.grad(y, (x, weight), dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_case
def test_all_but_the_gradient_of_slopes_is_torchs(case, dtype):
    x, weight, view = make(case, dtype)
    dy = torch.randn(view(x).shape, dtype=torch.float64).to(dtype)
    y, dx, dw = gradients(lambda x, w: functional.prelu(x, w, bits=8), x, weight, view, dy)
    expected, exact, slope = gradients(F.prelu, x, weight, view, dy)
    assert same_bits(y, expected) and same_strides(y, expected)
    assert same_bits(dx, exact)
    # An entry is off by less than half a step of its group, (range / 255) rounded up; then dw is rounded.
    below = view(x).detach().double().clamp(max=0)
    half = (below.max() - below.min()) / 255 * 1.01 / 2
    weights = torch.where(view(x) > 0, 0.0, dy.double().abs())
    exact_dw = dy.double() * below
    dims = [d for d in range(dy.dim()) if d != 1 or weight.numel() == 1]
    sums = [t.sum(dims).reshape(-1) if dims else t.reshape(-1) for t in (exact_dw, weights)]
    bound = sums[1] * half * 1.001 + sums[0].abs() * ROUNDING[dtype] * 2 + 1e-6
    assert dw.dtype == dtype and dw.shape == weight.shape == slope.shape
    assert ((dw.double() - sums[0]).abs() <= bound).all()


def test_special_values_have_torchs_bits():
    for dtype in DTYPES:
        x = special_values(dtype).repeat(6)[:90].view(3, 30).requires_grad_()
        for slope in (0.25, -1.0, 0.0, float("inf"), float("nan")):
            weight = torch.tensor([slope], dtype=dtype)
            y = functional.prelu(x, weight)
            expected = F.prelu(x, weight)
            dy = torch.linspace(-1, 1, 90).view(3, 30).to(dtype)
            dy[0, :3] = torch.tensor([float("inf"), float("nan"), 0.0])
            assert same_bits(y, expected)
            got, want = (torch.autograd.grad(v, x, dy)[0] for v in (y, expected))
            assert torch.equal(got.isnan(), want.isnan())  # NaNs are alike but for their payload
            assert same_bits(got.nan_to_num(0.0), want.nan_to_num(0.0))


def test_codes_are_the_twins():
    key = torch.tensor([2**62 + 5])
    for shape in ((6, 70), (3, 5, 11)):
        x = torch.randn(shape)
        _, mask, saved = ops.prelu(x, torch.tensor([0.3]), 4, key)
        below = x.clamp(max=0).numpy()
        matrix = below if shape[-1] >= 64 else below.reshape(1, -1)
        expected = reference.pack(
            matrix.view(np.uint32), (1, 1, 0, 0, 4), int(key), ops.rank_salt(), "float32"
        )
        assert np.array_equal(saved.numpy(), expected)
        assert torch.equal(mask, ops.relu(x)[1])


def test_the_mean_over_keys_is_the_gradient():
    """Of 16-bit numbers too: nothing is rounded before the sum."""
    for dtype in (torch.float64, torch.bfloat16):
        x, dy = torch.randn(4, 2, 40).to(dtype), torch.randn(4, 2, 40).to(dtype)
        x[0, 0, 0] = -3.0
        below, real = x.double().clamp(max=0), torch.float32 if dtype == torch.bfloat16 else dtype
        want = (dy.double() * below).sum((0, 2))
        selected = torch.where(x > 0, 0.0, dy.double())
        runs, total = 3000, torch.zeros(2, dtype=torch.float64)
        for key in range(runs):
            saved = ops.prelu(x, torch.ones(2, dtype=dtype), 1, torch.tensor([key]))[2]
            total += ops.gated_product(selected.to(real), saved, 1).double().sum((0, 2))
        # With one bit an error is uniform on (-R, R) / 2 for a range R of at most that of all x.
        deviation = (
            selected.square().sum((0, 2)) * (below.max() - below.min()).mul(1.01).square() / 12
        ).sqrt()
        assert ((total / runs - want).abs() <= 5.5 * deviation / runs**0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_kept_and_drawn(dtype):
    x = torch.randn(50, 130).to(dtype).requires_grad_()
    layer = nn.PReLU(130, dtype=dtype)
    mask = 4 * -(-x.numel() // 32)
    codes = ops.gated_nbytes(x.float(), 4)
    assert saved_bytes(lambda: layer(x * 1)).total == mask + codes < x.numel() * dtype.itemsize
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert draws(lambda: layer(x)) == 1 and draws(lambda: layer(x.detach())) == 1
    y = layer(x.detach())
    with torch.no_grad():
        layer.weight.add_(1)  # only dx needs it as it was
    y.sum().backward()
    assert layer.weight.grad is not None
    layer.weight.requires_grad_(False)
    with rng_untouched():
        assert saved_bytes(lambda: layer(x * 1)).total == mask
        layer(x).sum().backward()
        layer.weight.requires_grad_(True)
        with torch.inference_mode():
            layer(x)
        functional.prelu(x[:0], layer.weight).sum().backward()
        functional.prelu(x, layer.weight, bits=None)
        assert same_bits(layer.eval()(x), F.prelu(x, layer.weight))


def test_second_derivatives():
    """dx depends on dy and on the slopes alone, and can be differentiated; dw cannot."""
    x, weight, _ = make("matrix", torch.float64)
    results = []
    for function in (functional.prelu, F.prelu):
        (dx,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), x))
    assert torch.allclose(*(r[0] for r in results), rtol=1e-14)
    (dw,) = torch.autograd.grad(functional.prelu(x, weight).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(dw.sum(), x)


def test_spoilt_values_show():
    x = torch.randn(2, 400, requires_grad=True)
    layer = nn.PReLU()
    with torch.no_grad():
        x[1, 7] = float("nan")
    y = layer(x)
    y.sum().backward()
    assert y.isnan().sum() == 1 and layer.weight.grad.isnan().all()
    assert x.grad.isfinite().all()  # as torch's: the derivative of a NaN is the slope


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant):
    layer, x = nn.PReLU(8), torch.randn(40, 8, requires_grad=True)
    results = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        torch.manual_seed(3)
        layer.zero_grad()
        call(x).square().sum().backward()
        results.append((layer.weight.grad.clone(), torch.get_rng_state()))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled(backend):
    layer = nn.PReLU(8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), layer)
    x, grads = torch.randn(40, 8), []
    for call in (model, torch.compile(model, backend=backend, fullgraph=True)):
        torch.manual_seed(3)
        model.zero_grad()
        call(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()] + [torch.rand(3)])
    for got, want in zip(*grads, strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def test_autocast():
    x, weight, _ = make("matrix")
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = functional.prelu(x, weight), F.prelu(x, weight)
    assert same_bits(y, expected) and y.dtype == torch.bfloat16
    for grads in zip(*(torch.autograd.grad(v.float().sum(), (x, weight)) for v in (y, expected))):
        assert grads[0].dtype == grads[1].dtype == torch.float32


def test_converted_and_restored():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.PReLU(64), torch.nn.Linear(64, 4))
    weight = model[1].weight
    rad_kernels.convert(model, Sketch(0.1))
    assert type(model[1]) is nn.PReLU and model[1].weight is weight and model[1].bits == 4
    assert repr(model[1]) == "PReLU(num_parameters=64, bits=4)"
    rad_kernels.restore(model)
    assert type(model[1]) is torch.nn.PReLU and vars(model[1]).keys() == vars(torch.nn.PReLU(64)).keys()


def test_errors():
    x, weight = torch.ones(4, 3), torch.ones(3, requires_grad=True)
    for call, error, message in (
        (lambda: functional.prelu(x, weight[:2]), ValueError, r"weight must have shape \[1\] or \[3\]"),
        (lambda: functional.prelu(x, weight[None]), ValueError, r"got \(1, 3\)"),
        (lambda: functional.prelu(x[0], weight), ValueError, r"weight must have shape \[1\] or \[1\]"),
        (lambda: functional.prelu(x, weight.double()), TypeError, "got torch.float32 and torch.float64"),
        (lambda: functional.prelu(x, weight.to("meta")), ValueError, "on one device, got cpu and meta"),
        (lambda: functional.prelu(x.int(), weight), TypeError, "x must have dtype"),
        (lambda: functional.prelu(x, 0.25), TypeError, "weight must be a Tensor"),
        (lambda: functional.prelu(x, weight, bits=3), ValueError, "bits must be None, 8, 4, 2, 1; got 3"),
        (lambda: nn.PReLU(bits="4"), TypeError, "bits must be None or an integer"),
    ):
        with rng_untouched(), pytest.raises(error, match=message):
            call()


def test_opcheck():
    for x in (torch.randn(6, 7).t(), torch.randn(3, 5, 70, dtype=torch.bfloat16)):
        for bits in (4, 0):
            weight = torch.ones(x.shape[1], dtype=x.dtype)
            opcheck(torch.ops.rad_kernels.prelu, (x, weight, bits, 0, torch.tensor([5])))

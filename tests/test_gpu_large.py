"""Around 2^31 and 2^32 elements, where indices leave 32 bits: the ends of every result are those of the same
kernel on the end alone, or of torch. (On a host: tests/cpp/test_offsets.cpp, tests/cpp/test_sparse.cpp.)"""

import pytest
import torch
import torch.nn.functional as F
from checks import same_bits

from rad_kernels import Sketch, functional, ops

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SIZES = (2**31 - 1, 2**31, 2**31 + 1, 2**32 + 1)
END = 1 << 20
sizes = pytest.mark.parametrize("n", SIZES, ids=("2^31-1", "2^31", "2^31+1", "2^32+1"))


@pytest.fixture(autouse=True)
def _enough_memory():
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 60 * 2**30:
        pytest.skip(f"60 GiB of GPU memory are needed, {free / 2**30:.0f} are free")
    yield
    torch.cuda.empty_cache()


def large(*shape):
    """Ends and a sprinkling of numbers; the rest 1, so that no time goes into drawing."""
    x = torch.ones(shape, dtype=torch.bfloat16, device=DEVICE)
    flat = x.view(-1)
    flat[:END], flat[-END:] = (torch.randn(END, device=DEVICE) for _ in range(2))
    return x


def ends(x):
    flat = x.reshape(-1)
    return flat[:END], flat[-END:]


@sizes
def test_relu(n):
    x = large(n).requires_grad_()
    y = functional.relu(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert bool((y == F.relu(x.detach())).all())
    for part, slope in zip(ends(x.detach()), ends(dx), strict=True):
        assert torch.equal(slope, (part > 0).to(slope.dtype))


@sizes
def test_dropout_drops_in_backward_what_it_dropped(n):
    x = torch.ones(n, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    y = functional.dropout(x, 0.5)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert bool((dx == y.detach()).all())
    for end in ends(y.detach()):
        assert abs((end == 0).double().mean().item() - 0.5) < 6 * 0.5 / END**0.5


@sizes
@pytest.mark.parametrize("bits", [8, 1])
def test_codes_of_derivatives(n, bits):
    x = large(n).requires_grad_()
    y = functional.gelu(x, bits=bits)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    half_step = 1.258 / (2**bits - 1) / 2
    for part, end, slope in zip(ends(x.detach()), ends(y.detach()), ends(dx), strict=True):
        assert same_bits(end, F.gelu(part))
        leaf = part.clone().requires_grad_()
        (exact,) = torch.autograd.grad(F.gelu(leaf).sum(), leaf)
        assert ((slope - exact).abs() <= half_step + 0.02).all()
        if bits == 8:
            assert slope.float().sub(exact.float()).mean().abs() < 1e-3  # no code is out of place


@sizes
@pytest.mark.parametrize("kind", [Sketch(0.001), Sketch(1 / 64, "different"), Sketch(1, bits=4)], ids=str)
def test_packs_and_weight_gradients(n, kind):
    """[rows, 64] with the last row at the far end: dW is the product with what is unpacked."""
    rows = -(-n // 64)
    x = large(rows, 64)
    saved = ops.pack(x, kind.spec, torch.tensor([77], device=DEVICE))
    dy = torch.zeros(rows, 2, dtype=torch.bfloat16, device=DEVICE)
    dy[:1000, 0], dy[-1000:, 1] = 1, 1
    dw = ops.linear_wgrad(dy, saved, 64, kind.spec)
    estimate = ops.unpack(saved, rows, 64, torch.bfloat16, kind.spec)
    for row, part in ((0, estimate[:1000]), (1, estimate[-1000:])):
        exact = part.double().sum(0)
        bound = 2.0**-7 * part.double().abs().sum(0) + 1e-2
        assert ((dw[row].double() - exact).abs() <= bound).all()
    if kind.bits:  # every entry is kept: each within a step of its group of 64
        for part, decoded in ((x[:1000], estimate[:1000]), (x[-1000:], estimate[-1000:])):
            step = (part.amax(1) - part.amin(1)).double()[:, None] / 15
            assert ((decoded - part).double().abs() <= step + 0.05).all()


@sizes
def test_normalisation(n):
    """The last set is normalised, and its gradient is torch's, within the noise of eight bits."""
    rows = -(-n // 128)
    x, weight = large(rows, 128).requires_grad_(), torch.ones(128, device=DEVICE, dtype=torch.bfloat16)
    y = functional.layer_norm(x, (128,), weight, None, 1e-5, 8)
    dy = torch.zeros_like(y)
    dy[-1] = torch.randn(128, device=DEVICE)
    (dx,) = torch.autograd.grad(y, x, dy)
    last = x.detach()[-1:].clone().requires_grad_()
    (exact,) = torch.autograd.grad(F.layer_norm(last, (128,), weight), last, dy[-1:])
    assert (dx[-1:] - exact).abs().max() <= 0.05 * exact.abs().max()
    assert not dx[: rows // 2].any()


@sizes
def test_max_pool(n):
    x = large(1, 1, -(-n // 2), 2).requires_grad_()
    y = functional.max_pool2d(x, (1, 2))
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for part, slope in zip(ends(x.detach()), ends(dx), strict=True):
        pairs, slopes = part.view(-1, 2), slope.view(-1, 2)
        assert bool((slopes.sum(1) == 1).all())
        assert bool((torch.where(slopes == 1, pairs, -torch.inf).amax(1) == pairs.amax(1)).all())

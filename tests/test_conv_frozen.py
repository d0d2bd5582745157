"""Convolutions whose weight needs no gradient: dx needs the shape of x alone, so that nothing is kept."""

import pytest
import torch
from checks import rng_untouched, same_bits
from test_conv_module import NAMES, SKETCH, VARIANTS, inputs, pair

import rad_kernels
from rad_kernels.memory import saved_bytes


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_torchs_and_nothing_is_kept(name):
    for variant in VARIANTS:
        layer, exact = pair(name, **variant)
        found, leaf = [], inputs(name).detach()
        for module in (layer, exact):
            module.weight.requires_grad_(False)
            x = leaf.clone().requires_grad_()
            with rng_untouched():
                y = module(x * 1)
                y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
            found.append((y, x.grad, module.bias.grad if module.bias is not None else None))
        assert same_bits(found[0][0], found[1][0]) and found[0][0].stride() == found[1][0].stride()
        assert same_bits(found[0][1], found[1][1])
        if found[0][2] is not None:  # summed by torch in another order
            torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-5, atol=1e-3)
    assert saved_bytes(lambda: layer(x * 1)).total == 0
    assert saved_bytes(lambda: exact(x * 1)).total == x.numel() * 4


def test_modes_and_dtypes():
    layer, exact = pair(channels=64)
    for module in (layer, exact):
        module.weight.requires_grad_(False)
    x = inputs(channels=64)
    for low in (None, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=low is not None):
            y, want = layer(x[0]), exact(x[0])  # unbatched
        assert same_bits(y, want)
        (dx,), (exact_dx,) = (torch.autograd.grad(v.float().square().sum(), x) for v in (y, want))
        assert dx.dtype == torch.float32 and torch.allclose(dx, exact_dx, rtol=0.02, atol=0.02)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
        exact.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.no_grad():
        assert same_bits(layer(x), exact(x))


def test_second_derivatives():
    layer, exact = pair()
    x = inputs().detach().double().requires_grad_()
    results = []
    for module in (layer, exact):
        module.double().weight.requires_grad_(False)
        (dx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), x)[0])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled(backend):
    layer, exact = pair()
    layer.weight.requires_grad_(False), exact.weight.requires_grad_(False)
    x = inputs().detach().requires_grad_()
    y = torch.compile(layer, backend=backend, fullgraph=True)(x)
    for got, want in zip(*(torch.autograd.grad(v.square().sum(), x) for v in (y, exact(x))), strict=True):
        torch.testing.assert_close(got, want)


def test_a_frozen_backbone_is_converted():
    convolutions = [torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.Flatten()]
    net = torch.nn.Sequential(*convolutions, torch.nn.Linear(8 * 16, 5), torch.nn.Linear(5, 2))
    net[2].requires_grad_(False)
    rad_kernels.convert(net, SKETCH)
    assert type(net[2]) is rad_kernels.nn.Conv2d
    x = torch.randn(20, 3, 8, 8)
    assert all(e.module != "2" for e in saved_bytes(lambda: net(x)).entries)


class Loss(torch.nn.Sequential):
    def forward(self, x):
        return super().forward(x).square().mean()


def test_a_plan_prices_it_at_nothing():
    net = Loss(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3))
    net[1].requires_grad_(False)
    plan = rad_kernels.fit(net, (torch.randn(8, 3, 12, 12),), 0.6)
    row = next(row for row in plan.rows if row.layers == ("1",))
    assert row.planned == row.variance == 0
    report = saved_bytes(lambda: net(torch.randn(8, 3, 12, 12)))
    assert all(entry.module != "1" for entry in report.entries)

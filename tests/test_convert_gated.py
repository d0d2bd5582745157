"""Gated feed-forwards: known where they compute what they look like, exact otherwise, and back."""

import copy

import pytest
import torch
from checks import same_bits
from torch import nn as tnn

from rad_kernels import Sketch, convert, functional, restore
from rad_kernels.memory import saved_bytes

WIDTH, HIDDEN, ROWS = 16, 32, 64


class MLP(tnn.Module):
    def __init__(self, act):
        super().__init__()
        self.gate_proj, self.up_proj = tnn.Linear(WIDTH, HIDDEN), tnn.Linear(WIDTH, HIDDEN)
        self.down_proj, self.act_fn = tnn.Linear(HIDDEN, WIDTH), act

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Sum(MLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


def network(mlp=MLP, act=None):
    torch.manual_seed(0)
    return tnn.Sequential(tnn.Linear(WIDTH, WIDTH), mlp(act or tnn.SiLU()), tnn.Linear(WIDTH, 2))


def batch():
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


ACTIVATIONS = [
    (tnn.SiLU(), "silu"),
    (tnn.GELU(), "gelu"),
    (tnn.GELU("tanh"), "gelu_tanh"),
    (tnn.ReLU(), "relu"),
    (tnn.Mish(), "mish"),
]


@pytest.mark.parametrize(("act", "name"), ACTIVATIONS, ids=lambda a: a if isinstance(a, str) else "")
def test_the_product_is_coded(act, name):
    """The output stays bit for bit, the gradient is that of functional.gated, and restore takes it back."""
    exact, net, x = network(act=act), network(act=act), batch()
    convert(net, Sketch(0.5), example_inputs=x)
    assert net.rad_report.gated == ("1",) and "act_fn(gate_proj) * up_proj in a few bits: 1" in str(
        net.rad_report
    )
    assert same_bits(net(x), exact(x))
    mlp, h = net[1], torch.randn(ROWS, WIDTH, requires_grad=True)
    dy = torch.randn(ROWS, WIDTH)
    torch.manual_seed(5)
    (dx,) = torch.autograd.grad(mlp(h), h, dy)
    torch.manual_seed(5)
    hidden = functional.gated(mlp.gate_proj(h), mlp.up_proj(h), name, bits=4)
    (again,) = torch.autograd.grad(mlp.down_proj(hidden), h, dy)
    assert same_bits(dx, again)
    twin = copy.deepcopy(net)
    twin[1].down_proj.weight.data.zero_()
    assert same_bits(net(x), exact(x)) and twin[1].forward.owner is twin[1]
    assert same_bits(net.eval()(x), exact(x))
    restore(net)
    assert "forward" not in net[1].__dict__ and same_bits(net.train()(x), exact(x))


def test_less_is_kept():
    net, x = network(), batch()
    before = saved_bytes(lambda: net[1](x)).total
    convert(net, {"1.*": Sketch(0.25)}, example_inputs=x)
    product = 2 * ROWS * HIDDEN * 4  # act(gate) and up, which the product of torch keeps
    assert saved_bytes(lambda: net[1](x)).total < before - product


@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (network(Sum), {}),
        (network(), {"example_inputs": None}),
        (network(), {"act_bits": None}),
        (network(), {"exclude": "1.act_fn"}),
        (network(act=tnn.Softplus()), {}),
    ],
    ids=["another formula", "no probe", "no bits", "excluded", "another activation"],
)
def test_what_is_left_alone(net, settings):
    x = batch()
    expected = net(x)
    convert(net, Sketch(0.5), **{"example_inputs": x, **settings})
    assert net.rad_report.gated == () and "forward" not in net[1].__dict__
    assert same_bits(net(x), expected)


def test_hooks_on_the_activation_are_heard():
    net, x, heard = network(), batch(), []
    net[1].act_fn.register_forward_hook(lambda *_: heard.append(1))
    convert(net, Sketch(0.5), example_inputs=x)
    heard.clear()
    net(x)
    assert heard == [1] and net.rad_report.gated == ()

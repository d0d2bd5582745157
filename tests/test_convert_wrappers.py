"""convert beside other things that change a layer: parametrizations, torch.compile, fully_shard."""

import copy

import pytest
import torch
import torch.nn.functional as F
from checks import same_bits
from test_convert import TENTH, batch, model, step
from torch import nn as tnn
from torch.nn.utils import parametrizations, parametrize

from rad_kernels import Sketch, convert, nn, restore
from rad_kernels.memory import saved_bytes


@pytest.mark.parametrize("late", [False, True])
def test_parametrized_layers(late):
    net, x = tnn.Sequential(tnn.Linear(16, 16), tnn.ReLU(), tnn.Linear(16, 4)), torch.rand(20, 16)
    if not late:
        parametrizations.weight_norm(net[0])
    original = type(net[0])
    exact, parameters = net(x), list(net.parameters())
    convert(net, TENTH)
    if late:
        parametrizations.weight_norm(net[0])
    assert isinstance(net[0], nn.Linear) and parametrize.is_parametrized(net[0])
    torch.testing.assert_close(net(x), exact, rtol=1e-6, atol=1e-6)  # weight_norm rounds g * v / |v|
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    restore(net)
    assert parametrize.is_parametrized(net[0]) and not isinstance(net[0], nn.Linear)
    if not late:
        assert type(net[0]) is original and all(a is b for a, b in zip(net.parameters(), parameters))
    parametrize.remove_parametrizations(net[0], "weight")
    assert type(net[0]) is tnn.Linear


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_weight_norm_by_hooks():
    net, x = tnn.Sequential(tnn.utils.weight_norm(tnn.Linear(16, 16)), tnn.Linear(16, 4)), torch.rand(20, 16)
    expected = net(x)
    convert(net, TENTH)
    assert same_bits(net(x), expected) and type(net[0]) is nn.Linear
    net(x).sum().backward()
    assert net[0].weight_g.grad is not None
    tnn.utils.remove_weight_norm(restore(net)[0])
    assert type(net[0]) is tnn.Linear


@pytest.mark.parametrize("first", [True, False], ids=["converted, then compiled", "compiled, then converted"])
def test_compile(first):
    net, x = model(), batch()
    net[2].drop.p = net[3].drop.p = 0.0
    compiled = torch.compile(net, backend="aot_eager")
    if not first:
        compiled(x).sum().backward()
    convert(net if first else compiled, TENTH)
    expected = restore(copy.deepcopy(net))(x)
    assert same_bits(compiled(x), expected)
    report = saved_bytes(lambda: compiled(x))
    assert report.total < 0.6 * saved_bytes(lambda: restore(copy.deepcopy(net))(x)).total


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("first", [True, False], ids=["converted, then sharded", "sharded, then converted"])
def test_fully_shard(first, tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        net, x = model(), batch()
        plain = convert(copy.deepcopy(net), TENTH)
        if first:
            convert(net, TENTH)
        for part in (net[2].fc1, net[4], net):
            dist.fsdp.fully_shard(part, mesh=mesh)
        if not first:
            convert(net, TENTH)
        assert isinstance(net[2].fc1, nn.Linear) and isinstance(net[2].fc1, dist.fsdp.FSDPModule)
        expected, found = step(plain, x), step(net, x)
        assert (
            saved_bytes(lambda: net(x)).by_module["2.fc2"] == saved_bytes(lambda: plain(x)).by_module["2.fc2"]
        )
        assert same_bits(found[0], expected[0])
        assert all(same_bits(a.full_tensor(), b) for a, b in zip(found[1:], expected[1:], strict=True))
        restore(net)
        assert isinstance(net[2].fc1, dist.fsdp.FSDPModule) and not isinstance(net[2].fc1, nn.Linear)
        assert len(step(net, x)) == len(expected)
    finally:
        dist.destroy_process_group()


def test_functions_that_an_instance_holds_follow_its_mode():
    """In eval they are torch's: no code is kept and nothing drawn, with gradients wanted or not."""

    class Block(tnn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act, self.head = tnn.Linear(16, 64), F.gelu, tnn.Linear(64, 4)

        def forward(self, x):
            return self.head(self.act(self.fc(x)))

    net, x = Block(), torch.rand(64, 16, requires_grad=True)
    exact = copy.deepcopy(net)
    convert(net, TENTH)
    dtypes = {entry.dtype for entry in saved_bytes(lambda: net(x)).entries}
    assert torch.uint8 in dtypes
    net.eval()
    state = torch.get_rng_state()
    y = net(x)
    assert same_bits(y, exact(x)) and torch.equal(torch.get_rng_state(), state)
    dtypes = {entry.dtype for entry in saved_bytes(lambda: net(x)).entries}
    assert torch.uint8 not in dtypes and torch.int32 not in dtypes


class Words(tnn.Module):
    def __init__(self):
        super().__init__()
        self.out = tnn.AdaptiveLogSoftmaxWithLoss(64, 1000, [50, 300])

    def forward(self, x, target):
        return self.out(x * 1, target).loss


def test_adaptive_softmax():
    """No class of its own: the Linears of its clusters are converted, what else it keeps is listed."""
    net, x, target = Words(), torch.randn(256, 64), torch.randint(0, 1000, (256,))
    exact = net(x, target)
    report = convert(net, Sketch(0.25), example_inputs=(x, target)).rad_report
    assert {name for name, module in net.named_modules() if type(module) is nn.Linear} >= {
        f"out.tail.{cluster}.{layer}" for cluster in (0, 1) for layer in (0, 1)
    }
    assert any(kept.op == "LogSoftmaxBackward0" for kept in report.kept)
    loss = net(x, target)
    assert torch.equal(loss, exact)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())

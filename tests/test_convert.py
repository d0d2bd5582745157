"""convert and restore: what changes, what stays, what is left alone, and errors."""

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from checks import rng_untouched, same_bits
from torch import nn as tnn

import rad_kernels
from rad_kernels import Sketch, convert, nn, restore
from rad_kernels.memory import saved_bytes

TENTH = Sketch(0.1)


class Block(tnn.Module):
    """Calls relu in all the ways that models do."""

    def __init__(self, d=32):
        super().__init__()
        self.fc1, self.fc2 = tnn.Linear(d, 2 * d), tnn.Linear(2 * d, d)
        self.activation, self.drop = F.relu, tnn.Dropout(0.2)

    def forward(self, x):
        return x + self.drop(self.fc2(self.activation(self.fc1(F.relu(x)))))


def model():
    torch.manual_seed(0)
    return tnn.Sequential(tnn.Linear(16, 32), tnn.ReLU(), Block(), Block(), tnn.Linear(32, 10))


def batch():
    return torch.rand(40, 16, generator=torch.Generator().manual_seed(1))


def step(net, x, seed=5):
    net.zero_grad()
    torch.manual_seed(seed)
    y = net(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def everything_about(net):
    """All that restore has to bring back."""
    return [
        (name, type(m), {k: v for k, v in vars(m).items() if not k.startswith("_")}, set(vars(m)))
        for name, m in net.named_modules()
    ]


def test_layers_become_those_of_the_package_and_restore_takes_it_back():
    net, x = model().eval(), batch()
    exact, state = net(x), copy.deepcopy(net.state_dict())
    parameters, before = list(net.parameters()), everything_about(net)
    with rng_untouched():
        assert convert(net, TENTH, example_inputs=x) is net
    assert not net.training and not any(m.training for m in net.modules())
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert [type(m) for m in net[2].children()] == [nn.Linear, nn.Linear, nn.Dropout]
    assert net[2].fc1.sketch == TENTH and type(net[1]) is nn.ReLU and type(net[4]) is tnn.Linear
    assert same_bits(net(x), exact)
    model().load_state_dict(net.state_dict(), strict=True)
    net.load_state_dict(state, strict=True)
    assert restore(net) is net and not hasattr(net, "rad_report")
    assert everything_about(net) == before and same_bits(net(x), exact)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))


def test_copies_and_pickles_behave_as_the_converted_model():
    net, x = convert(model(), TENTH, example_inputs=batch()), batch()
    expected = step(net, x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(map(same_bits, step(twin, x), expected))
        assert twin.rad_report == net.rad_report
        twin[2].train(False)
        assert net[2].training  # the activation asks its own block, not the original's
        assert twin[2].activation.owner is twin[2]
        assert type(restore(twin)[0]) is tnn.Linear and type(net[0]) is tnn.Linear
        assert twin[2].activation is F.relu and "owner" in vars(net[2].activation)


def test_the_report():
    net, x = model(), batch()
    assert convert(net, TENTH, example_inputs=x, dry_run=True).converted == (
        "1",
        "2.fc1",
        "2.fc2",
        "2.drop",
    ) + (
        "3.fc1",
        "3.fc2",
        "3.drop",
    )
    assert type(net[1]) is tnn.ReLU and not hasattr(net, "rad_report")
    report = convert(net, TENTH, example_inputs=x).rad_report
    assert report.skipped == {
        "0": "its input is the model's, which the caller holds anyway",
        "4": "the last Linear before the loss: name it to convert it",
    }
    torch.manual_seed(0)
    assert report.after == saved_bytes(lambda: net(x)).total < report.before
    left = {(kept.module, kept.op): kept for kept in report.kept}
    functional = left["2", "ReluBackward0"]  # F.relu in forward cannot be reached, only be told
    assert functional.bytes == 40 * 32 * 4 and functional.instead == "functional.relu"
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["name"] == "0"
    text = str(report)
    assert "functional.relu" in text and "2.fc1" in text and "whole step" in text
    assert "rad_report" not in net.state_dict()


@pytest.mark.parametrize(
    ("sketch", "expected"),
    [
        (TENTH, {"2.fc1": TENTH, "2.fc2": TENTH, "3.fc1": TENTH, "3.fc2": TENTH, "0": TENTH}),
        ({tnn.Linear: TENTH, "3.*": None, "3.fc1": Sketch(0.5)}, {"0": TENTH, "3.fc1": Sketch(0.5)}),
        ({"4": TENTH}, {"4": TENTH}),
        ({"*.fc1": Sketch(0.2), "*": TENTH}, {"2.fc1": Sketch(0.2), "2.fc2": TENTH, "0": TENTH}),
    ],
    ids=["one for all", "names before patterns before types", "a named head", "first pattern"],
)
def test_sketches_by_name_pattern_and_type(sketch, expected):
    net = convert(model(), sketch)
    found = {name: m.sketch for name, m in net.named_modules() if isinstance(m, nn.Linear)}
    assert expected.items() <= found.items()
    assert ("4" in found) == ("4" in expected)


def test_include_and_exclude():
    net = convert(model(), TENTH, include="2.*", exclude=[tnn.Dropout])
    assert net.rad_report.converted == ("2.fc1", "2.fc2")
    assert (
        net.rad_report.skipped["2.drop"] == "in exclude" and net.rad_report.skipped["1"] == "not in include"
    )
    again = convert(net, TENTH, include="3.*")
    assert again.rad_report.converted == ("3.fc1", "3.fc2", "3.drop")
    assert again.rad_report.skipped["2.fc1"] == "already a layer of rad_kernels"
    restore(again)
    assert not [m for m in again.modules() if isinstance(m, nn.Linear)]


class Tied(tnn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mid, self.head = tnn.Embedding(9, 8), tnn.Linear(8, 8), tnn.Linear(8, 9, bias=False)
        self.head.weight = self.embed.weight
        self.last = tnn.Linear(9, 2)

    def forward(self, i):
        return self.last(self.head(self.mid(self.embed(i))))


class Mine(tnn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def test_reasons_to_leave_a_layer_alone():
    net = tnn.ModuleDict({"tied": Tied(), "mine": Mine(4, 4), "frozen": tnn.Linear(4, 4)})
    net["frozen"].weight.requires_grad_(False)
    net["patched"] = tnn.Linear(4, 4)
    net["patched"].forward = lambda x: x
    net["end"] = tnn.Linear(4, 4)
    assert convert(net, {tnn.Linear: TENTH, "end": TENTH}).rad_report.skipped == {
        "tied.head": "tied to tied.embed",
        "mine": "a subclass of torch.nn.Linear",
        "frozen": "its weights are frozen: nothing is kept for them",
        "patched": "its forward was replaced on the instance",
    }
    assert net["tied"].head.weight is net["tied"].embed.weight
    wasteful = tnn.Sequential(tnn.Embedding(5, 8), tnn.Linear(8, 8), tnn.ReLU(), tnn.Linear(8, 2))
    report = convert(wasteful, Sketch(0.95), example_inputs=torch.arange(5)).rad_report
    assert report.skipped["1"] == "a pack would cost 90 % of the exact bytes or more (rows:0.95)"


def test_the_last_linear_is_the_last_one_called():
    class Backwards(tnn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body = tnn.Linear(8, 8), tnn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.body(x * 1))

    x = torch.rand(40, 8)
    assert "body" in convert(Backwards(), TENTH, dry_run=True).skipped
    assert list(convert(Backwards(), TENTH, example_inputs=x, dry_run=True).skipped) == ["head"]


def test_a_probe_leaves_no_trace():
    net = tnn.Sequential(tnn.Linear(8, 8), tnn.BatchNorm1d(8), tnn.Dropout(), tnn.ReLU(), tnn.Linear(8, 2))
    net[0].register_forward_hook(lambda *_: None)
    net[3].eval()
    before, x = copy.deepcopy(net.state_dict()), torch.rand(20, 8)
    with rng_untouched():
        convert(net, TENTH, norm_bits=None, example_inputs={"input": x})
    assert all(
        map(same_bits, (b.float() for b in before.values()), (b.float() for b in net.state_dict().values()))
    )
    assert [m.training for m in net] == [True, True, True, False, True]
    assert not net[1]._forward_pre_hooks and len(net[0]._forward_hooks) == 1
    assert all(p.grad is None for p in net.parameters())


class Conv1D(tnn.Module):
    """As in transformers: y = x W + b with W [nx, nf]."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = tnn.Parameter(torch.empty(nx, nf)), tnn.Parameter(torch.zeros(nf))
        tnn.init.normal_(self.weight, std=0.02)

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def test_huggingface_conv1d():
    net, x = tnn.Sequential(tnn.Tanh(), Conv1D(24, 16), tnn.ReLU(), Conv1D(4, 24)), torch.rand(3, 20, 16)
    expected = net(x)
    convert(net, TENTH)
    assert same_bits(net(x), expected) and isinstance(net[1], Conv1D)
    report = saved_bytes(lambda: net(x))
    assert report.by_module["1"] == 6 * 16 * 4 + 64  # 384 bytes are whole 128-byte lines
    gradients = step(net, x)
    assert all(map(same_bits, step(copy.deepcopy(net), x), gradients))
    assert all(map(same_bits, step(pickle.loads(pickle.dumps(net)), x), gradients))
    net.eval()
    assert same_bits(net(x), expected)
    assert "forward" not in vars(restore(net)[1])


class Adapter(tnn.Module):
    """A low-rank adapter as PEFT builds it: a frozen layer, two thin ones beside it."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A, self.lora_B = (
            tnn.Linear(base.in_features, rank, bias=False),
            tnn.Linear(rank, base.out_features),
        )

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def test_low_rank_adapters():
    net = tnn.Sequential(
        tnn.Linear(16, 64).requires_grad_(False),
        tnn.ReLU(),
        Adapter(tnn.Linear(64, 64)),
        tnn.ReLU(),
        tnn.Linear(64, 4),
    )
    x = torch.rand(50, 16)
    before = saved_bytes(lambda: net(x))
    report = convert(net, TENTH, example_inputs=x).rad_report
    assert report.converted == ("1", "2.lora_A", "2.lora_B", "3")
    frozen = "its weights are frozen: nothing is kept for them"
    assert report.skipped["0"] == report.skipped["2.base_layer"] == frozen
    assert before.by_module["2.lora_A"] == 50 * 64 * 4
    assert saved_bytes(lambda: net(x)).by_module["2.lora_A"] == 5 * 64 * 4 + 64
    assert len(step(net, x)) == 1 + 5
    assert net[2].base_layer.weight.grad is None


def test_packs_can_be_offloaded():
    net, x = convert(model(), TENTH), batch()
    expected = step(net, x)
    with torch.autograd.graph.save_on_cpu():
        assert all(map(same_bits, step(net, x), expected))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"sketch": 0.1}, TypeError, "sketch must be a rad_kernels.Sketch, got 0.1"),
        ({"sketch": {"0": 0.1}}, TypeError, "sketch must be a rad_kernels.Sketch, got 0.1"),
        ({"sketch": {3: TENTH}}, TypeError, "keys of sketch must be names, patterns or classes .* got 3"),
        ({"sketch": {"fc9": TENTH}}, ValueError, "sketch: 'fc9' matches no layer"),
        ({"include": "fc9"}, ValueError, "include: 'fc9' matches no layer"),
        ({"exclude": [tnn.Conv3d]}, ValueError, "exclude: .*Conv3d.* matches no layer"),
        ({"exclude": [int]}, TypeError, "exclude must be names, patterns or classes .* got <class 'int'>"),
        ({"norm_bits": 5}, ValueError, "norm_bits must be None, 8, 4, 3, 2, 1; got 5"),
        ({"act_bits": True}, ValueError, "act_bits must be None, 8, 4, 2, 1; got True"),
        ({"share": True}, ValueError, 'share must be "auto" or False, got True'),
        ({"recompute": "all"}, ValueError, "recompute must be None or \"attention\", got 'all'"),
        ({"recompute": "attention"}, ValueError, "finds no block"),
        ({"example_inputs": 3}, TypeError, "example_inputs must be a tensor, a tuple .* got int"),
        ({"model": tnn.Embedding(2, 2)}, ValueError, "nothing to convert in Embedding"),
        ({"model": tnn.Linear(2, 2)}, ValueError, "nothing to convert in Linear .*the last Linear"),
    ],
)
def test_bad_arguments_change_nothing(change, error, message):
    net = model()
    arguments = {"model": net, "sketch": TENTH, **change}
    with pytest.raises(error, match=message):
        convert(**arguments)
    assert {type(m) for m in net.modules()} == {tnn.Sequential, tnn.Linear, tnn.ReLU, Block, tnn.Dropout}


def test_restore_of_what_is_not_converted():
    with pytest.raises(ValueError, match="nothing in this Sequential was converted"):
        restore(model())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        restore(3)
    mine = tnn.Sequential(nn.ReLU(), tnn.Linear(3, 3), tnn.Linear(3, 3))
    restore(convert(mine, TENTH))
    assert type(mine[0]) is nn.ReLU  # not convert's work, so not restore's


def test_the_names_of_the_package():
    assert rad_kernels.convert is convert and rad_kernels.restore is restore


def test_convolutions_and_recurrent_layers():
    net = tnn.ModuleDict(
        {"conv": tnn.Conv2d(3, 4, 3), "lstm": tnn.LSTM(8, 8), "small": tnn.LSTM(8, 8, proj_size=2)}
    )
    net["end"] = tnn.GRU(4, 4)
    before = everything_about(net)
    report = convert(net, {"*": Sketch(0.1, "tile_rows"), "end": Sketch(0.5, bits=8)}).rad_report
    assert report.converted == ("lstm", "end") and report.skipped["small"] == "proj_size=2 is not supported"
    assert report.skipped["conv"].startswith("sketch tile_rows:0.1 does not go with a convolution")
    assert (net["lstm"].bits, net["lstm"].return_sequence, net["end"].sketch.bits) == (8, True, 8)
    state, x = net.state_dict(), torch.rand(5, 30, 8)
    y = pickle.loads(pickle.dumps(net))["lstm"](x)[0]
    assert y.requires_grad and restore(net) is net and everything_about(net) == before
    net.load_state_dict(state, strict=True)

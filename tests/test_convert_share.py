"""Linears of one input that share a pack, MultiheadAttention, and attention that is computed again."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from checks import draws, same_bits
from torch import nn as tnn
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, convert, nn, restore
from rad_kernels.convert.share import WASTED
from rad_kernels.functional import SketchWarning, shared_linear
from rad_kernels.memory import saved_bytes

QUARTER = Sketch(0.25)
D, ROWS = 16, 32
PACK = ROWS // 4 * D * 4 + 64


class Attention(tnn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = tnn.Linear(D, D), tnn.Linear(D, 8, bias=False), tnn.Linear(D, D)
        self.o = tnn.Linear(D, D)
        self.other = False

    def forward(self, x):
        x = x * 1
        k = self.k(x * 2 if self.other else x)
        return self.o(self.q(x) * self.v(x) * k.sum(-1, keepdim=True))


class Net(tnn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.drop, self.head = Attention(), tnn.Dropout(0.3), tnn.Linear(D, 2)
        self.mode = None

    def forward(self, x):
        if self.mode is None:
            return self.head(self.drop(self.attn(x)))
        return self.head(
            self.drop(checkpoint(self.attn, x, use_reentrant=self.mode, preserve_rng_state=True))
        )


def shared():
    torch.manual_seed(0)
    net = Net()
    x = torch.rand(ROWS, D, requires_grad=True)
    convert(net, QUARTER, example_inputs=x)
    assert net.rad_report.shared == (("attn.k", "attn.q", "attn.v"),) or net.rad_report.shared == (
        ("attn.q", "attn.k", "attn.v"),
    )
    return net, x


def gradients(net, x, seed=7):
    net.zero_grad()
    torch.manual_seed(seed)
    y = net(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in net.parameters())]


def group(net):
    return net.attn.q._rad_group


def waits(net):
    waiting = getattr(group(net)._running, "waiting", None)
    return len(waiting.outputs) if waiting else 0


def test_one_pack_serves_all():
    net, x = shared()
    packs = [
        e
        for e in saved_bytes(lambda: net(x)).entries
        if e.module.startswith("attn.") and e.dtype == torch.uint8
    ]
    assert [e.bytes for e in packs] == [PACK, PACK]  # of q, k and v together, and of o
    a, h = net.attn, x.detach()
    torch.manual_seed(3)
    ys = shared_linear(h, [m.weight for m in (a.q, a.k, a.v)], [m.bias for m in (a.q, a.k, a.v)], QUARTER)
    dws = torch.autograd.grad(sum(y.sum() for y in ys), [a.q.weight, a.k.weight, a.v.weight])
    torch.manual_seed(3)
    mine = [a.k(h), a.v(h), a.q(h)]  # in any order
    again = torch.autograd.grad(sum(y.sum() for y in mine), [a.q.weight, a.k.weight, a.v.weight])
    assert all(map(same_bits, again, dws)) and all(map(same_bits, (mine[2], mine[0], mine[1]), ys))
    assert waits(net) == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    net, x = shared()
    expected = gradients(net, x)
    net.mode = reentrant
    assert all(map(same_bits, gradients(net, x), expected))
    assert not group(net).dissolved and waits(net) == 0


def test_draws_do_not_depend_on_grad_mode():
    net, x = shared()

    def without():
        with torch.no_grad():
            net.attn(x)

    assert draws(lambda: net.attn(x)) == draws(without) == 2
    assert draws(lambda: net.eval()(x)) == 0
    with torch.inference_mode():
        net.train()(x)
    assert not group(net).dissolved


def test_copies_share_among_themselves():
    net, x = shared()
    expected = gradients(net, x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(map(same_bits, gradients(twin, x), expected))
        assert group(twin) is not group(net) and group(twin).members[0] is twin.attn.q
    alone = copy.deepcopy(net.attn.k)
    assert same_bits(alone(x), net.attn.k(x))
    net(x)
    assert not group(net).dissolved


def test_a_replica_is_no_member():
    """DataParallel copies the attributes of modules, with other weights."""
    net, x = shared()
    replica = net.attn.k._replicate_for_data_parallel()
    replica.weight, replica.bias = net.attn.k.weight.detach() * 2, None
    net.attn.q(h := x * 1)
    assert torch.equal(replica(h), 2 * net.attn.k(h))
    assert not group(net).dissolved


def test_an_exception_midway_leaves_nothing_behind():
    net, x = shared()
    handle = net.attn.k.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(x)
    handle.remove()
    assert waits(net) == 0  # the input died, and with it what was computed ahead
    expected = gradients(copy.deepcopy(net), x)
    assert all(map(same_bits, gradients(net, x), expected)) and not group(net).dissolved


def test_members_that_part_ways_dissolve_the_group_once():
    net, x = shared()
    plain, net.attn.other = restore(copy.deepcopy(net)), True
    plain.attn.other = True
    for _ in range(WASTED // 2):  # each call begins two passes
        assert same_bits(net.attn(x), plain.attn(x)) and waits(net) == 0
    with pytest.warns(
        SketchWarning, match="attn.q, .* no longer share a pack: .* not called with one"
    ) as caught:
        y = net.attn(x)
    assert len(caught) == 1 and group(net).dissolved
    assert same_bits(y, plain.attn(x)) and same_bits(net.attn(x), plain.attn(x))
    net.attn(x).sum().backward()
    assert all(p.grad is not None for p in net.attn.parameters())


@pytest.mark.parametrize("change", ["input", "weight", "grad mode", "sketch", "hook"])
def test_what_is_taken_is_what_would_have_been_computed(change, recwarn):
    net, x = shared()
    q, k = net.attn.q, net.attn.k
    h = x.detach() * 1
    if change == "sketch":
        k.sketch = Sketch(0.5)
    if change == "hook":
        k.register_forward_pre_hook(lambda _m, args: (args[0] + 1,))
    if change == "grad mode":
        with torch.no_grad():
            q(h)
    else:
        q(h)
    if change == "input":
        h += 1
    if change == "weight":
        with torch.no_grad():
            k.weight += 1
    y = k(h)
    assert same_bits(y, F.linear(h + (change == "hook"), k.weight)) and y.requires_grad
    assert [w.category for w in recwarn] == ([] if change == "sketch" else [SketchWarning])


def test_two_inputs_that_live_at_once_are_told_apart():
    net, x = shared()
    q, k = net.attn.q, net.attn.k
    first, second = x.detach() * 1, x.detach() * 2
    q(first)
    with pytest.warns(SketchWarning, match="different tensors"):
        y = k(second)
    assert same_bits(y, F.linear(second, k.weight)) and not same_bits(first, second)


def test_threads_do_not_mix():
    net, x = shared()
    expected = net.attn(x)
    inputs = [torch.rand(ROWS, D) for _ in range(4)]
    right = [restore(copy.deepcopy(net)).attn(i) for i in inputs]
    found = [None] * 4

    def work(i):
        for _ in range(20):
            found[i] = net.attn(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(map(same_bits, found, right)) and same_bits(net.attn(x), expected) and not group(net).dissolved


def test_compiled_code_does_not_share():
    net, x = shared()
    net.drop.p = 0.0
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    assert same_bits(compiled(x), net(x))
    packs = [e for e in saved_bytes(lambda: compiled(x)).entries if e.dtype == torch.uint8]
    assert len(packs) == 4 and not group(net).dissolved


def test_share_false_and_restore():
    net = Net()
    convert(net, QUARTER, example_inputs=torch.rand(ROWS, D), share=False)
    assert type(net.attn.q) is nn.Linear and net.rad_report.shared == ()
    net, _ = shared()
    restore(net)
    assert type(net.attn.q) is tnn.Linear and "_rad_group" not in vars(net.attn.q)


ATTENTIONS = {
    "self": ({}, {}),
    "batch first, causal, masks": ({"batch_first": True}, {"mask": True, "padding": True}),
    "cross, other sizes": ({"kdim": 8, "vdim": 12}, {"need_weights": False}),
    "no bias, by head": ({"bias": False}, {"average_attn_weights": False}),
    "fused, masks": ({}, {"need_weights": False, "mask": True, "padding": True}),
    "fused, causal": ({"batch_first": True}, {"need_weights": False, "mask": True, "is_causal": True}),
    "unbatched": ({}, {"unbatched": True, "padding": True}),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_multihead_attention_is_torchs(name):
    made, called = ATTENTIONS[name]
    called = dict(called)
    torch.manual_seed(0)
    exact = tnn.MultiheadAttention(D, 4, **made)
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(D, 4, **made, sketch=QUARTER)
    assert all(map(same_bits, layer.state_dict().values(), exact.state_dict().values()))
    length, unbatched = 6, called.pop("unbatched", False)
    shape = (length,) if unbatched else (5, length) if made.get("batch_first") else (length, 5)
    query = torch.rand(*shape, D)
    if "kdim" in made:
        key, value = torch.rand(*shape, 8), torch.rand(*shape, 12)
    else:
        key = value = query
    if called.pop("mask", False):
        called["attn_mask"] = tnn.Transformer.generate_square_subsequent_mask(length)
    if called.pop("padding", False):
        padding = torch.zeros(length if unbatched else (5, length), dtype=torch.bool)
        padding[..., -2:] = True
        called["key_padding_mask"] = padding.squeeze()
    got, expected = layer(query, key, value, **called), exact(query, key, value, **called)
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            assert same_bits(a, b)
    got[0].square().sum().backward()
    expected[0].square().sum().backward()
    for (_, p), (_, q) in zip(layer.named_parameters(), exact.named_parameters(), strict=True):
        assert p.grad is not None and p.grad.shape == q.grad.shape
    layer.eval(), exact.eval()
    assert same_bits(layer(query, key, value, **called)[0], exact(query, key, value, **called)[0])


def test_attention_to_another_value():
    """query and key are one tensor, value is not: they must not share its projection."""
    torch.manual_seed(0)
    exact = tnn.MultiheadAttention(D, 4)
    layer = nn.MultiheadAttention(D, 4, sketch=QUARTER)
    layer.load_state_dict(exact.state_dict())
    query, value = torch.rand(6, 5, D), torch.rand(6, 5, D)
    for q, k, v in ((query, query, value), (query, value, query), (value, query, query)):
        assert all(map(same_bits, layer(q, k, v), exact(q, k, v)))


def test_multihead_attention_is_unbiased():
    """A stratified half of 64 rows in which only rows 0 and 1, one stratum, are not zero: two outcomes,
    equally likely, and their mean is the expectation."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 1, sketch=Sketch(0.5), bias=False).double()
    exact = tnn.MultiheadAttention(4, 1, bias=False).double()
    exact.load_state_dict(layer.state_dict())
    x, dy = torch.zeros(64, 1, 4, dtype=torch.float64), torch.rand(64, 1, 4, dtype=torch.float64)
    x[:2] = torch.rand(2, 1, 4)

    def gradient(module):
        module.zero_grad()
        (module(x, x, x, need_weights=False)[0] * dy).sum().backward()
        return module.in_proj_weight.grad.clone()

    seen = {}
    for seed in range(20):
        torch.manual_seed(seed)
        found = gradient(layer)
        seen.setdefault(tuple(found.half().flatten().tolist()), found)
    assert len(seen) == 2
    torch.testing.assert_close(sum(seen.values()) / 2, gradient(exact), rtol=1e-12, atol=1e-13)


def test_multihead_attention_refuses():
    with pytest.raises(ValueError, match="add_bias_kv and add_zero_attn must be False"):
        nn.MultiheadAttention(D, 2, add_bias_kv=True, sketch=QUARTER)
    with pytest.raises(TypeError, match="sketch must be"):
        nn.MultiheadAttention(D, 2, sketch=0.1)
    net = tnn.ModuleList(
        [tnn.MultiheadAttention(D, 2, add_zero_attn=True), tnn.Linear(2, 2), tnn.Linear(2, 2)]
    )
    report = convert(net, QUARTER).rad_report
    assert (
        report.skipped["0"] == "add_bias_kv and add_zero_attn are not supported"
        and "0.out_proj" not in report.skipped
    )


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder(activation, norm_first):
    layer = tnn.TransformerEncoderLayer(D, 2, 32, 0.0, activation, norm_first=norm_first, batch_first=True)
    net = tnn.Sequential(tnn.TransformerEncoder(layer, 2, enable_nested_tensor=False), tnn.Linear(D, 2))
    x = torch.rand(4, 8, D)
    expected, exact = net(x), saved_bytes(lambda: net(x)).total
    convert(net, QUARTER, example_inputs=x, recompute="attention" if norm_first else None)
    assert same_bits(net(x), expected)
    assert saved_bytes(lambda: net(x)).total < exact * (0.5 if norm_first else 0.9)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    twin = pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        assert same_bits(twin.eval()(x), restore(net).eval()(x))
    assert net[0].layers[0].activation is getattr(F, activation)
    assert type(net[0].layers[0]) is tnn.TransformerEncoderLayer


def test_recomputed_attention_gives_the_same_gradients():
    layer = tnn.TransformerEncoderLayer(D, 2, 32, 0.2, norm_first=True, batch_first=True)
    net, x = tnn.Sequential(layer, tnn.Linear(D, 2)), torch.rand(4, 8, D)
    plain = copy.deepcopy(net)
    convert(plain, QUARTER)
    convert(net, QUARTER, recompute="attention")
    assert net.rad_report.recomputed == ("0",)
    assert all(map(same_bits, gradients(net, x), gradients(plain, x)))

"""Recurrent layers under opcheck, torch.compile, checkpointing, autocast and torch.func."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, nn
from rad_kernels.ops.rnn import CELLS, Layer

OPS = torch.ops.rad_kernels
SKETCH = Sketch(0.25, "different")
LAYERS = {
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "tanh": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
every_cell = pytest.mark.parametrize("cell", CELLS)


def made(cell, *sizes, **options):
    name, extra = LAYERS[cell]
    torch.manual_seed(5)
    return getattr(nn, name)(*sizes, **{"sketch": SKETCH, **extra, **options})


def gradients(run, layer, x, seed=11):
    """Output and gradients of x and the parameters of one call with that seed."""
    layer.zero_grad()
    leaf = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    y = run(leaf)
    y.square().sum().backward()
    return [y, leaf.grad, *[p.grad for p in layer.parameters()]]


def assert_same(actual, expected, tolerance=1e-5):
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())


@every_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(cell, dtype):
    gates = CELLS[cell][0] * 6
    for packed, bits, text in ((False, 8, "rows:0.3"), (True, 0, "same:0.3"))[: 2 if cell == "lstm" else 1]:
        sizes = (3, 2, 2) if packed else ()
        layer = Layer(cell, 3, 3, 5, 6, 2, sizes, bits, Sketch.parse(text).spec, Sketch.parse(text).spec)
        x = torch.randn((7, 5) if packed else (3, 3, 5), dtype=dtype)
        h = torch.randn(2, 3, 6, dtype=dtype)
        c = h.clone() if cell == "lstm" else None
        weights = [[torch.randn(gates, n, dtype=dtype)] * 2 for n in (5, 6)]
        biases = [torch.randn(gates, dtype=dtype)] * 4
        key = torch.arange(layer.keys) + 2**40
        specs = layer.spec_x, layer.spec_h, bits
        arguments = x, h, c, *weights, biases, sizes, list(CELLS).index(cell), *specs
        check(OPS.rnn.default, *arguments, True, 0, key)
        y, h_n, _, saved = OPS.rnn(*arguments, True, 0, key)
        tail = saved, None, *weights, layer.sizes, sizes, list(CELLS).index(cell), *specs, 15
        check(OPS.rnn_backward.default, y, h_n, c, *tail)


def check(op, *arguments):
    report = opcheck(op, arguments)
    assert set(report.values()) == {"SUCCESS"} and len(report) == 4


@pytest.mark.parametrize(("cell", "backend"), [("lstm", "aot_eager"), ("gru", "inductor")])
def test_compiled_gradients_are_those_of_eager(cell, backend):
    """The same keys, so the same sample forward and backward: any other would show in dW. Without
    ``allow_rnn`` torch.compile leaves every recurrent layer to eager, torch's as well as these."""
    torch._dynamo.reset()
    layer = made(cell, 16, 24, bidirectional=cell == "lstm", sketch=Sketch(0.25, "rows"))
    x = torch.randn(5, 8, 16)
    expected = gradients(lambda leaf: layer(leaf)[0], layer, x)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        assert_same(gradients(lambda leaf: compiled(leaf)[0], layer, x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager")
    assert_same(gradients(lambda leaf: compiled(leaf)[0], layer, x), expected, 0)


@every_cell
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_repeats_the_sample(cell, reentrant):
    layer = made(cell, 16, 24, 2, dropout=0.5)
    x = torch.randn(5, 8, 16)
    expected = gradients(lambda leaf: layer(leaf)[0], layer, x)
    actual = gradients(
        lambda leaf: checkpoint(lambda t: layer(t)[0], leaf, use_reentrant=reentrant), layer, x
    )
    assert_same(actual, expected)


@every_cell
def test_repeated_backward_hooks_and_grad(cell):
    layer = made(cell, 16, 24)
    x = torch.randn(5, 8, 16, requires_grad=True)
    y, _ = layer(x)
    first = torch.autograd.grad(y.sum(), [x, *layer.parameters()], retain_graph=True)
    second = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert_same(first, second, 0)
    torch.manual_seed(3)
    layer(x)[0].sum().backward()
    plain = x.grad.clone()
    seen = []
    layer.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append(grad_in))
    x.grad = None
    torch.manual_seed(3)
    layer(x)[0].sum().backward()
    assert seen and torch.equal(x.grad, plain)


@every_cell
def test_second_derivatives_raise(cell):
    layer = made(cell, 16, 24)
    x = torch.randn(5, 8, 16, requires_grad=True)
    for target in (x, layer.weight_hh_l0):
        (g,) = torch.autograd.grad(layer(x)[0].sum(), target, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(g.square().sum(), x)


@pytest.mark.parametrize("cell", ["relu", "gru"])
def test_functional_transforms(cell):
    layer = made(cell, 16, 24)
    x = torch.randn(5, 8, 16)
    parameters = dict(layer.named_parameters())

    def loss(values):
        return torch.func.functional_call(layer, values, (x,))[0].square().sum()

    torch.manual_seed(11)
    made_by_func = torch.func.grad(loss)(parameters)
    expected = gradients(lambda leaf: layer(x)[0], layer, x.requires_grad_())[2:]
    assert_same([made_by_func[name] for name in parameters], expected)


@every_cell
def test_autocast_computes_in_its_dtype(cell):
    layer = made(cell, 16, 24, 2)
    x = torch.randn(5, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients(lambda leaf: layer(leaf)[0], layer, x)
    assert low[0].dtype == torch.bfloat16 and all(g.dtype == torch.float32 for g in low[1:])
    layer.to(torch.bfloat16)
    assert_same(
        [g.float() for g in low],
        [g.float() for g in gradients(lambda leaf: layer(leaf)[0], layer, x.bfloat16())],
        0.05,
    )


def test_each_output_alone_carries_gradients():
    layer = made("lstm", 16, 24)
    x = torch.randn(5, 8, 16)

    def outputs(leaf):
        y, (h, c) = layer(leaf)
        return y, h, c

    parts = [gradients(lambda leaf: outputs(leaf)[i], layer, x)[1:] for i in range(3)]  # noqa: B023
    whole = gradients(lambda leaf: torch.cat([t.flatten() for t in outputs(leaf)]), layer, x)[1:]
    assert_same([sum(gs) for gs in zip(*parts, strict=True)], whole)

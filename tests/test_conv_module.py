"""Convolution layers: torch's own but for a sampled dW. Construction, state, modes, randomness, autograd,
compilation, every kind of padding, errors."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from checks import draws, next_key, rng_untouched, same_bits
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.functional import SketchWarning
from rad_kernels.functional._conv import _of_shape, _opposite
from rad_kernels.functional._conv_checks import Geometry

SKETCH = Sketch(0.25)
NAMES = [f"Conv{kind}{d}d" for kind in ("", "Transpose") for d in (1, 2, 3)]
SIZES = {1: (40,), 2: (9, 8), 3: (5, 4, 6)}


def pair(name="Conv2d", sketch=SKETCH, channels=8, outputs=6, window=3, **kwargs):
    """A sampled layer and torch's with the same parameters."""
    layer = getattr(nn, name)(channels, outputs, window, sketch=sketch, **kwargs)
    exact = getattr(torch.nn, name)(channels, outputs, window, **kwargs)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


def inputs(name="Conv2d", images=3, channels=8):
    return torch.randn(images, channels, *SIZES[int(name[-2])], requires_grad=True)


def check_exact_parts(layer, exact, x, expected_dw=None):
    """Output and dx are torch's bit for bit, db within rounding; dW is another estimate or the expected."""
    found = []
    for module in (layer, exact):
        module.zero_grad()
        y = module(x)
        dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
        found.append((y, *torch.autograd.grad(y, (x, *module.parameters()), dy)))
    (y, dx, dw, *db), (y_exact, dx_exact, dw_exact, *db_exact) = found
    assert same_bits(y, y_exact) and y.stride() == y_exact.stride()
    assert same_bits(dx, dx_exact)
    for one, other in zip(db, db_exact, strict=True):  # summed by torch in another order
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-4 * dy.numel() ** 0.5)
    assert dw.shape == dw_exact.shape and not torch.equal(dw, dw_exact)


VARIANTS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": 2, "dilation": 2, "groups": 2, "bias": False},
]
NAMED = [{"padding": "same"}, {"padding": "valid"}, {"padding": "same", "window": 4, "dilation": 3}]
MODES = [{"padding": 1, "padding_mode": mode} for mode in ("reflect", "replicate", "circular")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_all_but_the_weight_gradient_is_torchs(name, sampling):
    more = [] if "Transpose" in name else [*NAMED, *MODES, {"padding": "same", "padding_mode": "circular"}]
    for variant in (*VARIANTS, *more):
        layer, exact = pair(name, Sketch(0.25, sampling), **variant)
        check_exact_parts(layer, exact, inputs(name))
    layer, exact = pair(name, Sketch(0.25, sampling), channels=64)
    check_exact_parts(layer, exact, inputs(name, channels=64).detach()[0].requires_grad_())  # unbatched


@pytest.mark.parametrize("padding", ["same", "valid", 3], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_of_every_kind_is_unbiased(padding, mode):
    """With every value kept in 8 bits dW is torch's but for the dither."""
    layer, exact = pair(
        "Conv2d", Sketch(1, "same", bits=8), window=4, dilation=2, padding=padding, padding_mode=mode
    )
    x = inputs()
    grads = [torch.autograd.grad(m(x).cos().sum(), m.weight)[0] for m in (layer, exact)]
    assert 0 < (grads[0] - grads[1]).norm() < 0.02 * grads[1].norm()


def test_output_size_and_output_padding():
    layer, exact = pair("ConvTranspose2d", stride=3, padding=1)
    x = inputs()
    for size in ((25, 22), (27, 24)):
        assert same_bits(layer(x, output_size=size), exact(x, output_size=size))
    layer, exact = pair("ConvTranspose2d", stride=2, output_padding=1, dilation=2)
    check_exact_parts(layer, exact, x)


@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_channels_last(sampling):
    layer, exact = (m.to(memory_format=torch.channels_last) for m in pair(sketch=Sketch(0.25, sampling)))
    x = inputs().detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    check_exact_parts(layer, exact, x)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_both_ways_to_dx():
    """As the opposite convolution, and by torch's backward with one element in the input's place."""
    for transposed in (False, True):
        geometry = Geometry((2, 3), (1, 0), (1, 2), transposed, (1, 1) if transposed else (0, 0), 2)
        x, weight = (
            torch.randn(2, 4, 10, 12),
            torch.randn(4 if transposed else 6, 3 if transposed else 2, 3, 2),
        )
        dy = torch.randn_like(torch.ops.aten.convolution(x, weight, None, *geometry))
        found = [f(dy, weight, x.shape, geometry) for f in (_opposite, _of_shape)]
        assert same_bits(*found)


# ---- randomness and modes ----


def test_how_much_of_the_generator_is_used():
    layer, exact = pair()
    x = inputs()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert draws(lambda: layer(x)) == 1
            assert draws(lambda: layer(x.detach())) == 1
    with torch.no_grad():
        assert same_bits(layer(x), exact(x))
    with rng_untouched():
        with torch.inference_mode():
            layer(x)
        layer(x[:0])
        layer.weight.requires_grad_(False)
        layer(x).sum().backward()
        layer.weight.requires_grad_(True)
        layer.eval()
        y = layer(x)
        assert y.grad_fn.name() == "ConvolutionBackward0"
        layer.train()
        layer.sketch = Sketch(1)
        assert layer(x).grad_fn.name() == "ConvolutionBackward0"
        layer.sketch = Sketch(0.95)
        with pytest.warns(SketchWarning, match="kept exactly") as caught:
            functional.conv2d(x, layer.weight, layer.bias, sketch=layer.sketch)
        assert caught[0].filename == __file__


@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_backward_uses_the_key_that_forward_drew(sampling):
    layer, _ = pair(sketch=Sketch(0.25, sampling, bits=4), padding=1)
    x, key = inputs(), next_key()
    y = layer(x)
    dw = torch.autograd.grad(y.sum(), layer.weight)[0]
    by_channel = sampling != "rows"
    geometry = Geometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    _, saved = ops.conv(
        x.detach(), layer.weight.detach(), None, layer.sketch.spec, by_channel, *geometry, key
    )
    expected = ops.conv_wgrad(torch.ones_like(y), saved, x.shape, layer.weight.shape, layer.sketch.spec,
                              by_channel, *geometry.sampled)  # fmt: skip
    assert same_bits(dw, expected)


def test_only_the_pack_and_the_weight_are_retained():
    layer, _ = pair()
    x = inputs()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        layer(x)
    rows, cols = ops.packed_shape(x.shape, False)
    packed = functional._linear.saved_nbytes(rows, cols, x.dtype, layer.sketch)
    assert sorted(sizes) == sorted([0, packed, layer.weight.nbytes])
    sizes.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        layer(x.detach())
    assert sorted(sizes) == [0, packed]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_gives_the_same_gradient(reentrant):
    layer, _ = pair()
    x, grads = inputs(), []
    for call in (layer, lambda v: checkpoint(layer, v, use_reentrant=reentrant)):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(call(x).sum(), layer.weight)[0] if not reentrant or call is layer
                     else reentrant_grad(layer, call, x))  # fmt: skip
        after = torch.rand(1)
    assert same_bits(*grads)
    torch.manual_seed(3)
    layer(x)
    assert torch.equal(torch.rand(1), after)


def reentrant_grad(layer, call, x):
    layer.zero_grad()
    call(x).sum().backward()
    return layer.weight.grad


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose1d"])
def test_autocast(name):
    layer, exact = pair(name)
    x = inputs(name)
    with torch.autocast("cpu", torch.bfloat16):
        y, y_exact = layer(x), exact(x)
    assert same_bits(y, y_exact) and y.dtype == torch.bfloat16
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, (x, *layer.parameters()), dy)
    expected = torch.autograd.grad(y_exact, (x, *exact.parameters()), dy)
    assert all(g.dtype == torch.float32 for g in grads)
    assert same_bits(grads[0], expected[0])


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
def test_autograd_and_func(name):
    layer, exact = pair(name, padding=1)
    x = inputs(name)
    torch.manual_seed(1)
    y = layer(x)
    first = torch.autograd.grad(y.sum(), layer.weight, retain_graph=True)[0]
    assert same_bits(torch.autograd.grad(y.sum(), layer.weight)[0], first)
    torch.manual_seed(1)
    parameters = {k: v.detach() for k, v in layer.named_parameters()}
    loss = lambda p, v: torch.func.functional_call(layer, p, (v,)).sum()  # noqa: E731
    assert torch.equal(torch.func.grad(lambda p: loss(p, x.detach()))(parameters)["weight"], first)
    # dx can be differentiated again, and is right; dW cannot.
    second = []
    for module in (layer, exact):
        (dx,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(dx.square().sum(), x, retain_graph=True)[0])
    assert torch.allclose(*second, rtol=1e-4, atol=1e-3)
    (dw,) = torch.autograd.grad(layer(x).square().sum(), layer.weight, create_graph=True)
    for variable in (x, layer.weight):
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(dw.sum(), variable, retain_graph=True)
    # Also where only the pack depends on x.
    (dw,) = torch.autograd.grad(
        layer(x).sum(), layer.weight, torch.ones((), requires_grad=True), create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(dw.sum(), x)


@pytest.mark.parametrize("name, backend", [("Conv2d", "aot_eager"), ("ConvTranspose2d", "aot_eager"),
                                           ("Conv2d", "inductor")])  # fmt: skip
def test_compiled(name, backend):
    torch._dynamo.reset()
    # One channel of codes and a window of one: dW tells which positions were kept.
    layer = getattr(nn, name)(1, 64, 1, bias=False, sketch=Sketch(0.25, "same"))
    codes = torch.arange(1.0, 65).view(1, 1, 8, 8)
    call = torch.compile(layer, backend=backend, fullgraph=True)
    seen = set()
    for _ in range(3):
        layer.zero_grad()
        call(codes.clone().requires_grad_()).backward(torch.eye(64).view(1, 64, 8, 8))
        quotient = layer.weight.grad.view(64) / codes.view(64)
        assert set(quotient.tolist()) == {0.0, 4.0}
        assert (quotient.view(16, 4).sum(1) == 4).all(), "values under wrong indices"
        seen.add(tuple(quotient.tolist()))
    assert len(seen) == 3, "steps share a sample"


# ---- the module ----


@pytest.mark.parametrize("name", NAMES)
def test_construction_and_state(name):
    torch.manual_seed(0)
    layer = getattr(nn, name)(8, 6, 3, stride=2, groups=2, sketch=SKETCH)
    after = torch.rand(1)
    torch.manual_seed(0)
    exact = getattr(torch.nn, name)(8, 6, 3, stride=2, groups=2)
    assert torch.equal(torch.rand(1), after)
    assert same_bits(layer.weight, exact.weight) and same_bits(layer.bias, exact.bias)
    assert isinstance(layer, getattr(torch.nn, name))
    assert list(layer.state_dict()) == ["weight", "bias"]
    exact.load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(exact.state_dict(), strict=True)
    assert repr(layer) == repr(exact)[:-1] + ", sketch=rows:0.25)"
    x = inputs(name)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.sketch == SKETCH
        grads = []
        for module in (layer, twin):
            torch.manual_seed(4)
            grads += torch.autograd.grad(module(x).sum(), module.weight)
        assert same_bits(*grads)
    meta = getattr(nn, name)(8, 6, 3, sketch=SKETCH, device="meta")
    meta(torch.empty(x.shape, device="meta", requires_grad=True)).sum().backward()
    assert meta.weight.grad.shape == meta.weight.shape


BAD_SKETCHES = [
    (0.5, TypeError, "sketch must be a rad_kernels.Sketch"),
    (
        Sketch(0.5, "tile_rows"),
        ValueError,
        "tile_rows:0.5 does not go with a convolution: use sampling 'rows'",
    ),
    (Sketch(0.5, "project"), ValueError, "project:0.5 does not go"),
    (Sketch(0.5, "rows", "norm"), ValueError, "rows:0.5:norm does not go"),
]


@pytest.mark.parametrize("sketch, error, message", BAD_SKETCHES, ids=lambda value: str(value)[:20])
def test_sketches_that_no_convolution_can_use(sketch, error, message):
    with pytest.raises(error, match=message):
        nn.Conv2d(3, 4, 3, sketch=sketch)
    layer, _ = pair()
    with pytest.raises(error, match=message):
        layer.sketch = sketch
    with pytest.raises(error, match=message):
        functional.conv_transpose1d(torch.ones(1, 2, 3), torch.ones(2, 1, 1), sketch=sketch)


X, W = torch.ones(2, 4, 6, 6), torch.ones(8, 4, 3, 3)
BAD_CALLS = [
    (dict(x=[1.0]), TypeError, "x must be a Tensor"),
    (dict(x=X[0, 0]), ValueError, "x must have 3 or 4 dimensions"),
    (dict(x=X.int()), TypeError, "x must have dtype"),
    (dict(weight=W[0]), ValueError, "weight must have 4 dimensions"),
    (dict(weight=W[:, :3]), ValueError, "x with 4 channels and weight of shape"),
    (dict(groups=0), ValueError, "groups=0"),
    (dict(groups=2), ValueError, "do not fit together with groups=2"),
    (dict(groups=1.0), TypeError, "groups must be an integer"),
    (dict(bias=torch.ones(7)), ValueError, r"bias must have shape \[8\]"),
    (dict(bias=torch.ones(8, dtype=torch.float64)), TypeError, "x and bias must have one dtype"),
    (dict(weight=W.double()), TypeError, "x and weight must have one dtype"),
    (dict(weight=W.to("meta")), ValueError, "x and weight must be on one device"),
    (dict(stride=0), ValueError, "stride must be one integer or 2, each at least 1; got 0"),
    (dict(stride=(1, 2, 3)), ValueError, "stride must be one integer or 2"),
    (dict(stride=1.5), TypeError, "stride must be an integer"),
    (dict(dilation=0), ValueError, "dilation must be"),
    (dict(padding=-1), ValueError, "padding must be"),
    (dict(padding="full"), ValueError, "'same' or 'valid'; got 'full'"),
    (dict(padding="same", stride=2), ValueError, "padding 'same' needs stride 1"),
    (dict(dilation=4), ValueError, "too small for weight"),
]


@pytest.mark.parametrize("wrong, error, message", BAD_CALLS, ids=lambda value: str(value)[:30])
def test_errors_name_the_argument(wrong, error, message):
    with rng_untouched(), pytest.raises(error, match=message):
        functional.conv2d(**{"x": X, "weight": W, "sketch": SKETCH} | wrong)


def test_errors_of_transposed():
    with pytest.raises(ValueError, match="output_padding must be smaller than stride or dilation"):
        functional.conv_transpose2d(X, W[:4], sketch=SKETCH, output_padding=1)
    with pytest.raises(ValueError, match="do not fit together"):
        functional.conv_transpose2d(X, W, sketch=SKETCH)
    with pytest.raises(ValueError, match="too small"):
        functional.conv_transpose2d(X, W[:4], sketch=SKETCH, padding=6)


def test_functional_is_torchs_in_every_dimension():
    for d in (1, 2, 3):
        x = torch.randn(2, 4, *SIZES[d])
        for name, weight in (
            (f"conv{d}d", torch.randn(6, 4, *[2] * d)),
            (f"conv_transpose{d}d", torch.randn(4, 6, *[2] * d)),
        ):
            weight.requires_grad_()
            ours = getattr(functional, name)(x, weight, torch.ones(6), stride=2, padding=1, sketch=SKETCH)
            assert same_bits(ours, getattr(F, name)(x, weight, torch.ones(6), stride=2, padding=1))

"""Layers that normalise and keep dithered values: torch's output and state, what is retained, modes, bad
input."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norms import DTYPES, LAYERS, affine, randn

from rad_kernels import functional, nn, ops
from rad_kernels.ops import NormShape

every_layer = pytest.mark.parametrize("name", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def inputs(name, dtype=torch.float32):
    """Every x of a layer, in each memory order that it may have."""
    for shape in LAYERS[name][3]:
        x = randn(*shape, dtype=dtype)
        yield x
        yield x.transpose(0, 1).contiguous().transpose(0, 1)
        if len(shape) == 4:
            yield x.contiguous(memory_format=torch.channels_last)
        if len(shape) == 5:
            yield x.contiguous(memory_format=torch.channels_last_3d)


@every_layer
@every_dtype
def test_output_is_torchs(name, dtype):
    ours, theirs, count, _ = LAYERS[name]
    for x in inputs(name, dtype):
        for w, b in ((None, None), affine(count(x), dtype)):
            y, expected = ours(x.requires_grad_(), w, b, 4), theirs(x, w, b)
            assert torch.equal(y, expected) and y.dtype == expected.dtype
            if x.is_contiguous():
                assert y.stride() == expected.stride()


@every_layer
def test_gradients_come_close(name):
    """With 8 bits, to a part in a hundred of torch's; d(bias) to rounding."""
    ours, theirs, count, _ = LAYERS[name]
    for x in inputs(name, torch.float64):
        x.requires_grad_()
        w, b = affine(count(x), torch.float64)
        wrt = [x, w] if name == "rms" else [x, w, b]
        expected = theirs(x, w, b)
        dy = randn(*x.shape, dtype=torch.float64, seed=6)
        torch.manual_seed(1)
        got = torch.autograd.grad(ours(x, w, b, 8), wrt, dy)
        want = torch.autograd.grad(expected, wrt, dy)
        for a, e in zip(got[:2], want[:2], strict=True):
            assert (a - e).norm() <= 0.02 * e.norm() and a.shape == e.shape
        if name != "rms":
            assert torch.allclose(got[2], want[2], rtol=1e-12, atol=1e-12)


# ---- layers ----

MODULES = [
    (nn.LayerNorm, torch.nn.LayerNorm, (20,), (60, 20)),
    (nn.LayerNorm, torch.nn.LayerNorm, ([4, 20], 1e-3, False), (16, 4, 20)),
    (nn.RMSNorm, torch.nn.RMSNorm, (20,), (60, 20)),
    (nn.GroupNorm, torch.nn.GroupNorm, (2, 8), (13, 8, 15)),
    (nn.BatchNorm1d, torch.nn.BatchNorm1d, (8,), (160, 8)),
    (nn.BatchNorm1d, torch.nn.BatchNorm1d, (8,), (16, 8, 15)),
    (nn.BatchNorm2d, torch.nn.BatchNorm2d, (8, 1e-4, None), (8, 8, 5, 4)),
    (nn.BatchNorm2d, torch.nn.BatchNorm2d, (8, 1e-5, 0.3, False), (8, 8, 5, 4)),
    (nn.BatchNorm2d, torch.nn.BatchNorm2d, (8, 1e-5, 0.1, True, False), (8, 8, 5, 4)),
    (nn.BatchNorm3d, torch.nn.BatchNorm3d, (8,), (7, 8, 3, 4, 2)),
]
every_module = pytest.mark.parametrize(
    "case", MODULES, ids=lambda c: f"{c[0].__name__}-{'-'.join(map(str, c[2]))}"
)


@every_module
def test_state_is_torchs(case):
    """Parameters, buffers and running statistics bit for bit, training and eval, to and fro."""
    ours_class, torch_class, arguments, shape = case
    ours, theirs = ours_class(*arguments), torch_class(*arguments)
    for step in range(3):
        x = randn(*shape, seed=20 + step) * (step + 1)
        assert torch.equal(ours(x.clone().requires_grad_()), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.eval(), theirs.eval()
    state = torch.get_rng_state()
    x = randn(*shape)
    assert torch.equal(ours(x), theirs(x)) and torch.equal(torch.get_rng_state(), state)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(ours)))
    assert twin.bits == ours.bits == 4 and "bits=4" in repr(twin)


@every_module
def test_bytes_that_are_retained(case):
    ours_class, _, arguments, shape = case
    layer, x = ours_class(*arguments, bits=4), randn(*shape).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    parameters = {p.data_ptr() for p in layer.parameters()}
    total = sum(t.untyped_storage().nbytes() for t in kept if t.data_ptr() not in parameters)
    n = x.numel()
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        size = int(np.prod(layer.normalized_shape))
        geometry = NormShape(size, size, 1, False)
    elif isinstance(layer, nn.GroupNorm):
        geometry = NormShape(n // shape[0] // layer.num_groups, shape[1], 1, False)
    else:
        geometry = NormShape(n // shape[1], shape[1], 1, True)
    assert total == ops.norm_saved_nbytes(n, geometry, 4) + 4 * (n // geometry.set)
    assert not any(t.numel() == n and t.is_floating_point() for t in kept)


def test_without_bits_all_is_torchs():
    for ours_class, torch_class, arguments, shape in MODULES:
        ours, theirs = ours_class(*arguments, bits=None), torch_class(*arguments)
        grads = []
        state = torch.get_rng_state()
        for layer in (ours, theirs):
            x = randn(*shape).requires_grad_()
            layer(x).square().sum().backward()
            grads.append([x.grad, *(p.grad for p in layer.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
        assert torch.equal(torch.get_rng_state(), state)


@every_layer
def test_randomness_does_not_depend_on_who_needs_gradients(name):
    ours, _, count, shapes = LAYERS[name]
    x = randn(*shapes[0])
    w, b = affine(count(x))
    states = []
    for grad, needs in ((True, True), (True, False), (False, True)):
        torch.manual_seed(9)
        with torch.set_grad_enabled(grad):
            ours(x.clone().requires_grad_(needs), w, b, 4)
        states.append(torch.get_rng_state())
        torch.manual_seed(9)
        with torch.set_grad_enabled(grad):
            ours(x.clone().requires_grad_(needs), w.detach(), b.detach(), 4)
        states.append(torch.get_rng_state())
    assert all(torch.equal(s, states[0]) for s in states)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    assert not torch.equal(before, states[0])
    with torch.inference_mode():
        ours(x, w, b, 4)
    assert torch.equal(torch.get_rng_state(), before)


@every_layer
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_only_what_is_needed(name, needs):
    ours, _, count, shapes = LAYERS[name]
    x = randn(*shapes[0]).requires_grad_(needs[0])
    w, b = (p.detach().requires_grad_(needs[1]) for p in affine(count(x)))
    ours(x, w, b, 4).square().sum().backward()
    assert (x.grad is not None) == needs[0] and (w.grad is not None) == needs[1]
    if name != "rms":
        assert (b.grad is not None) == needs[1]


@every_layer
def test_second_derivatives_are_refused(name):
    ours, _, count, shapes = LAYERS[name]
    x = randn(*shapes[0]).requires_grad_()
    w, b = affine(count(x))
    (dx,) = torch.autograd.grad(ours(x, w, b, 4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="dithered normalisation cannot be differentiated again"):
        dx.sum().backward()


@every_layer
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(name, reentrant):
    ours, _, count, shapes = LAYERS[name]
    w, b = affine(count(randn(*shapes[0])))
    grads: list[list[torch.Tensor]] = []
    for checkpointed in (False, True):
        torch.manual_seed(2)
        x = randn(*shapes[0]).requires_grad_()

        def body(x):
            return F.dropout(ours(x, w, b, 4), 0.5)

        y = torch.utils.checkpoint.checkpoint(body, x, use_reentrant=reentrant) if checkpointed else body(x)
        y.square().sum().backward()
        grads.append([x.grad, w.grad.clone()])
        w.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@every_layer
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(name, backend):
    """The gradients of eager code, to rounding."""
    ours, _, count, shapes = LAYERS[name]
    x = randn(*shapes[0])
    w, b = affine(count(x))

    def step(x, w, b):
        return ours(x, w, b, 2).sin().sum() + 2 * ours(x.exp(), w, b, 2).sin().sum()

    grads = []
    for f in (step, torch.compile(step, backend=backend, fullgraph=True)):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        f(leaf, w, b).backward()
        grads.append(leaf.grad)
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-5)


def test_running_statistics_when_compiled():
    ours, theirs = nn.BatchNorm2d(6), torch.nn.BatchNorm2d(6)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        x = randn(3, 6, 4, 4, seed=seed)
        compiled(x.clone().requires_grad_()).sum().backward()
        theirs(x)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_16_bits_with_float32_parameters():
    x = randn(70, 64, dtype=torch.bfloat16).requires_grad_()
    w, b = affine(64)
    y = functional.layer_norm(x, 64, w, b, bits=8)
    assert torch.equal(y, F.layer_norm(x, [64], w, b))
    y.float().square().sum().backward()
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spoils_its_set_only(value):
    x = randn(4, 70)
    x[1, 3] = value
    x.requires_grad_()
    functional.layer_norm(x, 70, bits=4).sum().backward()
    assert x.grad[1].isnan().all() and x.grad[[0, 2, 3]].isfinite().all()


def test_constant_sets():
    x = torch.full((3, 70), 2.5, requires_grad=True)
    reference_x = x.detach().clone().requires_grad_()
    dy = randn(3, 70)
    functional.layer_norm(x, 70, bits=4).backward(dy)
    F.layer_norm(reference_x, [70]).backward(dy)
    assert torch.allclose(x.grad, reference_x.grad, rtol=1e-5)


def test_packs_that_do_not_pay_are_refused_with_a_warning():
    x = randn(10, 4, dtype=torch.bfloat16).requires_grad_()
    with pytest.warns(functional.SketchWarning, match=r"8 bits would keep \d+ of the 80 bytes"):
        functional.layer_norm(x, 4, bits=8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: functional.layer_norm([1.0], 1), TypeError, "x must be a Tensor, got list"),
        (lambda x: functional.layer_norm(x, 5), ValueError, r"normalized_shape must be .* got \[5\] for x"),
        (lambda x: functional.layer_norm(x, "4"), TypeError, "normalized_shape must be .* got '4'"),
        (lambda x: functional.layer_norm(x, 4, bits=5), ValueError, "bits must be None, 8, 4, 3, 2, 1; got"),
        (lambda x: functional.layer_norm(x, 4, bits=True), TypeError, "bits must be None or an integer"),
        (lambda x: functional.layer_norm(x, 4, eps=-1.0), ValueError, "eps must be at least 0, got -1.0"),
        (lambda x: functional.layer_norm(x, 4, eps="a"), TypeError, "eps must be a real number, got 'a'"),
        (lambda x: functional.layer_norm(x, 4, x[0, 0, :3]), ValueError, r"weight must have shape \[4\]"),
        (lambda x: functional.layer_norm(x, 4, None, x[0, 0].double()), TypeError, "x and bias must have"),
        (lambda x: functional.layer_norm(x.long(), 4), TypeError, "x must have dtype"),
        (lambda x: functional.rms_norm(x, 4, x[0, 0].to_sparse()), TypeError, "weight must be a strided"),
        (lambda x: functional.group_norm(x, 2), ValueError, "num_groups must divide the channels .* got 2"),
        (lambda x: functional.group_norm(x, 1.5), TypeError, "num_groups must be an integer, got 1.5"),
        (lambda x: functional.batch_norm(x[0, 0]), ValueError, r"x must have shape \[N, C, \*\], got \[4\]"),
        (lambda x: functional.batch_norm(x[:1, :, :1]), ValueError, "x must have more than one value"),
        (lambda x: nn.LayerNorm(4, bits=5), ValueError, "bits must be None, 8, 4, 3, 2, 1; got 5"),
        (lambda x: setattr(nn.LayerNorm(4), "bits", "4"), TypeError, "bits must be None or an integer"),
        (lambda x: nn.BatchNorm2d(3)(x), ValueError, "expected 4D input"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        call(randn(2, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)

"""linear_cross_entropy: torch's loss and gradients to rounding, without the logits of all rows."""

import copy
import functools
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import rng_untouched, same_bits
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, nn
from rad_kernels.memory import saved_bytes, step_peak


def problem(rows=(5, 7), features=6, classes=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    x, weight, bias = (
        make(*shape).requires_grad_() for shape in ((*rows, features), (classes, features), (classes,))
    )
    target = torch.randint(classes, rows, generator=generator)
    target.view(-1)[1::3] = -100
    return x, weight, bias, target, make(classes).abs() + 0.5


def composed(x, weight, target, bias=None, class_weight=None, **how):
    logits = F.linear(x, weight, bias)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), target.reshape(-1), class_weight, **how)
    return loss.view(target.shape) if how.get("reduction") == "none" else loss


def assert_close(got, expected, dtype, scale=1):
    """To some roundings of dtype: sums of a few dozen terms, against float64."""
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 16 * torch.finfo(dtype).eps) * scale
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).abs().max() <= tolerance * (1 + b.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients_are_torchs_to_rounding(dtype):
    x, weight, bias, target, class_weight = problem(dtype=dtype)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    for weighted, smoothing, reduction, chunk in itertools.product(
        (False, True), (0.0, 0.1), ("none", "mean", "sum"), (None, 1, 8, 35, 1000)
    ):
        how = {"reduction": reduction, "label_smoothing": smoothing}
        w = class_weight if weighted else None
        loss = functional.linear_cross_entropy(x, weight, target, bias, w, **how, chunk=chunk)
        expected = composed(wide[0], wide[1], target, wide[2], w if w is None else w.double(), **how)
        assert loss.dtype == dtype and loss.shape == expected.shape
        g = torch.rand(expected.shape, dtype=torch.float64)
        grads = torch.autograd.grad(loss, (x, weight, bias), g.to(dtype))
        assert all(d.dtype == dtype for d in grads)
        assert_close(
            (loss, *grads), (expected, *torch.autograd.grad(expected, wide, g.to(dtype).double())), dtype, 2
        )


def test_frozen_parameters_and_no_bias():
    x, weight, bias, target, _ = problem()
    run, exact = functional.linear_cross_entropy, composed
    for needed in ((x,), (weight,), (bias,), (x, weight)):
        given = [t if any(t is n for n in needed) else t.detach() for t in (x, weight, bias)]
        results = [torch.autograd.grad(f(given[0], given[1], target, given[2]), needed) for f in (run, exact)]
        assert_close(results[0], results[1], torch.float32)
    results = [torch.autograd.grad(f(x, weight, target), (x, weight)) for f in (run, exact)]
    assert_close(results[0], results[1], torch.float32)
    ignored = torch.full_like(target, -100)
    loss = run(x, weight, ignored, label_smoothing=0.1)
    assert loss.isnan()
    with pytest.raises(IndexError, match="out of bounds"):
        run(x, weight, target.clamp(min=11))


def test_what_is_kept_and_the_peak():
    """x, the target and one logsumexp a row; at most two chunks of logits beside the gradients."""
    rows, features, classes = 300, 8, 50257
    x, weight, target = (
        torch.randn(rows, features),
        torch.randn(classes, features),
        torch.randint(classes, (rows,)),
    )
    x.requires_grad_(), weight.requires_grad_()
    report = saved_bytes(lambda: functional.linear_cross_entropy(x, weight, target))
    assert report.total == 4 * (x.numel() + weight.numel() + rows) + 8 * rows + 8  # and the number of rows

    def step(loss):
        x.grad = weight.grad = None
        loss(x, weight, target).backward()

    logits = 4 * rows * classes
    ours, torchs = (step_peak(lambda f=f: step(f)) for f in (functional.linear_cross_entropy, composed))
    assert torchs >= 2 * logits
    assert ours <= 2 * 2**24 + 4 * (weight.numel() + x.numel()) + 16 * rows + 2**16
    less = functools.partial(functional.linear_cross_entropy, chunk=8)
    assert step_peak(lambda: step(less)) <= 2 * 8 * 4 * classes + 4 * (weight.numel() + x.numel()) + 2**18


def test_a_second_derivative_raises():
    x, weight, bias, target, _ = problem()
    loss = functional.linear_cross_entropy(x, weight, target, bias)
    for inputs in ((x,), (weight,)):
        (d,) = torch.autograd.grad(loss, inputs, create_graph=True)
        with pytest.raises(RuntimeError, match="linear_cross_entropy cannot be differentiated again"):
            d.sum().backward(retain_graph=True)
    run = lambda x: functional.linear_cross_entropy(x, weight.detach(), target)  # noqa: E731
    assert same_bits(torch.func.grad(run)(x.detach()), torch.autograd.grad(run(x), x)[0])
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.func.grad(lambda x: torch.func.grad(run)(x).sum())(x.detach())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        functional.linear_cross_entropy, backend=backend, fullgraph=True, dynamic=backend == "aot_eager"
    )
    for rows in ((9,), (14,)):
        x, weight, bias, target, class_weight = problem(rows)
        loss = compiled(x, weight, target, bias, class_weight, label_smoothing=0.1)
        expected = composed(x, weight, target, bias, class_weight, label_smoothing=0.1)
        leaves = (x, weight, bias)
        assert_close(
            (loss, *torch.autograd.grad(loss, leaves)),
            (expected, *torch.autograd.grad(expected, leaves)),
            torch.float32,
        )


def test_autocast_and_checkpoint():
    x, weight, bias, target, _ = problem()
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            loss, expected = (
                f(given, weight, target, bias) for f in (functional.linear_cross_entropy, composed)
            )
            assert loss.dtype == expected.dtype == torch.float32
            got, wanted = (torch.autograd.grad(out, (x, weight, bias)) for out in (loss, expected))
            assert all(d.dtype == torch.float32 for d in got)
            assert_close((loss, *got), (expected, *wanted), torch.bfloat16)
    for reentrant in (True, False):
        x.grad = None
        checkpoint(functional.linear_cross_entropy, x, weight, target, use_reentrant=reentrant).backward()
        assert same_bits(
            x.grad, torch.autograd.grad(functional.linear_cross_entropy(x, weight, target), x)[0]
        )


def test_layer():
    torch.manual_seed(1)
    layer = nn.LinearCrossEntropy(6, 11, reduction="sum", chunk=4, class_weight=torch.ones(11))
    torch.manual_seed(1)
    exact = torch.nn.Linear(6, 11)
    exact.load_state_dict(layer.state_dict())
    x, _, _, target, _ = problem()
    assert repr(layer).endswith("bias=True, reduction=sum, chunk=4)") and same_bits(
        layer.weight, exact.weight
    )
    expected = composed(x, exact.weight, target, exact.bias, reduction="sum")
    with rng_untouched():
        for other in (
            layer,
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            copy.deepcopy(layer).eval(),
        ):
            assert_close((other(x, target),), (expected,), torch.float32)


def test_errors():
    x, weight, bias, target, class_weight = problem()
    call = functional.linear_cross_entropy
    for run, error, message in (
        (lambda: call(x, weight, x), TypeError, "target must have dtype int64 or uint8"),
        (lambda: call(x, weight, target[0]), ValueError, r"target must have shape \(5, 7\)"),
        (lambda: call(x, weight[:, :3], target), ValueError, "weight must have shape"),
        (lambda: call(x, weight, target, bias[:3]), ValueError, "bias must have shape"),
        (
            lambda: call(x, weight, target, class_weight=class_weight[:3]),
            ValueError,
            "class_weight must have shape",
        ),
        (
            lambda: call(x, weight, target, class_weight=bias),
            ValueError,
            "class_weight must need no gradient",
        ),
        (lambda: call(x, weight, target, chunk=0), ValueError, "chunk must be at least 1 row, got 0"),
        (lambda: call(x, weight, target, chunk=1.5), TypeError, "chunk must be None or a number of rows"),
        (lambda: call(x, weight, target, reduction="max"), ValueError, "reduction must be"),
    ):
        with pytest.raises(error, match=message):
            run()


def test_opcheck():
    raw = torch.ops.rad_kernels
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, bias, target, class_weight = (t.detach() for t in problem((9,), dtype=dtype))
        rows = torch.ones(9)
        opcheck(raw.linear_cross_entropy, (x, weight, bias, target, class_weight.float(), -100, 0.1, 4))
        for needs in ([True] * 3, [False, True, False]):
            args = (x, weight, bias, target, None, rows, rows, rows, rows, 4, needs)
            opcheck(raw.linear_cross_entropy_backward, args)

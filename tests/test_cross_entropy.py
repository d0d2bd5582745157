"""Cross-entropy from coded probabilities: torch's loss, unbiased gradients over all 2^16 noises, bytes and
modes (docs/maths.md, cross-entropy)."""

import copy
import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import draws, rng_untouched, same_bits
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, nn, ops, reference
from rad_kernels.memory import saved_bytes

KEY = 0x0123_4567_89AB_CDEF
BITS = (8, 4, 2, 1)
SHAPES = ((37, 11), (5, 7, 3, 4), (9,), (2, 200), (3, 70, 65))


def problem(shape, dtype=torch.float32, weighted=False, soft=False, seed=0):
    """x, target, weight; with indices, a third of the rows is ignored."""
    generator = torch.Generator().manual_seed(seed)
    axis = 0 if len(shape) == 1 else 1
    classes, rows = shape[axis], shape[:axis] + shape[axis + 1 :]
    x = torch.randn(shape, dtype=torch.float64, generator=generator).mul(2).to(dtype).requires_grad_()
    if soft:
        target = torch.rand(shape, generator=generator, dtype=torch.float64).softmax(axis).to(dtype)
    else:
        target = torch.randint(classes, rows, generator=generator)
        target[torch.rand(rows, generator=generator) < 0.3] = -100
        target.view(-1)[:1] = 1
    weight = torch.rand(classes, generator=generator, dtype=torch.float64).add(0.5).to(dtype)
    return x, target, weight if weighted else None


def options(reduction="mean", smoothing=0.0):
    return {"reduction": reduction, "label_smoothing": smoothing}


def decoded(log_p, bits, key=KEY):
    """p^ of a [n] tensor."""
    saved = torch.ops.rad_kernels.probability_codes(log_p, bits, ops.rank_salt(), torch.tensor(key))
    real = torch.float64 if log_p.dtype == torch.float64 else torch.float32
    one = torch.ones(1, dtype=real)
    return ops.cross_entropy_backward(saved, one, None, None, None, None, (1, len(log_p)), real, bits)[0]


# ---- what is stored


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_and_decoded_values_are_the_twins(dtype):
    """Bit for bit, special values included: they spoil their own group alone."""
    log_p = torch.randn(1000, dtype=torch.float64).mul(20).abs().neg().to(dtype)
    log_p[70], log_p[128:192], log_p[200], log_p[300] = -torch.inf, -torch.inf, torch.nan, 0.0
    wide = log_p.double() if dtype == torch.float64 else log_p.float()
    p = reference.probability(wide.numpy())
    error = np.abs(p - np.exp(wide.double().numpy()))
    assert np.nanmax(error) <= (3e-7 if wide.dtype == torch.float32 else 1e-15)
    for bits in BITS:
        codes, steps, values = reference.probability_codes(wide.numpy(), KEY, 7, bits)
        saved = torch.ops.rad_kernels.probability_codes(log_p, bits, 7, torch.tensor(KEY)).numpy()
        assert saved.nbytes == ops.probability_nbytes(1000, bits)
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
        plane = -(-125 * bits // 128) * 128
        assert saved[:plane].tobytes() == number.to_bytes(plane, "little")
        stored = saved[plane : plane + 32].view(np.uint16).astype(np.uint32) << 16
        assert np.array_equal(stored.view(np.float32), steps, equal_nan=True)
        assert not saved[plane + 32 : -64].any()
        assert saved[-64:].view(np.uint64).tolist() == [KEY, 7, reference.FORMAT_VERSION, 0, 0, 0, 0, 0]
        values = reference.probability_codes(wide.numpy(), KEY, ops.rank_salt(), bits)[2]
        assert same_bits(decoded(log_p, bits), torch.from_numpy(values))
        assert np.isnan(values).sum() == 64 and (values[128:192] == 0).all()


@pytest.mark.parametrize("bits", BITS)
def test_all_noises(bits):
    """One element for each of the 2^16 noises: bias at most step 2^-17, variance step^2 / 12."""
    n = 2**20
    noise = reference.probability_noise(KEY, ops.rank_salt(), n)
    inner = np.nonzero(np.arange(n) % reference.GROUP)[0]  # the first place holds the group's greatest value
    place = torch.from_numpy(inner[np.unique(noise[inner], return_index=True)[1]])
    assert len(place) == 2**16
    for p, greatest in ((0.3, 0.9), (1e-3, 0.02), (0.7, 0.7), (2e-9, 3e-7)):
        x = torch.full((n,), p, dtype=torch.float64)
        x[:: reference.GROUP] = greatest
        step = reference.step_for(np.zeros(1), np.array([greatest]), bits)[0]
        error = (decoded(x.log(), bits) - p)[place]
        assert error.mean().abs() <= step * 2**-17 + 1e-15
        assert abs(error.square().mean() / (step**2 / 12) - 1) <= 1e-5


def test_streams_are_apart():
    words = reference.random_words(KEY, 0, reference.ROLES["probability"], 0, np.arange(2**12))
    for role in [*range(1, 8), *range(32, 38)]:
        other = reference.random_words(KEY, 0, role, 0, np.arange(2**12))
        agreement = np.bitwise_count(~(words ^ other)).sum() / (32 * words.size) - 0.5
        assert abs(agreement) * 2 * (32 * words.size) ** 0.5 <= 6  # standard normal


def test_a_product_with_a_derivative_of_the_same_key_is_unbiased():
    """Codes of probabilities meet codes of derivatives on the way back. On one stream, with one bit, the
    bias would be above 20 standard errors."""
    n = 2**18
    log_p, t = torch.full((n,), 0.3, dtype=torch.float64).log(), torch.full((n,), -0.7, dtype=torch.float64)
    d = torch.autograd.grad(F.gelu(t.requires_grad_()).sum(), t)[0]
    _, saved = ops.activation(t.detach(), "gelu", (0, 0, 0), 1, torch.tensor(KEY))
    other = ops.derivative_product(torch.ones(n).double(), saved, "gelu", (0, 0, 0), 1, (1,)) - d
    for noise, same in ((None, False), (reference.derivative_noise(KEY, ops.rank_salt(), n), True)):
        if noise is None:
            p = decoded(log_p, 1)
        else:
            lo, step = np.zeros(1), reference.step_for(np.zeros(1), np.array([0.3]), 1)
            p = torch.from_numpy(
                reference.decode(reference.encode(np.full((1, n), 0.3), lo, step, noise, 1), lo, step, noise)[
                    0
                ]
            )
        product = (p - 0.3) * other
        mean, sigma = product.mean().item(), product.std().item() / n**0.5
        assert (abs(mean) > 20 * sigma) if same else (abs(mean) <= 6 * sigma)


# ---- gradients


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_torchs_and_the_gradient_is_that_of_the_codes(shape, dtype):
    """dx is torch's formula with p^, whose error is at most half a step of p, in every combination."""
    axis = 0 if len(shape) == 1 else 1
    for weighted, soft, smoothing, reduction in itertools.product(
        (False, True), (False, True), (0.0, 0.1), ("none", "mean", "sum")
    ):
        x, target, weight = problem(shape, dtype, weighted, soft)
        how = options(reduction, smoothing)
        loss = functional.cross_entropy(x, target, weight, **how)
        expected = F.cross_entropy(x, target, weight, **how)
        assert same_bits(loss, expected), (weighted, soft, how)
        g = torch.randn(expected.shape, dtype=torch.float64).to(dtype)
        (dx,) = torch.autograd.grad(loss, x, g)
        assert dx.dtype == dtype and dx.shape == x.shape
        # In float64: with p^ - p of one constant per row, dx moves by that times the row's coefficient of p.
        wide = x.detach().double().requires_grad_()
        wide_weight = None if weight is None else weight.double()
        wide_target = target.double() if soft else target
        wide_loss = F.cross_entropy(wide, wide_target, wide_weight, **how)
        (exact,) = torch.autograd.grad(wide_loss, wide, g.double())
        rounding = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 4 * torch.finfo(dtype).eps)
        scale = row_scale(target, weight, how, g, axis, shape)
        step = wide.detach().softmax(axis).max() / 255 * 1.01
        size = exact.abs().max() + (scale.max() if soft else 0)
        bound = scale * (step / 2 + rounding) + rounding * size
        assert ((dx.double() - exact).abs() <= bound).all(), (weighted, soft, how)


def row_scale(target, weight, how, g, axis, shape):
    """|coefficient of p| of each row, by definition."""
    classes = shape[axis]
    w = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    if target.is_floating_point():
        t, counted = target.double().movedim(axis, -1), torch.tensor(True)
        own = torch.ones(t.shape[:-1])
    else:
        counted = target != -100
        safe = target.where(counted, 0)
        t, own = F.one_hot(safe, classes).double(), w[safe] * counted
    smoothing = how["label_smoothing"]
    total = ((t * (1 - smoothing) + smoothing / classes) * w).sum(-1) * counted
    if how["reduction"] == "mean":
        total = total / own.sum()
    return (total * g.double()).abs().unsqueeze(axis)


def test_rows_that_are_ignored_get_zeros():
    x = torch.randn(6, 5, requires_grad=True)
    target = torch.tensor([0, 7, 3, 7, 7, 1])
    dx = torch.autograd.grad(functional.cross_entropy(x, target, ignore_index=7), x)[0]
    assert not dx[target == 7].any() and dx[target != 7].any(1).all()
    everything = torch.full((6,), 7)
    loss = functional.cross_entropy(x, everything, ignore_index=7, label_smoothing=0.1)
    assert loss.isnan() and not torch.autograd.grad(loss, x)[0].any()
    small = functional.cross_entropy(x, target.clamp(max=4).to(torch.uint8), ignore_index=4)
    assert same_bits(small, F.cross_entropy(x, target.clamp(max=4).to(torch.uint8), ignore_index=4))
    assert torch.autograd.grad(small, x)[0].any()
    with pytest.raises(IndexError, match="Target 5 is out of bounds"):
        functional.cross_entropy(x, torch.full((6,), 5))


def test_the_mean_over_keys_is_torchs_gradient():
    """The whole way through autograd; the test has the 2^-17 of a step, and 6 standard errors, of room."""
    x, target, weight = problem((6, 5), torch.float64, weighted=True)
    how = options("mean", 0.1)
    exact = torch.autograd.grad(F.cross_entropy(x, target, weight, **how), x)[0]
    runs = 800
    samples = torch.stack(
        [
            torch.autograd.grad(functional.cross_entropy(x, target, weight, **how, bits=1), x)[0]
            for _ in range(runs)
        ]
    )
    step = float(reference.step_for(np.zeros(1), x.detach().softmax(1).max().reshape(1).numpy(), 1)[0])
    scale = row_scale(target, weight, how, torch.tensor(1.0), 1, x.shape)
    sigma = scale * step / 12**0.5
    assert ((samples.mean(0) - exact).abs() <= 6 * sigma / runs**0.5 + 1e-12).all()
    variance = samples.var(0) / sigma.square().clamp(min=1e-30)
    counted = (target != -100)[:, None].expand_as(x)
    assert ((variance - 1).abs() <= 6 * (0.8 / runs) ** 0.5)[counted].all()  # Var u^2 = .8 (Var u)^2


def test_a_second_derivative_raises():
    x, target, weight = problem((5, 4))
    soft = problem((5, 4), soft=True)[1]
    message = "coded probabilities cannot be differentiated again"
    for goal in (target, soft):
        loss = functools.partial(functional.cross_entropy, target=goal, weight=weight)
        (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            dx.sum().backward()
        with pytest.raises(RuntimeError, match=message):
            torch.func.grad(lambda x, loss=loss: torch.func.grad(loss)(x).sum())(x.detach())
        torch.manual_seed(3)
        first = torch.func.grad(loss)(x.detach())
        torch.manual_seed(3)
        assert same_bits(first, torch.autograd.grad(loss(x), x)[0])


# ---- bytes and modes


def test_retained_bytes_are_the_formula():
    for shape, bits in itertools.product(SHAPES, BITS):
        x, target, weight = problem(shape, weighted=True)
        run = functools.partial(functional.cross_entropy, target=target, weight=weight, bits=bits)
        report = saved_bytes(lambda x=x, run=run: run(x * 1))
        held = target.numel() * 8 + weight.numel() * 4
        assert report.total == ops.probability_nbytes(x.numel(), bits) + held
    assert ops.probability_nbytes(2048 * 50257, 8) <= 1.0313 * 2048 * 50257  # 8.25 bits


def test_bits_none_and_evaluation_are_torchs():
    x, target, _ = problem((12, 7))
    exact = F.cross_entropy(x, target)
    layer, plain = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(bits=None)
    with rng_untouched():
        for run in (plain, copy.deepcopy(layer).eval()):
            grads = [torch.autograd.grad(loss, x)[0] for loss in (run(x, target), F.cross_entropy(x, target))]
            assert same_bits(*grads)
        with torch.inference_mode():
            assert same_bits(layer(x, target), exact)
        functional.cross_entropy(x[:0], target[:0])
    assert draws(lambda: layer(x, target)) == draws(lambda: layer(x.detach(), target)) == 1
    with torch.no_grad():
        assert draws(lambda: layer(x, target)) == 1 and same_bits(layer(x, target), exact)
    assert saved_bytes(lambda: layer(x.detach(), target)).total == 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_gives_the_gradient_of_no_checkpoint(use_reentrant):
    """Dropout behind the loss: its mask would shift if the first pass, without gradients, drew less."""
    x, target, _ = problem((8, 20))
    run = lambda x: F.dropout(functional.cross_entropy(x, target, reduction="none", bits=2), 0.5)  # noqa: E731
    results = []
    for call in (run, lambda x: checkpoint(run, x, use_reentrant=use_reentrant)):
        x.grad = None
        torch.manual_seed(11)
        loss = call(x)
        loss.sum().backward()
        results.append((loss.detach(), x.grad))
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()

    def loss_of(module, x, target, soft, weight):
        losses = module.cross_entropy(x, target, weight, label_smoothing=0.1)
        return losses + module.cross_entropy(x * 2, soft, weight, reduction="sum")

    compiled = torch.compile(loss_of, backend=backend, fullgraph=True, dynamic=True)
    for n in (40, 57):
        x, target, weight = problem((n, 9), weighted=True)
        soft = problem((n, 9), soft=True)[1]
        loss, exact = compiled(functional, x, target, soft, weight), loss_of(F, x, target, soft, weight)
        torch.testing.assert_close(loss, exact)
        dx, expected = (torch.autograd.grad(out, x)[0] for out in (loss, exact))
        assert (dx - expected).abs().max() <= 0.02 and not torch.equal(dx, expected)
        again = torch.autograd.grad(compiled(functional, x, target, soft, weight), x)[0]
        assert not torch.equal(again, dx)


def test_autocast_computes_in_float32():
    x, target, weight = problem((12, 7), weighted=True)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            same = weight.to(given.dtype)
            loss = functional.cross_entropy(given, target, same)
            expected = F.cross_entropy(given, target, same)
            assert same_bits(loss, expected) and loss.dtype == torch.float32
            assert torch.autograd.grad(loss, x, retain_graph=True)[0].dtype == torch.float32


def test_any_number_of_threads_makes_the_same_gradient():
    x, target, _ = problem((401, 257))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            results.append(torch.autograd.grad(functional.cross_entropy(x, target), x)[0])
    finally:
        torch.set_num_threads(threads)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])


# ---- layer, errors, ops


def test_layer():
    weight = torch.rand(7)
    layer = nn.CrossEntropyLoss(weight, ignore_index=3, reduction="sum", label_smoothing=0.2, bits=4)
    exact = torch.nn.CrossEntropyLoss(weight, ignore_index=3, reduction="sum", label_smoothing=0.2)
    assert isinstance(layer, torch.nn.CrossEntropyLoss) and repr(layer) == "CrossEntropyLoss(bits=4)"
    assert layer.state_dict().keys() == exact.state_dict().keys() == {"weight"} or not layer.state_dict()
    x, target = torch.randn(9, 7), torch.randint(7, (9,))
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert same_bits(other(x, target), exact(x, target)) and other.bits == 4
    with pytest.warns(UserWarning, match="size_average and reduce"):
        assert nn.CrossEntropyLoss(reduce=False).reduction == "none"
    with pytest.raises(ValueError, match="bits must be None"):
        layer.bits = 3


def test_errors():
    x, target, weight = problem((4, 5), weighted=True)
    call = functional.cross_entropy
    for run, error, message in (
        (lambda: call([1.0], target), TypeError, "x must be a Tensor"),
        (lambda: call(x, [1]), TypeError, "target must be a Tensor, got list"),
        (lambda: call(x, target.int()), TypeError, "target must have dtype int64 or uint8"),
        (lambda: call(x, target[:3]), ValueError, r"target must have shape \(4,\) for x of shape"),
        (lambda: call(x, x.detach()[:3]), ValueError, r"target must have x's shape \(4, 5\)"),
        (lambda: call(x, target, weight[:4]), ValueError, r"weight must have shape \[5\], got \(4,\)"),
        (lambda: call(x, target, weight.double()), TypeError, "x and weight must have one dtype"),
        (lambda: call(x, target, reduction="max"), ValueError, "reduction must be 'none', 'mean' or 'sum'"),
        (lambda: call(x, target, label_smoothing=1.5), ValueError, "label_smoothing must be in"),
        (lambda: call(x, target, label_smoothing="a"), TypeError, "label_smoothing must be a number"),
        (lambda: call(x, target, ignore_index=1.0), TypeError, "ignore_index must be an integer"),
        (lambda: call(x, target, bits=3), ValueError, "bits must be None"),
        (lambda: call(x, x.detach().softmax(1).requires_grad_()), ValueError, "target must need no gradient"),
        (lambda: call(x, target, weight.requires_grad_()), ValueError, "weight must need no gradient"),
        (lambda: call(x[0, 0], target[0]), ValueError, "x must have at least one dimension"),
    ):
        with rng_untouched(), pytest.raises(error, match=message):
            run()


def test_opcheck():
    raw, key = torch.ops.rad_kernels, torch.tensor(KEY)
    for x in (torch.randn(6, 7), torch.randn(3, 5, 4, dtype=torch.bfloat16)):
        opcheck(raw.log_softmax, (x, 1, 4, 0, key))
        log_p, saved = raw.log_softmax(x, 1, 4, 0, key)
        opcheck(raw.probability_codes, (log_p, 4, 0, key))
        rows = (x.shape[0], *x.shape[2:])
        one, target = torch.ones(rows), torch.zeros(rows, dtype=torch.int64)
        weight = torch.ones(x.shape[1])
        for hit, level, w, t in ((one, one, weight, target), (None, None, None, None)):
            opcheck(raw.cross_entropy_backward, (saved, one, hit, level, w, t, x.shape, x.dtype, 4))


def test_ops_refuse_what_does_not_fit():
    raw, x, one = torch.ops.rad_kernels, torch.randn(4, 5).log_softmax(1), torch.ones(4)
    saved = raw.probability_codes(x, 8, 0)
    backward = raw.cross_entropy_backward
    for call, message in (
        (lambda: raw.probability_codes(x, 3, 0), "bits must be 1, 2, 4 or 8, got 3"),
        (lambda: raw.probability_codes(x, 8, -1), "salt must be in"),
        (
            lambda: backward(saved[1:], one, None, None, None, None, (4, 5), x.dtype, 8),
            "saved must be 320 bytes",
        ),
        (
            lambda: backward(saved, one[1:], None, None, None, None, (4, 5), x.dtype, 8),
            "scale must have 4 elements",
        ),
        (
            lambda: backward(saved, one, one, None, None, None, (4, 5), x.dtype, 8),
            "target and hit must be given together",
        ),
        (lambda: backward(saved, one, None, None, None, None, (4,), x.dtype, 8), "shape must be"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()

"""shared_linear: several products of one activation, one pack."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import COMBINATIONS, DTYPES, LAYOUTS
from checks import SKETCH, draws, error_over_bound, next_key, rng_untouched, same_bits, same_strides, sampled

from rad_kernels import Sketch, functional, ops
from rad_kernels.functional import SketchWarning
from rad_kernels.memory import saved_bytes
from rad_kernels.sketch import SAMPLINGS, saved_nbytes

OUTPUTS = (5, 1, 7)
every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)


def parameters(features=8, outputs=OUTPUTS, dtype=torch.float32):
    """Weights, and biases of which the second is None."""
    weights = [torch.randn(m, features, dtype=torch.float64).to(dtype).requires_grad_() for m in outputs]
    biases = [torch.randn(m, dtype=torch.float64).to(dtype).requires_grad_() for m in outputs]
    biases[1] = None
    return weights, biases


def unshared(x, weights, biases):
    return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))


@pytest.mark.filterwarnings("ignore::rad_kernels.functional.SketchWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_dx_and_db_have_torchs_bits(layout, dtype):
    x = LAYOUTS[layout](torch.randn(24, 20, dtype=torch.float64).to(dtype)).detach().requires_grad_()
    weights, biases = parameters(20, dtype=dtype)
    expected = unshared(x, weights, biases)
    dys = [torch.randn(y.shape, dtype=torch.float64).to(dtype) for y in expected]
    inputs = [x, biases[0], biases[2]]
    wanted = torch.autograd.grad(expected, inputs, dys)
    for sampling in SAMPLINGS:
        ys = functional.shared_linear(x, weights, biases, Sketch(0.25, sampling))
        assert isinstance(ys, tuple) and all(map(same_bits, ys, expected))
        got = torch.autograd.grad(ys, inputs, dys)
        assert all(map(same_bits, got[1:], wanted[1:]))
        assert same_strides(got[0], wanted[0])
        # torch adds the three parts of dx in the order in which its engine meets them; sums of three differ
        # in the last bit, so each part alone is compared.
        for i, (y, reference) in enumerate(zip(ys, unshared(x, weights, biases), strict=True)):
            y = functional.shared_linear(x, weights, biases, Sketch(0.25, sampling))[i]
            assert same_bits(*(torch.autograd.grad(out, x, dys[i])[0] for out in (y, reference)))


@every_combination
def test_one_buffer_serves_all(combination):
    sketch = Sketch(0.25, *combination)
    x, (weights, biases) = torch.randn(40, 8, requires_grad=True), parameters()
    run = lambda: functional.shared_linear(x, weights, biases, sketch)  # noqa: E731
    held = saved_bytes(run)
    # The weights, which are no Parameters here, are retained for dx.
    of_weights = sum(4 * w.numel() for w in weights)
    assert held.total == saved_nbytes(40, 8, torch.float32, sketch) + of_weights
    assert draws(run) == 1


@every_combination
def test_every_dw_comes_from_the_same_sample(combination):
    sketch = Sketch(0.25, *combination)
    x, (weights, biases), key = torch.randn(2, 20, 8), parameters(), next_key()
    ys = functional.shared_linear(x, weights, biases, sketch)
    dys = [torch.randn_like(y) for y in ys]
    dws = torch.autograd.grad(ys, weights, dys, retain_graph=True)
    detached = [w.detach() for w in weights]
    outputs, saved = ops.linear_shared(x, detached, [None] * 3, sketch.spec, key)
    estimate = sampled(x, sketch, key)
    single = ops.linear(x, detached[0], None, sketch.spec, key)[1]
    assert same_bits(*(ops.unpack(s, 40, 8, torch.float32, sketch.spec) for s in (saved, single)))
    for w, dw, dy, y in zip(weights, dws, dys, outputs, strict=True):
        assert same_bits(dw, ops.linear_wgrad(dy, saved, 8, sketch.spec))
        assert same_bits(y, F.linear(x, w))
        torch.testing.assert_close(dw, (dy.reshape(40, -1).double().t() @ estimate).float())
    assert all(map(same_bits, torch.autograd.grad(ys, weights, dys), dws))


@pytest.mark.parametrize("used", [s for n in (1, 2) for s in itertools.combinations(range(3), n)], ids=str)
def test_unused_outputs(used):
    """Their weights get no gradient at all, as in torch."""
    x, (weights, biases), key = torch.randn(40, 8, requires_grad=True), parameters(), next_key()
    ys = functional.shared_linear(x, weights, biases, SKETCH)
    sum(ys[i].sum() for i in used).backward()
    estimate = sampled(x, SKETCH, key)
    for i, weight in enumerate(weights):
        assert (weight.grad is not None) == (i in used)
        if i in used:
            expected = torch.ones(OUTPUTS[i], 40).double() @ estimate
            torch.testing.assert_close(weight.grad, expected.float())
        if biases[i] is not None:
            assert (biases[i].grad is not None) == (i in used)
    expected_dx = sum(weights[i].detach().sum(0) for i in used).expand(40, 8)
    torch.testing.assert_close(x.grad, expected_dx)


@pytest.mark.parametrize("needs_x", [True, False])
def test_frozen_subsets(needs_x):
    x, dys = torch.randn(40, 8), [torch.randn(40, m) for m in OUTPUTS]
    for frozen in itertools.product((True, False), repeat=3):
        for biases_frozen in (True, False):
            weights, biases = parameters()
            for weight, bias, is_frozen in zip(weights, biases, frozen, strict=True):
                weight.requires_grad_(not is_frozen)
                if bias is not None:
                    bias.requires_grad_(not biases_frozen)
            x = x.detach().requires_grad_(needs_x)
            expected = unshared(x, weights, biases)
            start, key = torch.get_rng_state(), next_key()
            ys = functional.shared_linear(x, weights, biases, SKETCH)
            assert torch.equal(start, torch.get_rng_state()) == all(frozen)
            assert [y.requires_grad for y in ys] == [y.requires_grad for y in expected]
            outputs = [(y, dy) for y, dy in zip(ys, dys, strict=True) if y.requires_grad]
            if not outputs:
                continue
            torch.autograd.backward(*zip(*outputs, strict=True))
            estimate = sampled(x, SKETCH, key)
            for weight, dy in zip(weights, dys, strict=True):
                if weight.requires_grad:
                    torch.testing.assert_close(weight.grad, (dy.double().t() @ estimate).float())
            if needs_x:
                total = sum(dy @ w.detach() for dy, w in zip(dys, weights, strict=True))
                torch.testing.assert_close(x.grad, total)


def test_a_weight_used_twice():
    x, weight, key = torch.randn(40, 8), torch.randn(5, 8, requires_grad=True), next_key()
    ys = functional.shared_linear(x, [weight, weight], [None, None], SKETCH)
    (ys[0] + 2 * ys[1]).sum().backward()
    expected = 3 * torch.ones(5, 40).double() @ sampled(x, SKETCH, key)
    torch.testing.assert_close(weight.grad, expected.float())


def test_one_product_is_linear():
    x, weight, bias = torch.randn(40, 8), torch.randn(5, 8, requires_grad=True), torch.randn(5)
    grads = []
    for call in (
        lambda: functional.linear(x, weight, bias, SKETCH),
        lambda: functional.shared_linear(x, [weight], [bias], SKETCH)[0],
    ):
        torch.manual_seed(6)
        grads += torch.autograd.grad(call().square().sum(), weight)
    assert same_bits(*grads)


@every_combination
def test_unbiased(combination):
    """Mean over 400 samples of two directions of each dW against the exact ones. Seeded; the statistic passes
    5 standard errors with probability 6e-7 a direction, had the seed been drawn."""
    sketch = Sketch(0.25, *combination)
    x, (weights, biases) = torch.randn(16, 8, dtype=torch.float64), parameters(dtype=torch.float64)
    dys = [torch.randn(16, m, dtype=torch.float64) for m in OUTPUTS]
    exact = [dy.t() @ x for dy in dys]
    directions = [(dw, torch.randn_like(dw)) for dw in exact]
    values = torch.zeros(400, 3, 2, dtype=torch.float64)
    for n in range(400):
        ys = functional.shared_linear(x, weights, biases, sketch)
        dws = torch.autograd.grad(ys, weights, dys)
        for i, dw in enumerate(dws):
            values[n, i] = torch.stack([(dw * direction).sum() for direction in directions[i]])
    wanted = torch.tensor([[(dw * c).sum() for c in cs] for dw, cs in zip(exact, directions, strict=True)])
    z = (values.mean(0) - wanted) / (values.std(0) / 400**0.5)
    assert z.abs().max() < 5


def test_weights_are_guarded_only_where_dx_needs_them():
    for needs_x in (True, False):
        x, (weights, biases) = torch.randn(40, 8, requires_grad=needs_x), parameters()
        ys = functional.shared_linear(x, weights, biases, SKETCH)
        with torch.no_grad():
            weights[2].add_(1)
        loss = sum(y.sum() for y in ys)
        if needs_x:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()
        else:
            loss.backward()


def test_exact_paths_draw_nothing():
    x, (weights, biases) = torch.randn(40, 8), parameters()
    frozen = [w.detach() for w in weights]
    with rng_untouched():
        functional.shared_linear(x, weights, biases, Sketch(1))
        functional.shared_linear(x, frozen, biases, SKETCH)
        functional.shared_linear(x[:0], weights, biases, SKETCH)
        with torch.inference_mode():
            functional.shared_linear(x, weights, biases, SKETCH)
        with pytest.warns(SketchWarning, match="kept exactly"):
            functional.shared_linear(x, weights, biases, Sketch(0.95))
    with torch.no_grad():
        assert draws(lambda: functional.shared_linear(x, weights, biases, SKETCH)) == 1


def test_autocast():
    x, (weights, biases), key = torch.randn(40, 8, requires_grad=True), parameters(), next_key()
    with torch.autocast("cpu", torch.bfloat16):
        ys = functional.shared_linear(x, weights, biases, SKETCH)
        expected = unshared(x, weights, biases)
    assert all(map(same_bits, ys, expected)) and ys[0].dtype == torch.bfloat16
    dys = [torch.randn_like(y) for y in ys]
    dws = torch.autograd.grad(ys, weights, dys)
    estimate = sampled(x.bfloat16(), SKETCH, key)
    for dw, dy in zip(dws, dys, strict=True):
        assert dw.dtype == torch.float32
        assert error_over_bound(dw.bfloat16(), dy.double(), estimate) <= 1

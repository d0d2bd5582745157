"""Gradients of normalisations from dithered values: the buffer and the sums as defined, the expectation over
every noise (docs/maths.md, normalisation)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norms import LAYERS, randn

from rad_kernels import functional, ops, reference
from rad_kernels.ops import NormShape

KEY = 2**61 + 4321
EPS = 1e-5


def as_sets(flat, shape: NormShape):
    """[sets, set] of a flat array in memory order."""
    if not shape.by_channel:
        return flat.reshape(-1, shape.set)
    return flat.reshape(-1, shape.params, shape.inner).swapaxes(0, 1).reshape(shape.params, -1)


def flat_of(sets, shape: NormShape):
    if not shape.by_channel:
        return sets.reshape(-1)
    return sets.reshape(shape.params, -1, shape.inner).swapaxes(0, 1).reshape(-1)


def steps_of(saved, lines, width, spec):
    """[lines, width]: the step of every value, read from the buffer."""
    layout = reference.saved_layout(spec, 2, lines, width)
    groups = -(-width // 64)
    raw = (
        saved.numpy()[layout.step : layout.step + 2 * groups * lines].view(np.uint16).astype(np.uint32) << 16
    )
    return np.repeat(raw.view(np.float32).reshape(groups, lines).T, 64, axis=1)[:, :width].astype(np.float64)


def layer_of(x, key, bits):
    return ops.layer_norm(x, x.shape[1:], None, None, EPS, bits, key)


def batch_of(x, key, bits):
    inner = x[0, 0].numel()
    return ops.batch_norm(x, None, None, None, None, 0.1, EPS, inner, bits, key)


GEOMETRY = {
    "layer": (NormShape(70, 70, 1, False), layer_of, (9, 70)),
    "long layer": (NormShape(40000, 40000, 1, False), layer_of, (2, 40000)),
    "rms": (
        NormShape(300, 300, 1, False),
        lambda x, key, bits: ops.rms_norm(x, [300], None, EPS, bits, key),
        (5, 300),
    ),
    "group": (
        NormShape(2 * 35, 6, 35, False),
        lambda x, key, bits: ops.group_norm(x, 3, None, None, EPS, bits, key),
        (4, 6, 5, 7),
    ),
    "batch": (NormShape(4 * 35, 6, 35, True), batch_of, (4, 6, 5, 7)),
    "batch of features": (NormShape(33, 9, 1, True), batch_of, (33, 9)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("name", GEOMETRY)
def test_bytes_and_gradient_are_the_definition(name, bits, dtype):
    """The buffer byte by byte against numpy; dx, dweight and dbias against float64 sums of its values."""
    shape, op, size = GEOMETRY[name]
    x, dy = randn(*size, dtype=dtype), randn(*size, dtype=dtype, seed=8)
    centred = name != "rms"
    saved, rstd = op(x, torch.tensor([KEY]), bits)[1:3]
    name_of = {torch.float32: "float32", torch.float64: "float64"}[dtype]
    if shape.by_channel:
        by_set = as_sets(x.numpy().reshape(-1), shape)
        mean = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)[1].numpy()
        lines = flat_of((by_set - mean[:, None]) * rstd.numpy()[:, None], shape)[None]
    else:
        lines, expected_rstd = reference.normalised(x.numpy().reshape(-1, shape.set), EPS, centred)
        assert np.array_equal(rstd.numpy(), expected_rstd)
    spec, salt = (1, 1, 0, 0, bits), ops.rank_salt()
    assert np.array_equal(saved.numpy(), reference.pack(lines, spec, KEY, salt, name_of, bf16_lo=True))
    assert saved.numel() == ops.norm_saved_nbytes(x.numel(), shape, bits)

    q = as_sets(
        reference.decoded_values(lines, spec, KEY, salt, name_of, True).astype(np.float64).reshape(-1), shape
    )
    step = as_sets(steps_of(saved, *lines.shape, spec).reshape(-1), shape)
    w = randn(shape.params, dtype=dtype, seed=9)
    param = np.arange(x.numel()) // shape.inner % shape.params
    g = as_sets(dy.numpy().astype(np.float64).reshape(-1), shape)
    a = g * as_sets(w.double().numpy()[param], shape)
    exact = flat_of(reference.norm_input_grad(a, q, step**2, rstd.double().numpy(), centred), shape)
    dx, dw, db = ops.norm_backward(dy, saved, rstd, w, shape, centred, bits, True, True)
    unit = torch.finfo(dtype).eps
    bound = 8 * unit * np.sqrt(shape.set) * abs(exact).max()
    assert abs(dx.double().numpy().reshape(-1) - exact).max() <= bound
    for got, terms in ((dw, g * q), (db, g)):
        want = np.bincount(param, flat_of(terms, shape), shape.params)
        total = np.bincount(param, abs(flat_of(terms, shape)), shape.params)
        assert (abs(got.double().numpy() - want) <= 8 * unit * total).all()
    # Without the correction a bound this tight is missed by far.
    wrong = flat_of(reference.norm_input_grad(a, q, 0 * step, rstd.double().numpy(), centred), shape)
    assert bits > 2 or dtype == torch.float32 or abs(wrong - exact).max() > 100 * bound


@pytest.mark.parametrize("bits", [4, 3, 2, 1])
def test_expectation_over_every_noise(bits):
    """x_hat_i and its square, over all 2^16 noises of one group: E q = x_hat, E q^2 = x_hat^2 + step^2 / 12.
    dx, which has no other products, then has the exact mean; without the correction it has not."""
    d = 6
    x = randn(1, d, dtype=torch.float64, seed=11).numpy()
    a = randn(1, d, dtype=torch.float64, seed=12).numpy() + 0.7 * x
    x_hat, rstd = reference.normalised(x, EPS, True)
    lo, hi = reference.group_range(x_hat)
    lo = reference.bf16_below(lo)
    step = reference.step_for(lo, hi, bits)
    noise = np.arange(1 << 16, dtype=np.uint32)
    first, second = np.empty(d), np.empty(d)
    for i in range(d):
        column = np.full((1, 1 << 16), x_hat[0, i])
        codes = reference.encode(column, lo, step, noise[None], bits)
        q = reference.decode(codes, lo, step, noise[None])
        first[i], second[i] = q.mean(), (q * q).mean()
    delta = float(step[0])
    assert abs(first - x_hat[0]).max() <= delta * 2.0**-17
    assert abs(second - x_hat[0] ** 2 - delta**2 / 12).max() <= delta * 2.0**-14

    def mean_dx(correction):
        others = first * ((a[0] * first).sum() - a[0] * first) + a[0] * second  # E q_i sum_j a_j q_j
        return rstd[0] * (a[0] - a[0].mean() - others / d + correction * a[0] * delta**2 / (12 * d))

    exact = rstd[0] * (a[0] - a[0].mean() - x_hat[0] * (a[0] * x_hat[0]).mean())
    bias = [np.linalg.norm(mean_dx(correction) - exact) / np.linalg.norm(exact) for correction in (0, 1)]
    assert bias[1] <= 1e-4 < 5e-4 < bias[0]


@pytest.mark.parametrize("name", LAYERS)
def test_mean_of_many_samples(name):
    """A hundred thousand independent noises at 2 bits through the real layer: along the exact gradient, the
    mean lies within 5 deviations; scaled by 1.003 it does not."""
    copies = 40_000
    if name == "batch":
        one, keys = randn(8, 4, 16, seed=13), 4000
        dy, estimates = randn(8, 4, 16, seed=14) + one, []
        for seed in range(keys):
            torch.manual_seed(seed)
            x = one.clone().requires_grad_()
            functional.batch_norm(x, bits=2).backward(dy)
            estimates.append(x.grad.reshape(-1))
        estimates = torch.stack(estimates)
        x = one.clone().requires_grad_()
        F.batch_norm(x, None, None, None, None, True).backward(dy)
        exact = x.grad.reshape(-1)
    else:
        ours, theirs, _, _ = LAYERS[name]
        shape = (1, 6, 4) if name == "group" else (1, 24)
        one = randn(*shape, seed=13)
        dy = randn(*shape, seed=14) + one
        torch.manual_seed(5)
        x = one.repeat(copies, *[1] * (len(shape) - 1)).requires_grad_()
        ours(x, None, None, 2).backward(dy.expand_as(x))
        estimates = x.grad.reshape(copies, -1)
        x = one.clone().requires_grad_()
        theirs(x, None, None).backward(dy)
        exact = x.grad.reshape(-1)
    along = estimates.double() @ exact.double() / exact.double().square().sum()
    error = along.std() / len(along) ** 0.5
    assert abs(along.mean() - 1) <= 5 * error
    assert error < 0.02

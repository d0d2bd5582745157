"""Reaction and diffusion: the exact adjoint is autograd's, the sampled one the definition's and unbiased."""

import itertools

import numpy as np
import pytest
import torch
from checks import draws, next_key, rng_untouched, same_bits
from torch.library import opcheck

from rad_kernels import Sketch, functional, memory, ops, reference
from rad_kernels.functional import SketchWarning
from rad_kernels.sketch import saved_nbytes

BATCH, HEIGHT, WIDTH, MODES, STEPS, PERIOD = 2, 5, 7, 3, 6, 4
RATE, DT = 0.2, 0.1
EXACT = Sketch(1).spec
EPS = {torch.float32: 2**-24, torch.float64: 2**-53}


def fields(dtype=torch.float64, batch=BATCH, height=HEIGHT, width=WIDTH, modes=MODES, period=PERIOD):
    """u, source, target, clock"""
    shapes = (batch, height, width), (batch, modes, height, width), (modes, height, width), (period, modes)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def inner(u):
    return u[..., 1:-1, 1:-1]


def forward(u, source, target, clock, steps=STEPS):
    """The definition: the states u_1 .. u_steps and each cell's misfit."""
    states, misfit = [], 0
    for t in range(steps):
        now = clock[t % len(clock), :, None, None]
        s, goal = (now * source).sum(1), (now * target).sum(0)
        lap = u[:, :-2, 1:-1] + u[:, 2:, 1:-1] + u[:, 1:-1, :-2] + u[:, 1:-1, 2:] - 4 * inner(u)
        moved = u.clone()
        inner(moved).copy_(inner(u) + RATE * lap + DT * inner(s) * inner(u))
        u = moved
        states.append(u)
        misfit = misfit + DT * (u - goal) ** 2
    return states, misfit


def adjoint(dlast, dmisfit, u, source, target, clock, estimates):
    """The adjoint steps by hand, with any estimates of u_1 .. u_steps in the places of the states."""
    states, dsource = [u, *estimates], torch.zeros_like(source)
    lam = dlast.clone()
    for t in reversed(range(len(estimates))):
        now = clock[t % len(clock), :, None, None]
        s, goal = (now * source).sum(1), (now * target).sum(0)
        lam = lam + 2 * DT * dmisfit * (states[t + 1] - goal)
        reached = torch.nn.functional.pad(inner(lam), (1, 1, 1, 1))
        dsource += now * (DT * reached * states[t])[:, None]
        spread = torch.nn.functional.pad(reached, (1, 1, 1, 1))
        lap = spread[:, :-2, 1:-1] + spread[:, 2:, 1:-1] + spread[:, 1:-1, :-2] + spread[:, 1:-1, 2:]
        lam = lam + RATE * (lap - 4 * reached) + DT * s * reached
    return lam, dsource


def dense_states(saved, u, dtype, spec, steps=STEPS):
    """What the buffer stands for, by the diagnostic that no kernel of this op shares."""
    batch, height, width = u.shape
    cells = (height - 2) * (width - 2)
    dense = ops.unpack(saved, batch * steps, cells, dtype, spec).view(batch, steps, height - 2, width - 2)
    states = u[:, None].expand(-1, steps, -1, -1).clone()
    states[..., 1:-1, 1:-1] = dense
    return list(states.unbind(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_exact_adjoint_are_autograds(dtype):
    u, source, target, clock = fields(dtype)
    u.requires_grad_(), source.requires_grad_()
    states, misfit = forward(u.double(), source.double(), target.double(), clock.double())
    dlast, dmisfit = torch.randn_like(u), torch.randn_like(u)
    want = torch.autograd.grad((states[-1] * dlast + misfit * dmisfit).sum(), (u, source))
    args = (u.detach(), source.detach(), target, clock)
    last, found, saved = ops.reaction_diffusion(*args, STEPS, RATE, DT, EXACT)
    got = ops.reaction_diffusion_backward(dlast, dmisfit, *args, saved, STEPS, RATE, DT, EXACT)
    # Some ten roundings a step, each amplified by the few steps after it: far below the size of any term.
    tolerance = 400 * EPS[dtype]
    for value, exact in zip((last, found, *got), (states[-1], misfit, *want), strict=True):
        assert (value - exact).abs().max() <= tolerance * exact.abs().max()


@pytest.mark.parametrize("keep", [0.01, 0.13, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sample_is_the_twins_and_the_adjoint_reads_it(dtype, keep):
    u, source, target, clock = fields(dtype)
    spec, key = Sketch(keep, "different").spec, torch.tensor([2**61 + 12345])
    last, _, saved = ops.reaction_diffusion(u, source, target, clock, STEPS, RATE, DT, spec, key)
    states, _ = forward(u.double(), source.double(), target.double(), clock.double())
    # A pack like any other, made by the packing op from the states that keeping everything tells.
    _, _, whole = ops.reaction_diffusion(u, source, target, clock, STEPS, RATE, DT, EXACT)
    dense = torch.stack(dense_states(whole, u, dtype, EXACT), 1)
    matrix = inner(dense).reshape(BATCH * STEPS, -1)
    assert torch.equal(saved, ops.pack(matrix, spec, key))
    assert torch.equal(dense[:, -1], last) and (dense.double() - torch.stack(states, 1)).abs().max() < 1e-4
    np.testing.assert_array_equal(saved.numpy(), reference.pack(matrix.numpy(), spec, int(key)))

    dlast, dmisfit = torch.randn_like(u), torch.randn_like(u)
    got = ops.reaction_diffusion_backward(
        dlast, dmisfit, u, source, target, clock, saved, STEPS, RATE, DT, spec
    )
    wide = [x.double() for x in (dlast, dmisfit, u, source, target, clock)]
    estimates = [x.double() for x in dense_states(saved, u, dtype, spec)]
    for value, exact in zip(got, adjoint(*wide, estimates), strict=True):
        assert (value - exact).abs().max() <= 400 * EPS[dtype] * exact.abs().max()


@pytest.mark.parametrize(("height", "width", "steps", "kept"), [(3, 7, 3, 2), (3, 5, 4, 2), (4, 4, 3, 1)])
def test_unbiased_over_every_outcome(height, width, steps, kept):
    """All draws of all states are equally likely, so their mean is the expectation. Strata: 3, 2; 2, 1; 4.

    At three steps and more, estimates of different states meet in products along the adjoint.
    """
    cells = (height - 2) * (width - 2)
    spec = Sketch(kept / cells, "different").spec
    lengths = [cells // kept + (i < cells % kept) for i in range(kept)]
    outcomes = int(np.prod(lengths)) ** steps
    keys = np.arange(40 * outcomes, dtype=np.uint64)
    drawn = reference.sample(spec, cells, keys[:, None], 0, np.arange(steps, dtype=np.uint64))
    _, first = np.unique(drawn.reshape(len(keys), -1), axis=0, return_index=True)
    assert len(first) == outcomes

    data = fields(batch=1, height=height, width=width, modes=2, period=2)
    how = (steps, RATE, DT)
    _, _, whole = ops.reaction_diffusion(*data, *how, EXACT)
    gradients = (
        torch.randn(1, height, width, dtype=torch.float64),
        torch.rand(1, height, width, dtype=torch.float64),
    )
    exact = ops.reaction_diffusion_backward(*gradients, *data, whole, *how, EXACT)
    total = [torch.zeros_like(x) for x in exact]
    noise = 0.0
    for key in first:
        _, _, saved = ops.reaction_diffusion(*data, *how, spec, torch.tensor([int(key)]))
        found = ops.reaction_diffusion_backward(*gradients, *data, saved, *how, spec)
        for sum_, value in zip(total, found, strict=True):
            sum_ += value
        noise = max(noise, float((found[1] - exact[1]).abs().max()))
    for sum_, want in zip(total, exact, strict=True):
        assert (sum_ / outcomes - want).abs().max() <= 1e-12 * want.abs().max()
    assert noise > 0.1 * exact[1].abs().max()


def test_grids_of_a_batch_are_apart():
    """Each grid is simulated as it would be alone, with draws of its own."""
    u, source, target, clock = fields(batch=3)
    spec, key = Sketch(0.2, "different").spec, torch.tensor([99])
    last, misfit, _ = ops.reaction_diffusion(u, source, target, clock, STEPS, RATE, DT, spec, key)
    for b in range(3):
        alone = ops.reaction_diffusion(u[b : b + 1], source[b : b + 1], target, clock, STEPS, RATE, DT, EXACT)
        assert torch.equal(last[b], alone[0][0]) and torch.equal(misfit[b], alone[1][0])
    twin = ops.reaction_diffusion(
        u[:1].expand(3, -1, -1), source[:1].expand(3, -1, -1, -1), target, clock, STEPS, RATE, DT, spec, key
    )[2]
    rows = twin[: 3 * STEPS * 3 * 8].view(torch.float64).view(3, STEPS, 3)
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])


ARGUMENTS = {"steps": 40, "dt": 0.1, "diffusion": 0.5, "spacing": 0.5}
SKETCH = Sketch(0.05, "different")


def test_the_function_is_the_op():
    u, source, target, clock = fields(height=9, width=12)
    u, source = u.view(2, 1, 9, 12).requires_grad_(), source.view(2, 1, 3, 9, 12).requires_grad_()
    key = next_key()
    last, misfit = functional.reaction_diffusion(u, source, target, clock, **ARGUMENTS, sketch=SKETCH)
    assert last.shape == misfit.shape == u.shape
    misfit.mean().backward(retain_graph=True)
    flat = u.detach().view(2, 9, 12), source.detach().view(2, 3, 9, 12), target, clock
    how = (40, 0.1 * 0.5 / 0.25, 0.1)
    _, want, saved = ops.reaction_diffusion(*flat, *how, SKETCH.spec, key)
    weight = torch.full_like(flat[0], 1 / u.numel())
    du, dsource = ops.reaction_diffusion_backward(
        torch.zeros_like(weight), weight, *flat, saved, *how, SKETCH.spec
    )
    assert torch.equal(misfit.view_as(want), want)
    assert same_bits(u.grad, du.view_as(u)) and same_bits(source.grad, dsource.view_as(source))
    again = torch.autograd.grad(misfit.mean(), source, retain_graph=True)[0]
    assert same_bits(again, source.grad)
    (first,) = torch.autograd.grad(last.sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="the sampled adjoint cannot be differentiated again"):
        first.sum().backward()


def test_what_is_drawn():
    u, source, target, clock = fields(height=9, width=12)
    source.requires_grad_()

    def call(sketch=SKETCH):
        return functional.reaction_diffusion(u, source, target, clock, **ARGUMENTS, sketch=sketch)[1]

    exact = call(Sketch(1))
    with rng_untouched():
        assert torch.equal(call(Sketch(1)), exact)
        with pytest.warns(SketchWarning, match="kept exactly"):
            call(Sketch(0.95, "different"))
        with torch.inference_mode():
            assert torch.equal(call(), exact)
    assert draws(call) == 1
    with torch.no_grad():
        assert draws(call) == 1 and torch.equal(call(), exact)


def test_retained_bytes_are_the_formulas():
    """Nothing else is kept but the arguments. At a hundredth: under one per cent of all states."""
    u, source, target, clock = fields(torch.float32, batch=1, height=33, width=33, period=2)
    source.requires_grad_()
    arguments = {"dt": 1 / 4096, "diffusion": 0.25, "spacing": 1 / 32}
    states = 500 * 33 * 33 * 4
    for keep in (1.0, 0.1, 0.01, 0.001):
        sketch = Sketch(keep, "different") if keep < 1 else Sketch(1)
        found = memory.saved_bytes(
            lambda sketch=sketch: functional.reaction_diffusion(
                u, source, target, clock, steps=500, sketch=sketch, **arguments
            )
        ).total
        pack = saved_nbytes(500, 31 * 31, torch.float32, sketch)
        given = sum(x.nbytes for x in (u, target, clock))
        assert found - pack in (given, given + source.nbytes)
        if keep == 0.01:
            assert pack < 0.01 * states


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    data = fields(dtype)
    for spec in (EXACT, SKETCH.spec, ()):
        key = torch.tensor([5])
        args = (*data, STEPS, RATE, DT, spec, 0, key)
        report = opcheck(torch.ops.rad_kernels.reaction_diffusion.default, args)
        assert set(report.values()) == {"SUCCESS"}
        if spec:
            saved = ops.reaction_diffusion(*data, STEPS, RATE, DT, spec, key)[2]
            args = (torch.randn_like(data[0]), torch.randn_like(data[0]), *data, saved, STEPS, RATE, DT, spec)
            report = opcheck(torch.ops.rad_kernels.reaction_diffusion_backward.default, args)
            assert set(report.values()) == {"SUCCESS"}


def test_layouts_and_empty_batches():
    u, source, target, clock = fields()
    key = torch.tensor([7])
    want = ops.reaction_diffusion(u, source, target, clock, STEPS, RATE, DT, SKETCH.spec, key)
    strided = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (u, source, target, clock)]
    for a, b in zip(ops.reaction_diffusion(*strided, STEPS, RATE, DT, SKETCH.spec, key), want, strict=True):
        assert torch.equal(a, b)
    none = ops.reaction_diffusion(u[:0], source[:0], target, clock, STEPS, RATE, DT, SKETCH.spec)
    assert [x.numel() for x in none] == [0, 0, 64]


WRONG = [
    ({"u": torch.ones(5)}, ValueError, "u must have at least 2 dimensions"),
    ({"u": torch.ones(2, 9)}, ValueError, "at least 3 x 3 cells, got 2 x 9"),
    ({"u": torch.ones(4, 9, 9)}, ValueError, r"source must have shape \[4, 3, 9, 9\]"),
    ({"u": torch.ones(9, 9, dtype=torch.bfloat16)}, TypeError, "u must have dtype float32 or float64"),
    ({"source": torch.ones(3, 9, 9, dtype=torch.float64)}, TypeError, "one dtype"),
    ({"source": torch.ones(0, 9, 9)}, ValueError, "target must have shape"),
    ({"target": torch.ones(3, 9, 8)}, ValueError, "target must have shape"),
    ({"clock": torch.ones(4, 2)}, ValueError, r"clock must have shape \[4, 3\]"),
    ({"clock": torch.ones(0, 3)}, ValueError, "a period and modes of at least 1"),
    ({"clock": torch.ones(4, 3, requires_grad=True)}, ValueError, "clock is a constant"),
    ({"target": None}, TypeError, "target must be a Tensor"),
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
    ({"dt": -1.0}, ValueError, "dt must be positive"),
    ({"dt": "1"}, TypeError, "dt must be a real number"),
    ({"diffusion": float("nan")}, ValueError, "diffusion must be positive"),
    ({"spacing": 0}, ValueError, "spacing must be positive"),
    ({"spacing": 0.1}, ValueError, "at most 0.25 for stable steps"),
    ({"sketch": 0.1}, TypeError, "sketch must be a rad_kernels.Sketch"),
    ({"sketch": Sketch(0.1)}, ValueError, "sampling 'different'"),
    ({"sketch": Sketch(0.1, "same")}, ValueError, "sampling 'different'"),
    ({"sketch": Sketch(0.1, "different", "with_replacement")}, ValueError, "stratified"),
    ({"sketch": Sketch(0.1, "different", bits=4)}, ValueError, "without bits"),
]


@pytest.mark.parametrize("change, error, message", WRONG, ids=itertools.count())
def test_wrong_arguments(change, error, message):
    given = {
        "u": torch.ones(9, 9),
        "source": torch.ones(3, 9, 9),
        "target": torch.ones(3, 9, 9),
        "clock": torch.ones(4, 3),
        "sketch": SKETCH,
        **ARGUMENTS,
    }
    functional.reaction_diffusion(**given)
    with rng_untouched(), pytest.raises(error, match=message):
        functional.reaction_diffusion(**{**given, **change})

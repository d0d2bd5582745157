"""Expectation of recurrent gradients: samples of inputs and hidden states enumerated through the real ops;
the stored factors read by the numpy twin, each in its own stream; products of factors along the steps."""

from itertools import product

import numpy as np
import pytest
import torch
from checks import multipliers

from rad_kernels import Sketch, ops, reference
from rad_kernels.ops.rnn import CELLS, NEEDS_BIAS, NEEDS_WEIGHT_HH, NEEDS_WEIGHT_IH, NEEDS_X, Layer

TORCH = {"relu": torch.nn.RNN, "tanh": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
EXTRA = {"relu": {"nonlinearity": "relu"}}
ALL = NEEDS_X | NEEDS_WEIGHT_IH | NEEDS_WEIGHT_HH | NEEDS_BIAS
FIRST_ROLE = 32
# Of each stream, in the order of csrc/core/rnn_cell.h: its range, None where groups have their own.
RANGES = {
    "tanh": [(0, 1)],
    "lstm": [(0, 1), (-0.25, 0.25), (0, 1), (0, 1), (-0.25, 0.25), None],
    "gru": [(0, 1), (0, 1), (0, 1), None, None],
}
every_cell = pytest.mark.parametrize("cell", CELLS)


def problem(cell, steps, batch, inputs, hidden, directions=1, dtype=torch.float64, same_rows=False):
    """(torch's layer, x, states): small random data; with ``same_rows`` all of the batch is alike."""
    torch.manual_seed(4)
    exact = TORCH[cell](inputs, hidden, bidirectional=directions == 2, dtype=dtype, **EXTRA.get(cell, {}))
    with torch.no_grad():
        for p in exact.parameters():
            p.mul_(1.5)
    count = 1 if same_rows else batch
    x = torch.randn(steps, count, inputs, dtype=dtype).expand(steps, batch, inputs).contiguous()
    states = [torch.randn(directions, count, hidden, dtype=dtype) for _ in range(1 + (cell == "lstm"))]
    states = [s.expand(directions, batch, hidden).contiguous() for s in states]
    return exact, x, states


def forward(exact, layer, x, states, key=None):
    p, directions = list(exact.parameters()), layer.directions
    biases = [b for d in range(directions) for b in p[4 * d + 2 : 4 * d + 4]]
    h, c = states[0], states[1] if len(states) == 2 else None
    return ops.rnn(x, h, c, p[::4], p[1::4], biases, layer, True, key)


def gradients(exact, layer, x, states, dy, key=None):
    """[dx, dh_0, dc_0, dW_ih, dW_hh, db_ih, db_hh] of sum(y * dy) by the ops."""
    with torch.no_grad():
        *_, saved = forward(exact, layer, x, states, key)
        p = list(exact.parameters())
        return ops.rnn_backward(dy, None, None, saved, None, p[::4], p[1::4], layer, ALL)


def exact_gradients(exact, x, states, dy):
    leaves = [x.clone().requires_grad_(), *[s.clone().requires_grad_() for s in states]]
    y, _ = exact(leaves[0], tuple(leaves[1:]) if len(states) == 2 else leaves[1])
    grads = list(torch.autograd.grad((y * dy).sum(), [*leaves, *exact.parameters()]))
    if len(states) == 1:
        grads.insert(2, dy.new_empty(0))
    return grads


def outcomes(sketch, rows, features):
    """One key that draws each of the equally likely samples of a pack."""
    found = {}
    wanted = {"different": 4**rows, "same": 4, "rows": rows // 2 and 2 ** (rows // 2)}[sketch.sampling]
    for key in range(10_000):
        drawn = multipliers(sketch, torch.tensor([key]), rows, features)
        found.setdefault(drawn.numpy().tobytes(), key)
        if len(found) == wanted:
            return list(found.values())
    raise AssertionError("an outcome was never drawn")


@every_cell
@pytest.mark.parametrize("sampling", ["same", "different", "rows"])
def test_samples_enumerated(cell, sampling):
    """Factors in full precision: dW is unbiased, everything else exact. ``same`` has a draw for each step, so
    its variance is the sum over steps."""
    sketch = Sketch(0.5, sampling)
    layer = Layer(cell, 2, 1, 4, 4, 1, (), 0, sketch.spec, sketch.spec)
    exact, x, states = problem(cell, 2, 1, 4, 4)
    dy = torch.randn(2, 1, 4, dtype=torch.float64)
    expected = exact_gradients(exact, x, states, dy)
    each = sampling == "same"
    one = outcomes(sketch, 1 if each else 2, 4)
    packs = [list(pair) for pair in product(one, one)] if each else [[key] for key in one]
    made = [gradients(exact, layer, x, states, dy, torch.tensor([7, *pack, *pack])) for pack in packs]
    for place in (0, 1, 2, 5, 6):
        for grads in made:
            assert torch.allclose(grads[place], expected[place], rtol=1e-12, atol=1e-13)
    for place in (3, 4):
        estimates = torch.stack([grads[place] for grads in made])
        assert (estimates.mean(0) - expected[place]).abs().max() <= 1e-12 * expected[place].abs().max()
        assert estimates.var(0).max() > 0
        if each:  # v = 1 with two features a stratum; a step's own part, from the gradient of its sum
            _, dgates = split_steps(exact, x, states, dy)
            inputs = (
                x[:, 0] if place == 3 else torch.stack([states[0][0, 0], forward_states(exact, x, states)])
            )
            parts = [torch.outer(g, v) for g, v in zip(dgates[place - 3], inputs, strict=True)]
            variance = sum(part.square().sum() for part in parts)
            measured = (estimates - expected[place]).square().sum((1, 2)).mean()
            assert abs(measured / variance - 1) <= 1e-10


def forward_states(exact, x, states):
    hx = tuple(states) if len(states) == 2 else states[0]
    return exact(x[:1], hx)[0][0, 0].detach()


def split_steps(exact, x, states, dy):
    """Gradients of each step's sums, by way of biases of their own: ([of W_ih x], [of W_hh h])."""
    layers = []
    hx = tuple(states) if len(states) == 2 else states[0]
    ys = []
    for t in range(2):
        own = [p.detach().clone().requires_grad_() for p in exact.parameters()]
        layers.append(own)
        names = [name for name, _ in exact.named_parameters()]
        y, hx = torch.func.functional_call(exact, dict(zip(names, own, strict=True)), (x[t : t + 1], hx))
        ys.append(y)
    flat = [own[i] for i in (2, 3) for own in layers]
    grads = torch.autograd.grad((torch.cat(ys) * dy).sum(), flat)
    return ys, [grads[:2], grads[2:]]


def factors_of(cell, gates, h, c):
    """The factors of one step, in the order of their streams, from torch's own functions."""
    inputs, hidden = gates
    if cell == "tanh":
        h = torch.tanh(inputs + hidden)
        return [1 - h * h], h, None
    if cell == "lstm":
        i, f, g, o = (inputs + hidden).chunk(4, -1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        before, c = c, f * c + i * g
        t = c.tanh()
        factors = [
            f,
            g * i * (1 - i),
            i * (1 - g * g),
            o * (1 - t * t),
            t * o * (1 - o),
            before * f * (1 - f),
        ]
        return factors, o * t, c
    r, z = (inputs + hidden).chunk(3, -1)[:2]
    r, z, q = r.sigmoid(), z.sigmoid(), hidden.chunk(3, -1)[2]
    n = torch.tanh(inputs.chunk(3, -1)[2] + r * q)
    factors = [(1 - z) * (1 - n * n), r, z, (h - n) * z * (1 - z), q * r * (1 - r)]
    return factors, (h - n) * z + n, None


@pytest.mark.parametrize("cell", RANGES)
@pytest.mark.parametrize("bits", [8, 2])
def test_factors_by_the_twin(cell, bits):
    """Every stream, step and direction has noise of its own: read with it, each factor is within half a step
    of its value, and the errors fill that range. With any other noise a quarter of them would lie outside."""
    steps, batch, hidden = 3, 3, 50
    layer = Layer(cell, steps, batch, 4, hidden, 2, (), bits, (), ())
    exact, x, states = problem(cell, steps, batch, 4, hidden, directions=2)
    key, salt = 2**61 + 99, ops.rank_salt()
    with torch.no_grad():
        saved = forward(exact, layer, x, states, torch.tensor([key]))[-1].numpy()
    n, groups = batch * hidden, -(-batch * hidden // 64)
    pitch = -(-n * bits // 64) * 8

    def aligned(size):
        return -(-size // 128) * 128

    streams, ranged = len(RANGES[cell]), RANGES[cell].count(None)
    planes = aligned(steps * pitch), aligned(steps * groups * 8), aligned(steps * groups * 2)
    direction_bytes = streams * planes[0] + ranged * (planes[1] + planes[2])
    p = list(exact.parameters())
    for direction in range(2):
        w_ih, w_hh, b_ih, b_hh = (v.detach() for v in p[4 * direction : 4 * direction + 4])
        h, c = states[0][direction], states[1][direction] if cell == "lstm" else None
        base = direction * direction_bytes
        for t in range(steps) if direction == 0 else reversed(range(steps)):
            sums = x[t] @ w_ih.t() + b_ih, h @ w_hh.t() + b_hh
            factors, h, c = factors_of(cell, sums, h, c)
            for stream, factor in enumerate(factors):
                at = base + stream * planes[0] + t * pitch
                codes = np.unpackbits(saved[at : at + pitch], bitorder="little").reshape(-1, bits)[:n]
                codes = (codes * (1 << np.arange(bits))).sum(-1)
                if RANGES[cell][stream]:
                    lo, hi = map(np.float64, RANGES[cell][stream])
                    step = reference.step_for(lo[None], hi[None], bits).astype(np.float64)
                    lo, step = np.full(n, lo), np.full(n, step[0])
                else:
                    number = stream - (streams - ranged)
                    los = base + streams * planes[0] + number * planes[1] + t * groups * 8
                    at = base + streams * planes[0] + ranged * planes[1] + number * planes[2] + t * groups * 2
                    lo = np.repeat(saved[los : los + groups * 8].view(np.float64), 64)[:n]
                    step = saved[at : at + groups * 2].view(np.uint16).astype(np.uint32) << 16
                    step = np.repeat(step.view(np.float32).astype(np.float64), 64)[:n]
                words = reference.random_words(
                    key, salt, FIRST_ROLE + stream, direction * steps + t, np.arange(-(-n // 8))
                )
                noise = words.astype("<u4").reshape(-1).view("<u2")[:n].astype(np.int64)
                read = lo + step * (codes - ((2 * noise + 1) / 131072 - 0.5))
                error = np.abs(read - factor.flatten().numpy()) / step
                assert error.max() <= 0.5 + 1e-9 and error.max() > 0.45


@pytest.mark.parametrize("cell", RANGES)
@pytest.mark.parametrize("bits", [2, 1])
def test_products_along_steps_are_unbiased(cell, bits):
    """Rows that are alike differ in their noise alone, so their mean is the expectation's estimate: within
    five of its standard errors (seeds are fixed). Streams that were shared are off by tens of them."""
    rows, steps, hidden = 20_000, 3, 2
    layer = Layer(cell, steps, rows, 2, hidden, 1, (), bits, (1, 1, 0, 0, 0), (1, 1, 0, 0, 0))
    exact, x, states = problem(cell, steps, rows, 2, hidden, same_rows=True)
    dy = torch.ones(steps, rows, hidden, dtype=torch.float64)
    dy[:-1] = 0
    made = gradients(exact, layer, x, states, dy, torch.arange(layer.keys) + 2**33 * bits)
    expected = exact_gradients(exact, x[:, :1], [s[:, :1] for s in states], dy[:, :1])
    for place in (0, 1, *((2,) if cell == "lstm" else ())):
        samples, truth = made[place], expected[place]
        error = samples.mean(1, keepdim=True) - truth
        assert (error.abs() <= 5 * samples.std(1, keepdim=True) / rows**0.5).all()
    for place in (
        3,
        4,
        5,
        6,
    ):  # sums over rows: noise of rows is independent, at most that of dx's relative size
        assert (made[place] / rows - expected[place]).abs().max() <= 0.1 * expected[place].abs().max()


@every_cell
def test_samples_and_factors_together(cell):
    """dW with everything random: the mean over keys, within five standard errors."""
    sketch = Sketch(0.5, "different", bits=4)
    layer = Layer(cell, 3, 64, 4, 4, 1, (), 2, sketch.spec, sketch.spec)
    exact, x, states = problem(cell, 3, 64, 4, 4, same_rows=True)
    dy = torch.ones(3, 64, 4, dtype=torch.float64)
    expected = exact_gradients(exact, x, states, dy)
    keys = [torch.arange(layer.keys) + 1000 * i for i in range(150)]
    weights = zip(*(gradients(exact, layer, x, states, dy, key)[3:5] for key in keys), strict=True)
    for place, estimates in zip((3, 4), weights, strict=True):
        stacked = torch.stack(estimates)
        error = (stacked.mean(0) - expected[place]).abs()
        assert (error <= 5 * stacked.std(0) / len(keys) ** 0.5 + 1e-12).all()

"""Planning: predictions against measurements, the knapsack against enumeration, budgets, refusals."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from enumeration import Design
from formulas import VARIANCES
from torch import nn

from rad_kernels import Sketch, convert, fit, memory, restore, variance
from rad_kernels.convert.probe import Step
from rad_kernels.plan import knapsack
from rad_kernels.plan.fit import SETTINGS, SKETCHES, parsed_bytes
from rad_kernels.plan.formulae import has_closed_form, linear_variances
from rad_kernels.plan.layers import kind_of
from rad_kernels.plan.probe import probe
from rad_kernels.sketch import VALID_DRAWS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import gpt

KINDS = [(sampling, draw) for sampling, draws in VALID_DRAWS.items() for draw in draws]
Z = 4.5  # standard errors, of fixed seeds


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_formulae_are_those_of_the_enumeration_tests(kind):
    x = torch.randn(21, 150, dtype=torch.float64) * torch.linspace(0.2, 3, 150) + 0.3
    dy = torch.randn(21, 5, dtype=torch.float64) + 0.2
    by_rows = kind[0] in ("rows", "tile_rows")
    kept = 4 if by_rows else 40
    sketch = Sketch(kept / (21 if by_rows else 150), *kind)
    expected = VARIANCES[kind].total(
        Design(*kind, rows=21, features=150, kept=kept, outputs=5), x.numpy(), dy.numpy()
    )
    # The norm draw's probabilities are fixed-point numbers of 30 bits in the tests' formulae.
    assert linear_variances([sketch], x, dy)[sketch] == pytest.approx(
        expected, rel=1e-6 if "norm" in kind else 1e-11
    )


def test_no_closed_form_is_an_error():
    sketch = Sketch(0.5, "different", bits=4)
    assert not has_closed_form(sketch)
    with pytest.raises(ValueError, match="no closed form"):
        linear_variances([sketch], torch.rand(4, 8), torch.rand(4, 2))


@pytest.fixture
def small():
    """A GPT of one block, its step, and names of what has a closed form."""
    torch.manual_seed(1)
    model = gpt.GPT(65, 64, 1)
    x, y = torch.randint(65, (8, 32)), torch.randint(65, (8, 32))
    return model, (x, y), [n for n, m in model.named_modules() if kind_of(m)]


def test_predicted_variance_is_the_measured_one(small):
    """Matrices by formula; norms and activations along random tangents, whose own error is small here."""
    model, inputs, names = small
    sampled = Sketch(0.25, bits=2)
    found = probe(model, Step(gpt.loss, inputs), names, [sampled], tangents=16)
    for kind, setting in (("linear", sampled), ("norm", 2), ("activation", 2)):
        bits = setting if isinstance(setting, int) else None
        convert(
            model,
            {} if bits else sampled,
            norm_bits=bits if kind == "norm" else None,
            act_bits=bits if kind == "activation" else None,
        )
        measured = variance(model, inputs, loss=gpt.loss, samples=40)
        restore(model)
        layers = [x for x in found.layers.values() if x.kind == kind and x.name != "head"]
        predicted = sum(layer.variance[setting] for layer in layers)
        slack = Z * measured.error + (0.2 * predicted if bits else 0.0)  # of 16 tangents: see fit's docstring
        assert abs(predicted - measured.variance) < slack, (kind, setting)
        assert measured.error < 0.08 * measured.variance


NORMS = {
    "layer": (nn.LayerNorm(64), (16, 64)),
    "rms": (nn.RMSNorm(64), (16, 64)),
    "group": (nn.GroupNorm(2, 8), (4, 8, 16)),
    "batch": (nn.BatchNorm2d(8), (4, 8, 8, 8)),
    "batch, channels last": (nn.BatchNorm2d(8), (4, 8, 8, 8)),
}


@pytest.mark.parametrize("name", NORMS)
def test_noise_of_a_normalisation_along_a_tangent(name):
    """The whole gradient of a layer below is the tangent's: x = scale * data, so that z is the data."""
    norm, shape = NORMS[name]
    data = torch.randn(shape) * torch.linspace(0.5, 2, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    if "last" in name:
        data = data.to(memory_format=torch.channels_last)

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.norm = nn.Parameter(torch.full(data.shape, 1.0)), norm

        def forward(self, x):
            scaled = x * self.scale
            return self.norm(
                scaled.contiguous(memory_format=torch.channels_last) if "last" in name else scaled
            )

    model, weights = Scaled(), torch.randn(shape)
    nn.init.uniform_(norm.weight, 0.5, 2)

    def loss(model, x):
        return (model(x) * weights).sum()

    found = probe(model, Step(loss, (data,)), ["norm"], [], tangents=60)
    convert(model, {}, norm_bits=1)
    measured = variance(model, (data,), loss=loss, samples=60)
    restore(model)
    predicted = found.layers["norm"].variance[1]
    assert abs(predicted - measured.variance) < Z * measured.error + 0.15 * predicted


@pytest.mark.parametrize("transposed", [False, True])
def test_noise_of_a_convolution(transposed):
    if transposed:
        conv = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    else:
        conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(4, 8, 12, 12) * torch.linspace(0.2, 2, 8)[:, None, None]
    model = nn.Sequential(nn.Conv2d(8, 8, 1), conv)
    weights = torch.randn(model(x).shape)

    def loss(model, x):
        return (model(x) * weights).sum()

    setting = Sketch(1, bits=2)
    predicted = probe(model, Step(loss, (x,)), ["1"], [], 1).layers["1"].variance[setting]
    convert(model, {"1": setting})
    measured = variance(model, (x,), loss=loss, samples=30)
    restore(model)
    assert abs(predicted - measured.variance) < Z * measured.error
    assert measured.error < 0.05 * predicted


def test_knapsack_is_exact():
    random = np.random.default_rng(0)
    for _ in range(80):
        items, options = random.integers(1, 6), random.integers(1, 5)
        cost, nbytes = random.random((items, options)), random.integers(1, 50, (items, options)).astype(float)
        cost[random.random((items, options)) < 0.1] = np.inf
        budget = float(random.integers(5, 150))
        every = itertools.product(range(options), repeat=items)
        sums = [
            (sum(cost[i, c] for i, c in enumerate(x)), sum(nbytes[i, c] for i, c in enumerate(x)))
            for x in every
        ]
        best = min((c for c, n in sums if n <= budget and np.isfinite(c)), default=None)
        problem = knapsack.Problem(cost, np.where(np.isfinite(cost), nbytes, np.inf))
        found = knapsack.solve(problem, budget)
        assert (found is None) == (best is None)
        if found is not None:
            assert sum(nbytes[i, c] for i, c in enumerate(found)) <= budget
            assert sum(cost[i, c] for i, c in enumerate(found)) == pytest.approx(best)


def test_few_settings_for_many_layers():
    random = np.random.default_rng(1)
    shape = (200, 30)
    nbytes = np.sort(random.random(shape) * random.random((200, 1)), 1) * 1e6
    cost = np.sort(random.random(shape) ** 4, 1)[:, ::-1] * random.random((200, 1))
    problem, budget = knapsack.Problem(cost, nbytes), 0.4 * nbytes.max(1).sum()
    chosen = knapsack.choose(problem, budget, SETTINGS)
    assert len(set(chosen)) <= SETTINGS
    spent = sum(nbytes[i, c] for i, c in enumerate(chosen))
    assert 0.95 * budget <= spent <= budget


@pytest.mark.parametrize("budget", [0.25, 0.6, "1.1MB"])
def test_budget_is_kept_and_used(small, budget):
    model, inputs, _ = small
    state, parameters = torch.get_rng_state(), {n: p.clone() for n, p in model.named_parameters()}
    whole = memory.saved_bytes(lambda: gpt.loss(model, *inputs)).total
    plan = fit(model, inputs, budget, loss=gpt.loss, tangents=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, parameters[n]) and p.grad is None for n, p in model.named_parameters())
    after = memory.saved_bytes(lambda: gpt.loss(model, *inputs)).total
    assert plan.before == whole and plan.after == after and len(plan.settings) <= SETTINGS
    assert 0.95 <= plan.used <= 1
    if isinstance(budget, float):
        assert after <= budget * whole
    else:
        peak = memory.step_peak(lambda: gpt.loss(model, *inputs).backward())
        assert peak <= parsed_bytes(budget)
    for row in plan.rows:
        for name in row.layers:
            if row.setting == "exact":
                assert name not in model.rad_report.converted
            else:
                layer = model.get_submodule(name)
                assert row.setting in (f"{getattr(layer, 'bits', None)} bits", *_labels(layer))
    assert plan.recompute == ("attention" if budget in (0.25,) else plan.recompute)
    text = str(plan)
    assert f"{plan.after:,}" in text and all(row.layers[0] in text for row in plan.rows)
    restore(model)


def _labels(layer):
    sketch = getattr(layer, "sketch", None)
    return () if sketch is None else (str(sketch), f"{sketch.bits} bits")


def test_nothing_fits(small):
    model, inputs, _ = small
    with pytest.raises(
        ValueError, match=r"nothing fits into budget=0.01, .* smallest that can be reached are [\d,]+"
    ):
        fit(model, inputs, 0.01, loss=gpt.loss)
    assert not any("_rad_converted" in vars(m) for m in model.modules())


def test_less_noise_with_more_memory(small):
    model, inputs, _ = small
    found = []
    for budget in (0.25, 0.5):
        plan = fit(model, inputs, budget, loss=gpt.loss, recompute="attention", tangents=1)
        found.append(plan.variance)
        restore(model)
    assert found[0] > found[1]


def test_time_within_the_noise_that_is_allowed(small):
    model, inputs, _ = small
    plan = fit(model, inputs, 0.6, loss=gpt.loss, minimise="time", noise=0.5, tangents=1)
    restore(model)
    assert plan.used <= 1 and plan.variance <= 0.5 * plan.minibatch


def test_shared_packs_are_decided_together():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(64, 64)
            self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
            self.last = nn.Linear(64, 4)

        def forward(self, x):
            h = self.first(x)
            return self.last(self.q(h) + self.k(h) + self.v(h)).square().mean()

    model, x = Three(), torch.randn(64, 64)
    plan = fit(model, x, 0.7, tangents=1)
    assert ("q", "k", "v") in [row.layers for row in plan.rows]
    assert plan.after == memory.saved_bytes(lambda: model(x)).total <= plan.budget


BAD = [
    ({"budget": 1.5}, ValueError, "budget must be a share"),
    ({"budget": 1}, TypeError, "budget must be bytes"),
    ({"budget": "8 apples"}, ValueError, "8 apples"),
    ({"minimise": "money"}, ValueError, "minimise must be"),
    ({"noise": 0}, ValueError, "noise must be"),
    ({"recompute": "all"}, ValueError, "recompute must be"),
    ({"tangents": 0}, ValueError, "tangents must be"),
    ({"loss": 3}, TypeError, "loss must be callable"),
    ({"loss": lambda m, x, y: m(x)}, ValueError, "must return a scalar"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), BAD, ids=lambda v: str(v)[:20] if isinstance(v, dict) else ""
)
def test_bad_arguments(small, change, error, message):
    model, inputs, _ = small
    arguments = {"budget": 0.5, "loss": gpt.loss, **change}
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        fit(model, inputs, **arguments)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_converted_model_is_refused(small):
    model, inputs, _ = small
    convert(model, Sketch(0.5))
    with pytest.raises(ValueError, match="converted already"):
        fit(model, inputs, 0.5, loss=gpt.loss)


def test_all_candidates_have_a_closed_form():
    assert all(has_closed_form(sketch) for sketch in SKETCHES)
    assert parsed_bytes("8GiB") == 8 * 2**30 and parsed_bytes(" 1.5 MB") == 1_500_000

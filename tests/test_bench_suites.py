"""The benchmarks' suites on tiny shapes: who takes part, what each computes, retains and is credited with."""

from functools import partial

import pytest
import torch

from rad_kernels import Sketch
from rad_kernels.bench import limits, linear, model, runner
from rad_kernels.bench.cases import BlockCase, ConvCase, LinearCase, MatrixCase
from rad_kernels.bench.limits import Limits, Work
from rad_kernels.bench.providers import linear_providers
from rad_kernels.bench.suites import SUITES
from rad_kernels.bench.timing import Rounds, wall_clock
from rad_kernels.bench.trial import Setting, training
from rad_kernels.memory import saved_bytes, step_peak
from rad_kernels.official import OfficialLinear
from rad_kernels.sketch import saved_nbytes

CPU = torch.device("cpu")
TINY = LinearCase(24, 16, 8)
SKETCHES = (Sketch(0.25), Sketch(0.25, "different"), Sketch(1, bits=4))
SETTING = Setting(CPU, torch.float32, 0.25, SKETCHES)
TINY_CONV = ConvCase(3, 6, 12, 4, 3)
CASES = {
    "elementwise": [MatrixCase(4, 128)],
    "conv": [TINY_CONV],
    "conv_wgrad": [TINY_CONV],
    "model": model.transformer_cases(BlockCase(2, 24, 64)),
}
SMALL_BLOCK = BlockCase(2, 256, 128)
FEW = Rounds(seconds=0.0, least=2, most=4, warm_up=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_runs(suite, dtype):
    setting = Setting(CPU, dtype, 0.25, SKETCHES, peers=suite == "linear")
    for trial in SUITES[suite](setting, CASES.get(suite, [TINY])):
        rows = runner.measured(trial, setting, wall_clock, FEW, Limits(1e9, 1e9))
        assert [row.provider for row in rows] == list(trial.subjects) and len(rows) >= 2
        assert rows[0].ratio == rows[0].ratio_minimum == 1
        assert all(0 < row.minimum <= row.p20 <= row.median <= row.p80 for row in rows)
        ours = [str(sketch) for sketch in SKETCHES]
        if suite not in ("elementwise", "model"):
            assert [row.provider for row in rows if row.provider in ours] == ours
        if suite == "linear":
            assert {row.provider.split()[0] for row in rows} - {"torch", *ours} == (
                {"index_select", "checkpoint", "compiled"}
                | ({"official"} if dtype == torch.float32 else set())
            )


def test_retained_bytes_of_the_providers():
    subjects = linear.layer_subjects(linear_providers(SKETCHES, 0.25), TINY, SETTING)
    retained = {name: saved_bytes(subject.forward).total for name, subject in subjects.items()}
    assert retained["torch"] == 24 * 16 * 4
    for sketch in SKETCHES:
        assert retained[str(sketch)] == saved_nbytes(24, 16, torch.float32, sketch)
    assert retained["index_select 0.25"] == 6 * (16 * 4 + 8 + 4)
    assert retained["checkpoint"] >= retained["torch"]
    assert retained["official same 0.25"] == retained["official different 0.25"] == 24 * 4 * 4


def test_gradients_are_dropped_before_each_step():
    layer, x = torch.nn.Linear(16, 8), torch.randn(24, 16, requires_grad=True)
    subject = training(layer, x, torch.randn(24, 8), list(layer.parameters()), None)
    subject.step.run()
    assert layer.weight.grad is not None and layer.bias.grad is not None and x.grad is not None
    subject.step.prepare()
    assert layer.weight.grad is None and layer.bias.grad is None and x.grad is None


@pytest.mark.parametrize("name", ["index_select 0.2", "checkpoint"])
def test_other_providers_compute_torchs_y_dx_and_db(name):
    provider = next(p for p in linear_providers((), 0.2) if p.name == name)
    run, x = provider.make(TINY).double(), torch.randn(24, 16, dtype=torch.float64, requires_grad=True)
    layer = getattr(run, "layer", run)
    inputs, dy = (x, layer.bias, layer.weight), torch.randn(24, 8, dtype=torch.float64)
    y, expected = run(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(y, expected)
    y.backward(dy)
    for tensor, wanted in zip(inputs, torch.autograd.grad(expected, inputs, dy), strict=True):
        if tensor is not layer.weight or name == "checkpoint":
            torch.testing.assert_close(tensor.grad, wanted)


def test_composition_draws_one_row_of_each_stratum():
    """With dy = identity, dW holds every row times its multiplier: 24 rows, strata 5 5 5 5 4."""
    provider = next(p for p in linear_providers((), 0.2) if p.name == "index_select 0.2")
    layer, x = provider.make(LinearCase(24, 16, 24)).double(), torch.randn(24, 16, dtype=torch.float64)
    seen = torch.zeros(24, dtype=torch.float64)
    for _ in range(300):
        layer.zero_grad()
        layer(x).backward(torch.eye(24, dtype=torch.float64))
        multipliers = (layer.weight.grad / x).mean(1)
        torch.testing.assert_close(layer.weight.grad, multipliers[:, None] * x)
        strata = [part[part != 0] for part in multipliers.split([5, 5, 5, 5, 4])]
        torch.testing.assert_close(torch.cat(strata), torch.tensor([5.0, 5, 5, 5, 4], dtype=torch.float64))
        seen += multipliers
    assert seen.min() > 0.4 * 300 and seen.max() < 1.8 * 300


def test_limits_of_a_convolution():
    case, sketch = ConvCase(2, 8, 10, 4, 3), Sketch(0.25)
    product = 2.0 * 200 * 4 * 8 * 9
    kept = saved_nbytes(200, 8, torch.float32, sketch)
    assert limits.conv(case, torch.float32, None) == Work(3 * product, 4.0 * (3 * 1600 + 3 * 800 + 3 * 288))
    sampled = limits.conv(case, torch.float32, sketch)
    assert sampled == Work(2.25 * product, 4.0 * (2 * 1600 + 3 * 800 + 3 * 288) + 2 * kept)
    assert limits.conv_weight_gradient(case, torch.float32, sketch) == Work(
        0.25 * product, 4.0 * (800 + 288) + kept
    )
    by_channel = saved_nbytes(16, 100, torch.float32, Sketch(0.25, "same"))
    found = limits.conv_weight_gradient(case, torch.float32, Sketch(0.25, "same"))
    assert found == Work(0.25 * product, 4.0 * (800 + 288) + by_channel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sampled_network_keeps_as_much_as_a_checkpoint_and_no_more(dtype):
    trial = next(
        SUITES["model"](Setting(CPU, dtype, 0.1, SKETCHES), [model.transformer_cases(SMALL_BLOCK)[1]])
    )
    retained = {name: saved_bytes(subject.forward).total for name, subject in trial.subjects.items()}
    fitting = next(name for name in retained if "GELU" in name)
    rows, width = SMALL_BLOCK.batch * SMALL_BLOCK.length, SMALL_BLOCK.width
    x = rows * width * dtype.itemsize
    one_percent = 5 * x / 100
    assert x - 2 * one_percent < retained[fitting] <= x <= retained["checkpoint"]


def test_no_keep_fits_where_codes_alone_take_more():
    assert model.fitting_mlp((1, 1, 8), torch.bfloat16) is None


# the authors' layer


@pytest.mark.parametrize(
    "rows, features, outputs, keep, retained",
    [
        (150, 784, 300, 0.1, 47_400),
        (150, 784, 300, 0.5, 235_200),
        (256, 1024, 1024, 0.1, 105_472),
        (256, 1024, 1024, 0.5, 524_288),
    ],
)
@pytest.mark.parametrize("different", [False, True])
def test_official_layer_retains_what_the_published_one_does(
    rows, features, outputs, keep, retained, different
):
    layer = OfficialLinear(features, outputs, keep, different)
    x = torch.randn(rows, features, requires_grad=True)
    assert saved_bytes(lambda: layer(x)).total == retained


def test_official_layer_peaks_at_several_times_torchs():
    x, dy = torch.randn(256, 1024, requires_grad=True), torch.randn(256, 1024)
    layer, exact = OfficialLinear(1024, 1024, 0.1, False), torch.nn.Linear(1024, 1024)
    peak = step_peak(lambda: layer(x).backward(dy))
    x.grad = None
    assert 2 < peak / step_peak(lambda: exact(x).backward(dy)) < 2.5  # published: 2.18


@pytest.mark.parametrize("different", [False, True])
def test_official_layer_is_unbiased_with_the_variance_of_replacement(different):
    rows, features, outputs, kept, draws = 6, 8, 3, 2, 1500
    layer = OfficialLinear(features, outputs, kept / features, different)
    x, dy = torch.randn(rows, features, requires_grad=True), torch.randn(rows, outputs)
    exact = dy.t() @ x.detach()
    errors = torch.empty(draws, outputs, features)
    for number in range(draws):
        layer.zero_grad()
        x.grad = None
        layer(x).backward(dy)
        errors[number] = layer.weight.grad - exact
    torch.testing.assert_close(x.grad, dy @ layer.weight.detach())
    torch.testing.assert_close(layer.bias.grad, dy.sum(0))
    entries = dy.square().sum(1) @ x.detach().square().sum(1) if different else exact.square().sum()
    variance = float((features - 1) / kept * entries)
    assert float(errors.mean(0).square().sum()) < 4 * variance / draws  # its expectation is variance / draws
    assert float(errors.square().sum((1, 2)).mean()) == pytest.approx(variance, rel=0.15)


def test_both_ways_of_a_weight_gradient_are_timed_where_there_are_two(monkeypatch):
    """On the CPU the fused way is a plain loop, good enough to see who takes part and what each computes."""
    sketches = (Sketch(0.25), Sketch(0.25, "tile_rows"), Sketch(0.25, "different"))
    setting = Setting(CPU, torch.bfloat16, 0.25, sketches, peers=True)
    (trial,) = SUITES["wgrad"](setting, [TINY])
    assert list(trial.subjects) == ["torch", *map(str, sketches), "index_select 0.25"]
    monkeypatch.setattr(linear, "chooses_path", lambda setting: True)
    (trial,) = SUITES["wgrad"](setting, [TINY])
    of_rows = [str(s) for s in (*sketches[:2], Sketch(1))]
    ways = [f"{name} {way}" for name in of_rows for way in ("fused", "gathered")]
    assert list(trial.subjects)[5:] == ways
    close = partial(torch.testing.assert_close, rtol=2**-7, atol=0.05)
    results = {name: subject.step.run() for name, subject in trial.subjects.items()}
    for name in of_rows:
        torch.testing.assert_close(
            results[f"{name} fused"], results[f"{name} gathered"], rtol=2**-7, atol=0.05
        )
    for way in ("fused", "gathered"):
        close(results[f"rows:1.0 {way}"], results["torch"])


def test_paths_are_chosen_on_a_gpu_in_16_bits_alone():
    cuda = torch.device("cuda")
    for device, dtype, two in (
        (cuda, torch.bfloat16, True),
        (cuda, torch.float16, True),
        (cuda, torch.float32, False),
        (CPU, torch.bfloat16, False),
    ):
        assert linear.chooses_path(Setting(device, dtype, 0.1, ())) is two

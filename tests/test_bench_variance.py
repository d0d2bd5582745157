"""The benchmarks' variances against those of the enumeration tests and against samples; the page of them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from enumeration import Design
from formulas import VARIANCES

from rad_kernels import Sketch, ops
from rad_kernels.bench import variance
from rad_kernels.bench.result import Report
from rad_kernels.bench.variance import Activation
from rad_kernels.data import load_digits_8x8
from rad_kernels.demo.network import standardised
from rad_kernels.plan.formulae import dither_steps, norm_probability
from rad_kernels.sketch import saved_nbytes

ROOT = Path(__file__).resolve().parent.parent


def activation(rows=21, features=150, outputs=5, dtype=torch.float64):
    """Rows and features of very different sizes, so that no formula holds by symmetry."""
    scale = torch.logspace(-1, 1, rows, dtype=torch.float64)[torch.randperm(rows), None]
    x = torch.randn(rows, features, dtype=torch.float64) * scale * torch.linspace(0.2, 2, features) + 0.3
    dy = torch.randn(rows, outputs, dtype=torch.float64) + 0.2
    return Activation("made up", x.to(dtype), dy.to(dtype))


@pytest.mark.parametrize(
    "kind",
    [(s, d) for s in ("rows", "same", "different") for d in ("stratified", "with_replacement")],
    ids="-".join,
)
def test_formulae_are_those_of_the_enumeration_tests(kind):
    a = activation()
    length, kept = (21, 4) if kind[0] == "rows" else (150, 40)
    design = Design(*kind, rows=21, features=150, kept=kept, outputs=5)
    expected = VARIANCES[kind].total(design, a.x.numpy(), a.dy.numpy())
    assert variance.formula(Sketch(kept / length, *kind), a) == pytest.approx(expected, rel=1e-12)


SAMPLED = [
    Sketch(0.25, "rows", "without_replacement"),
    Sketch(0.25, "rows", "norm"),
    Sketch(0.25, "same", "without_replacement"),
    Sketch(0.25, "tile_rows"),
    Sketch(0.25, "tile_rows", "with_replacement"),
    Sketch(0.25, "project"),
    Sketch(1, bits=4),
    Sketch(1, bits=1),
    Sketch(0.25, "rows", bits=1),
    Sketch(0.25, "rows", "with_replacement", bits=1),
    Sketch(0.25, "rows", "norm", bits=1),
    Sketch(0.25, "tile_rows", "without_replacement", bits=1),
]


@pytest.mark.parametrize("sketch", SAMPLED, ids=str)
def test_formula_against_samples(sketch):
    a = activation(dtype=torch.float32)
    row = variance.variance_row(sketch, [a], range(1500))
    assert row.formula is not None and abs(row.measured - row.formula) < 4.5 * row.error
    assert row.error < 0.1 * row.formula  # so that a wrong line shows


def test_norm_probability_is_that_of_the_weights():
    """One draw of 21: the row that is drawn has the weight 1 / p."""
    x, sketch = activation().x, Sketch(1 / 21, "rows", "norm")
    expected, drawn = 1 / norm_probability(x.norm(dim=1)), set()
    for key in range(60):
        saved = ops.pack(x, sketch.spec, torch.tensor([key]))
        multipliers = (ops.unpack(saved, 21, 150, x.dtype, sketch.spec) / x).mean(1)
        row = int(multipliers.nonzero())
        assert float(multipliers[row]) == pytest.approx(float(expected[row]), rel=1e-6)
        drawn.add(row)
    assert len(drawn) > 5


def test_dithered_feature_samples_have_no_closed_form():
    a = activation()
    for sampling in ("same", "different"):
        assert variance.formula(Sketch(0.25, sampling, bits=4), a) is None
    assert variance.formula(Sketch(1), a) == 0


def test_dither_steps_are_those_that_are_stored():
    """Codes of the largest and least value of a group are `levels` steps apart at most, one less at least."""
    x = activation(dtype=torch.float32).x
    steps, spec = dither_steps(x, 4), Sketch(1, bits=4).spec
    decoded = ops.unpack(ops.pack(x, spec), *x.shape, x.dtype, spec)
    error = (decoded - x).abs()
    assert (error <= steps / 2 * (1 + 1e-5)).all() and (error.amax(1) > 0.45 * steps.amax(1)).any()
    spread = x[:, 64:128].amax(1) - x[:, 64:128].amin(1)
    assert (15 * steps[:, 64] >= spread).all() and (15 * steps[:, 64] <= 1.008 * spread).all()


def test_minibatch_noise_is_that_of_drawn_minibatches():
    a = activation(rows=400, features=6)
    draws = torch.stack(
        [(a.dy[i].t() @ a.x[i]) for i in torch.randint(400, (3000, 400), generator=torch.Generator())]
    )
    expected = (draws - a.dw).square().sum((1, 2)).mean() / a.dw.square().sum()
    assert variance.minibatch_noise([a]) == pytest.approx(float(expected), rel=0.1)


def test_rows_add_up_over_layers():
    a, b = activation(), activation(rows=30, features=64)
    sketch, keys = Sketch(0.25), [3, 5, 8]
    row = variance.variance_row(sketch, [a, b], keys)
    squares = [float(layer.dw.square().sum()) for layer in (a, b)]
    assert row.formula * sum(squares) == pytest.approx(sum(variance.formula(sketch, c) for c in (a, b)))
    packed = sum(saved_nbytes(*c.x.shape, c.x.dtype, sketch) for c in (a, b))
    assert row.bytes_per_value == packed / (a.x.numel() + b.x.numel())
    first = variance.measured(sketch, a, keys)
    assert row.by_layer[0][3] == pytest.approx(sum(first) / 3 / squares[0])
    assert variance.measured(sketch, a, keys) == first  # the keys decide


def test_activations_are_those_of_the_network():
    digits = standardised(load_digits_8x8())
    found = variance.trained_activations(digits, steps=2, batch=50)
    assert [a.name for a in found] == ["64->300", "300->300", "300->300", "300->10"]
    assert [tuple(a.x.shape) for a in found] == [(50, 64)] + [(50, 300)] * 3
    assert all(a.dy.shape == (50, int(a.name.split(">")[1])) and a.dy.abs().sum() > 0 for a in found)
    assert (found[1].x >= 0).all()
    torch.testing.assert_close(found[3].dy.sum(1), torch.zeros(50), atol=1e-6, rtol=0)  # softmax minus one
    again = variance.trained_activations(digits, steps=2, batch=50)
    assert all(torch.equal(a.dy, b.dy) for a, b in zip(found, again, strict=True))


def test_frontier_sketches_are_distinct_and_of_known_families():
    sketches = variance.frontier_sketches()
    assert len(set(sketches)) == len(sketches)
    families = list(dict.fromkeys(map(variance.family, sketches)))
    assert families[:7] == ["rows", "rows:norm", "same", "different", "tile_rows", "project", "dither alone"]
    assert {"rows + 2 bit", "different + 4 bit"} < set(families)


# the page


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("pages", ROOT / "benchmarks" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_frontier_page_shows_its_results(pages):
    page = (ROOT / "docs" / "frontier.md").read_text()
    report = Report.from_json((ROOT / "docs" / "results" / "frontier.json").read_text())
    assert pages.filled(page, report) == page, "run: python benchmarks/pages.py"


def test_a_changed_result_changes_the_page(pages):
    page = (ROOT / "docs" / "frontier.md").read_text()
    content = json.loads((ROOT / "docs" / "results" / "frontier.json").read_text())
    content["variances"][0]["measured"] = 123.0
    assert "| 123 |" in pages.filled(page, Report.from_json(json.dumps(content)))
    with pytest.raises(ValueError, match="no part between"):
        pages.filled("# a page\n", Report.from_json(json.dumps(content)))

"""The demo's parts, and the whole run once, small."""

import argparse
import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rad_kernels import Sketch
from rad_kernels.__main__ import main
from rad_kernels.data import Digits
from rad_kernels.demo.cli import choose_methods, data_and_config, parse_sketches
from rad_kernels.demo.console import runs_shown
from rad_kernels.demo.measure import costs, retained_bytes
from rad_kernels.demo.network import (
    build,
    exact,
    largest_batch_within,
    loss,
    predicted_bytes,
    sketched,
    small_batch,
    standardised,
)
from rad_kernels.demo.result import to_json
from rad_kernels.demo.table import COLUMNS, notes, table_cells
from rad_kernels.demo.train import Curve, minibatches, train


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As the demo itself: so small a network gains nothing from more, and tests run side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_digits(pixels=64, train_images=300, test_images=50):
    generator = torch.Generator().manual_seed(0)
    sizes = (train_images, test_images)
    images = [torch.randn(size, pixels, generator=generator) for size in sizes]
    labels = [torch.randint(10, (size,), generator=generator) for size in sizes]
    return Digits(images[0], labels[0], images[1], labels[1])


METHODS = [
    exact(150),
    small_batch(21, 0.1),
    *(sketched(150, Sketch(k, sampling)) for sampling in ("rows", "same", "different") for k in (0.1, 0.37)),
    sketched(33, Sketch(0.2, "same", "with_replacement")),
    sketched(150, Sketch(1, "rows")),
]


@pytest.mark.parametrize("pixels", [64, 784])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name}-{method.batch}")
def test_prediction_equals_measurement(method, pixels):
    assert retained_bytes(method, random_digits(pixels)) == predicted_bytes(method, pixels)


@pytest.mark.filterwarnings("ignore:sketch rows.0.95 would keep:rad_kernels.functional.SketchWarning")
def test_prediction_where_a_pack_is_not_worthwhile():
    method = sketched(150, Sketch(0.95, "rows"))
    assert retained_bytes(method, random_digits()) == predicted_bytes(method, 64)


def test_the_papers_network_at_keep_a_tenth():
    assert predicted_bytes(exact(150), 784) == 1_017_604
    for sampling in ("rows", "same", "different"):
        assert predicted_bytes(sketched(150, Sketch(0.1, sampling)), 784) <= 130_000


def test_learning_rates_are_the_published_ones():
    """For `rows` there is none; with keep = 1 a layer is exact."""
    sketches = (Sketch(1, "same"), Sketch(0.1, "same"), Sketch(0.1, "different"))
    rates = [method.learning_rate for method in (exact(150), *(sketched(150, sketch) for sketch in sketches))]
    assert rates == [1.35e-3, 1.35e-3, 4.52e-4, 9.34e-4]
    assert small_batch(20, 0.1).learning_rate == 6.45e-4


def test_build_gives_equal_weights_for_equal_seeds():
    weights = []
    for sketch in (None, Sketch(0.1, "rows"), Sketch(0.5, "different")):
        torch.manual_seed(3)
        weights.append(build(64, sketch).state_dict())
    for other in weights[1:]:
        assert list(other) == list(weights[0])
        assert all(torch.equal(other[name], weights[0][name]) for name in other)


def test_standardised_uses_the_training_statistics():
    digits = Digits(torch.rand(9, 4, 5), torch.zeros(9), torch.rand(3, 4, 5), torch.zeros(3))
    result = standardised(digits)
    assert result.train_images.shape == (9, 20) and result.test_images.shape == (3, 20)
    assert abs(result.train_images.mean()) < 1e-6 and abs(result.train_images.std() - 1) < 1e-6
    scale = digits.train_images.std()
    torch.testing.assert_close(
        result.test_images, (digits.test_images.flatten(1) - digits.train_images.mean()) / scale
    )


@pytest.mark.parametrize("limit, expected", [(0, 1), (7, 1), (21, 3), (27, 3), (28, 4), (10**6, 150)])
def test_largest_batch(limit, expected):
    assert largest_batch_within(limit, 150, lambda batch: 7 * batch) == expected


def test_small_batches_match_the_memory_of_their_sketches():
    digits = random_digits()
    methods = choose_methods(parse_sketches("rows:0.1,same:0.3,different:0.1", "0.5"), 150, digits)
    assert [method.memory_of_keep for method in methods] == [None, 0.1, None, None, 0.3, None]
    assert [str(method.sketch) for method in methods[2:4]] == ["rows:0.1", "different:0.1"]
    for keep in (0.1, 0.3):
        (small,) = (method for method in methods if method.memory_of_keep == keep)
        group = [method for method in methods if method.sketch and method.sketch.keep == keep]
        limit = max(retained_bytes(method, digits) for method in group)
        assert retained_bytes(small, digits) <= limit
        assert retained_bytes(dataclasses.replace(small, batch=small.batch + 1), digits) > limit


def test_a_small_batch_may_use_as_much_as_the_largest_of_its_sketches():
    # Of 55 rows a tenth is 6, rounded up, so `rows` keeps more than `different`.
    digits = random_digits()
    _, small, different, rows = choose_methods(parse_sketches("different,rows", "0.1"), 55, digits)
    assert retained_bytes(different, digits) < retained_bytes(small, digits) <= retained_bytes(rows, digits)


def test_epochs_are_passes_over_the_training_images():
    args = argparse.Namespace(data=None, batch=500, epochs=3, steps=7, seeds=1, seed=0)
    assert data_and_config(args)[1]["steps"] == 3 * (1442 // 500)
    args.epochs = None
    assert data_and_config(args)[1]["steps"] == 7


def test_parse_sketches():
    assert parse_sketches("rows, same:0.5:with_replacement", "0.2") == [
        Sketch(0.2, "rows"),
        Sketch(0.5, "same", "with_replacement"),
    ]
    for text in ("", "rows,", "diagonal", "rows:x", "rows:0.1:sorted", "rows,rows:0.1"):
        with pytest.raises(ValueError):
            parse_sketches(text, "0.1")


def test_minibatches_cover_each_epoch_without_repetition():
    batches = minibatches(10, 3, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(3)]).tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and epochs[0] != epochs[1]
    again = minibatches(10, 3, seed=0)
    assert torch.cat([next(again) for _ in range(3)]).tolist() == epochs[0]


def test_training_is_reproducible_and_methods_share_all_but_the_method():
    digits = random_digits()
    ticks = []

    def run(method, seed=0):
        return train(method, digits, 150, 40, seed, lambda: ticks.append(1))

    curve = run(exact(150))
    assert len(ticks) == 40 and curve.steps == list(range(2, 41, 2))
    assert curve.training_loss[-1] < 0.7 * curve.training_loss[0]
    assert run(exact(150)) == curve and run(exact(150), seed=1) != curve
    keep_all = dataclasses.replace(exact(150), sketch=Sketch(1, "rows"))
    assert run(keep_all) == curve  # same weights, same minibatches, exact layers: the same bits
    sampled = run(sketched(150, Sketch(0.3, "different")))
    assert sampled.training_loss != curve.training_loss and sampled == run(
        sketched(150, Sketch(0.3, "different"))
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_sets_weights_and_minibatches_and_a_small_batch_takes_the_first_images(monkeypatch, seed):
    digits, seen, weights = random_digits(), [], []

    def loss_seen(network, images, labels):
        if network.training:
            seen.append(images)
            weights.append(network[0].weight.detach().clone())
        return loss(network, images, labels)

    monkeypatch.setattr("rad_kernels.demo.train.loss", loss_seen)
    train(exact(4), digits, 150, 3, seed, lambda: None)
    for images, batch in zip(seen, minibatches(300, 150, seed)):
        assert torch.equal(images, digits.train_images[batch[:4]])
    assert len(seen) == 3
    torch.manual_seed(seed)
    assert torch.equal(weights[0], build(64, None)[0].weight)


def test_final_values_are_means_of_the_last_evaluations():
    curve = Curve(0, list(range(7)), [9, 9, 1, 2, 3, 4, 5], [0, 0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert curve.final_loss == 3 and curve.final_accuracy == pytest.approx(0.3)


def test_costs_are_measured():
    digits = random_digits()
    small, large = costs([exact(20), exact(150)], digits)
    assert small.retained < large.retained and small.peak < large.peak and 0 < small.time < 10
    # At the end of backward all gradients exist; the peak cannot be below them.
    assert small.peak >= sum(parameter.nbytes for parameter in build(64, None).parameters())


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """(exit code, directory) of a demo on the embedded digits."""
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    size = ["--steps", "12", "--seeds", "2", "--batch", "40"]
    return main(["demo", *size, "--sketches", "rows,different:0.3", "--keep", "0.2", "--out", str(out)]), out


def test_whole_run(run_once):
    code, out = run_once
    assert code == 0
    content = json.loads((out / "demo.json").read_text())
    methods = [row["method"] for row in content["rows"]]
    assert methods[0] == "exact" and methods[2] == "rows:0.2" and methods[4] == "different:0.3"
    assert [row["batch"] for row in content["rows"]][::2] == [40, 40, 40]
    assert list(content["curves"]) == methods
    for row in content["rows"]:
        assert row["retained_bytes"] == row["predicted_bytes"]
        assert len(row["test_accuracy_by_seed"]) == len(content["curves"][row["method"]]) == 2
        assert 0 <= row["test_accuracy"] <= 1 and row["step_peak_bytes"] > row["retained_bytes"] / 2
    assert content["config"]["network"] == "64-300-300-300-10" and content["config"]["steps"] == 12
    assert content["environment"]["torch"] == torch.__version__
    assert str(Path.home()) not in (out / "demo.json").read_text()
    header = (out / "demo.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(header[16:20]) > 1000


def test_table_and_notes(run_once):
    content = json.loads((run_once[1] / "demo.json").read_text())
    cells = table_cells(content)
    assert len(cells) == 5 and all(len(row) == len(COLUMNS) for row in cells)
    exact_row = dict(zip(COLUMNS, cells[0], strict=True))
    # 64 + 3 * 300 floats, 10 log-probabilities and a label an image, and the sum of the label weights.
    assert (
        exact_row["kept for backward, bytes"]
        == f"{40 * (964 * 4 + 40 + 8) + 4:,}"
        == exact_row["by formula, bytes"]
    )
    assert exact_row["of exact"] == "1.000"
    assert all(0 < float(row[COLUMNS.index("of exact")]) < 0.6 for row in cells[1:])
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", exact_row["test accuracy, %"])
    comparisons = [note for note in notes(content) if " in the same memory: " in note]
    assert [note.split(" against ")[0] for note in comparisons] == ["rows:0.2", "different:0.3"]


def test_comparison_is_paired_by_seed(run_once):
    content = json.loads((run_once[1] / "demo.json").read_text())
    small, rows = content["rows"][1:3]
    small["test_accuracy_by_seed"], rows["test_accuracy_by_seed"] = [0.5, 0.6], [0.53, 0.65]
    small["training_loss"], rows["training_loss"] = 0.25, 0.125
    expected = (
        f"rows:0.2 against batch {small['batch']} in the same memory: +4.00 ± 1.00 points of test accuracy, "
        "training loss 0.125 against 0.25."
    )
    assert expected in notes(content)


def test_json_keeps_numbers_on_one_line():
    content = {"a": [1, -2.5, 3e-7], "b": [{"c": [1]}, {"c": []}], "d": ["x, 1", "y"]}
    text = to_json(content)
    assert json.loads(text) == content
    assert '"a": [1, -2.5, 3e-07]' in text and '"c": [1]' in text


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal):
    written = io.StringIO()
    shown = Console(file=written, force_terminal=terminal, width=100)
    with runs_shown(shown, runs=2, steps=3) as runs:
        for name in ("exact, seed 0", "rows:0.1, seed 0"):
            advance = runs.start(name)
            for _ in range(3):
                advance()
    text = written.getvalue()
    if terminal:
        assert "rows:0.1, seed 0" in text and "━" in text and "\x1b[" in text
    else:
        assert text == "training 1/2: exact, seed 0\ntraining 2/2: rows:0.1, seed 0\n"

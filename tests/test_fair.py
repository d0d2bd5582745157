"""`reproduce fair`: each way's gradients and bytes, equal bytes, isolation, going on, and what is said."""

import gc
import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from rad_kernels import Sketch, official
from rad_kernels.__main__ import main
from rad_kernels.data import Digits
from rad_kernels.memory import saved_bytes, step_peak
from rad_kernels.official import OfficialConv2d, OfficialLinear
from rad_kernels.reproduce._runs import Store
from rad_kernels.reproduce.fair import case, cli, table
from rad_kernels.reproduce.fair.case import Plan, Run
from rad_kernels.reproduce.fair.methods import (
    CHECKPOINT,
    EXACT,
    OFFICIAL,
    OFFLOAD,
    OURS,
    SKETCHES,
    Method,
    budget,
    build,
    largest,
    loss,
    methods,
    moved,
    quick_meter,
    retained,
)
from rad_kernels.reproduce.fair.presets import PLANS
from rad_kernels.reproduce.tasks import TASKS

FC, CNN = TASKS["fc"], TASKS["cnn"]
DIFFERENT = Sketch(0.1, "different", "with_replacement")
PLAN = Plan(batch=40, steps=4, seconds=0.07, rates=(1e-3,), seeds=1, points=2, evaluated=50, rounds=2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """As each case itself."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(values=64, images=200):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(images, values, generator=generator)
    labels = torch.randint(10, (images,), generator=generator)
    return Digits(data, labels, data[:60], labels[:60])


SMALL, COLOURED = noise(), noise(3 * 32 * 32, 12)


def gradients(task, method, digits):
    torch.manual_seed(5)
    network = build(task, method, digits.train_images.shape[1])
    count = method.batch
    loss(task, method, network, digits.train_images[:count], digits.train_labels[:count]).backward()
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("task, digits, batch", [(FC, SMALL, 40), (CNN, COLOURED, 4)], ids=["fc", "cnn"])
def test_exact_ways_have_equal_gradients(task, digits, batch):
    exact = gradients(task, Method("", EXACT, batch), digits)
    for way in (CHECKPOINT, OFFLOAD):
        assert all(map(torch.equal, gradients(task, Method("", way, batch), digits), exact))


@pytest.mark.parametrize("task, digits, batch", [(FC, SMALL, 40), (CNN, COLOURED, 4)], ids=["fc", "cnn"])
def test_sampled_ways_share_the_exact_weights_and_last_bias(task, digits, batch):
    """A bias does not depend on the sample; weights do."""
    exact = gradients(task, Method("", EXACT, batch), digits)
    for way, sketch in ((OFFICIAL, DIFFERENT), (OURS, Sketch(0.1, "different")), (OURS, Sketch(0.7, bits=4))):
        found = gradients(task, Method("", way, batch, sketch), digits)
        torch.testing.assert_close(found[-1], exact[-1])
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in exact]
        assert not torch.allclose(found[-2], exact[-2])


def test_what_each_way_retains():
    """By hand: 64 inputs, hidden 300 three times; the loss keeps log p, labels and a weight."""
    batch = 40
    of_loss = batch * 10 * 4 + batch * 8 + 4
    inputs, hidden = batch * 64 * 4, 3 * batch * 300 * 4

    def bytes_of(way, sketch=None):
        return retained(FC, Method("", way, batch, sketch), SMALL)

    assert bytes_of(EXACT) == bytes_of(OFFLOAD) == inputs + hidden + of_loss
    assert bytes_of(CHECKPOINT) == inputs + of_loss
    samples = batch * 4 * (7 + 3 * 30)
    assert bytes_of(OFFICIAL, DIFFERENT) == samples + hidden + of_loss
    weights = 4 * (300 * 300 * 2 + 300 * 10)  # dx of the first layer is not needed
    twice = hidden + batch * 10 * 4  # by a ReLU and the Linear after it; by log-softmax and the loss
    assert moved(FC, Method("", OFFLOAD, batch), SMALL) == inputs + hidden + of_loss + weights + twice


def test_saving_on_a_cpu_keeps_the_same_storage():
    """What the page says: nothing moves where there is no other device."""
    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.save_on_cpu():
        y = x.exp()
    assert y.grad_fn._saved_result.data_ptr() == y.data_ptr()


def test_methods_within_the_bytes_are_the_largest():
    allowed = budget(FC, 40, SMALL)
    found = methods(FC, 40, SMALL, allowed)
    assert gc.get_freeze_count() == 0
    assert [m.way for m in found[:4]] == [EXACT, CHECKPOINT, OFFLOAD, OFFICIAL]
    assert allowed == retained(FC, Method("", OURS, 40, Sketch(0.1, "different")), SMALL)
    within = found[4:]
    assert {m.way for m in within} == {EXACT, OFFICIAL, OURS}  # a checkpoint of the whole batch fits as it is
    with quick_meter():
        for method in within:
            assert retained(FC, method, SMALL) <= allowed
            if method.way != OURS:
                assert method.name.endswith(f"batch {method.batch}") and method.batch < 40
                assert retained(FC, replace(method, batch=method.batch + 1), SMALL) > allowed
            elif method.sketch.keep < 1:
                larger = Sketch(method.sketch.keep + 0.001, method.sketch.sampling, bits=method.sketch.bits)
                kept = retained(FC, replace(method, sketch=larger), SMALL)
                assert kept > allowed or larger.kept(40) == method.sketch.kept(40)
    assert [(m.sketch.sampling, m.sketch.bits) for m in within if m.way == OURS] == list(SKETCHES)
    assert all(Method.from_dict(json.loads(json.dumps(m.to_dict()))) == m for m in found)


def test_the_largest_that_fits():
    """Of straight lines and of stairs, and without looking at too many."""
    for most, step, allowed in itertools.product((1, 7, 1000), (1, 13, 90), (100, 999, 1500, 99_999)):
        asked = []

        def size(n, step=step, asked=asked):
            asked.append(n)
            return 100 + n // step * step

        fitting = [n for n in range(1, most + 1) if 100 + n // step * step <= allowed]
        if fitting:
            assert largest(most, size, allowed, "keep") == fitting[-1] and len(asked) <= 20
    with pytest.raises(ValueError, match="rows: keep: even the smallest needs 100 bytes of the allowed 99"):
        largest(10, lambda n: 100, 99, "rows: keep")


@pytest.mark.parametrize("different", [False, True])
def test_official_convolution_by_enumeration(different, monkeypatch):
    """One pixel of 2x3 kept: the mean over all choices of an index, or of one a row, is exact."""
    channels, pixels = 2, 6
    layer = OfficialConv2d(channels, 3, 3, 1 / pixels, different, padding=1).double()
    x = torch.randn(1, channels, 2, 3, dtype=torch.float64, requires_grad=True)
    dy = torch.randn(1, 3, 2, 3, dtype=torch.float64)
    exact = torch.autograd.grad(F.conv2d(x, layer.weight, layer.bias, padding=1), (x, layer.weight), dy)
    choices = (
        itertools.product(range(pixels), repeat=channels) if different else ((p,) for p in range(pixels))
    )
    total, count = torch.zeros_like(layer.weight), 0
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape, device=device).double())
    for choice in choices:
        index = torch.tensor(choice)[:, None] if different else torch.tensor(choice)
        monkeypatch.setattr(official, "_indices", lambda *_, index=index: index)
        dx, dw = torch.autograd.grad(layer(x), (x, layer.weight), dy)
        torch.testing.assert_close(dx, exact[0])
        total, count = total + dw, count + 1
    assert count == (pixels**channels if different else pixels)
    torch.testing.assert_close(total / count, exact[1])


def test_official_layers_draw_as_many_as_they_say():
    x = torch.randn(3, 2, 4, 5)
    conv, linear = OfficialConv2d(2, 3, 3, 0.24, True), OfficialLinear(10, 3, 0.31, False)
    assert saved_bytes(lambda: conv(x)).total == 3 * 2 * 5 * 4  # ceil(.24 * 20) of each image and channel
    assert saved_bytes(lambda: linear(torch.randn(7, 10))).total == 7 * 4 * 4


@pytest.fixture
def clock(monkeypatch):
    """Every update takes 10 ms of processor time."""
    ticks = itertools.count()
    monkeypatch.setattr(case.time, "process_time", lambda: next(ticks) * 0.01)


def test_a_run_reaches_both_ends(clock):
    run = case.train(FC, Method("", EXACT, 20), PLAN, SMALL, 0, 1e-3)
    assert run.steps == [2, 4, 7] and run.at_steps[:2] == (4, 0.04)
    assert run.at_seconds[:2] == (7, 0.07) and run.at_seconds[2] == run.loss[-1]
    again = case.train(FC, Method("", CHECKPOINT, 20), PLAN, SMALL, 0, 1e-3)
    assert again.loss == run.loss  # the same weights and images
    assert case.train(FC, Method("", EXACT, 20), PLAN, SMALL, 1, 1e-3).loss != run.loss
    short = case.train(FC, Method("", EXACT, 20), replace(PLAN, seconds=0.02), SMALL, 0, 1e-3)
    assert short.steps == [1, 2, 4] and short.at_seconds[0] == 2 and short.at_steps[2] == run.at_steps[2]


def test_a_run_that_diverges_ends(clock):
    run = case.train(FC, Method("", EXACT, 20), PLAN, SMALL, 0, 1e30)
    assert run.at_steps is None and run.at_seconds is None
    pilots = [Run(0, 1.0), Run(0, 2.0, at_steps=(4, 1, 0.5, 0)), Run(0, 3.0, at_steps=(4, 1, 0.4, 0))]
    assert case._best(pilots, "at_steps") == 3 and case._best(pilots, "at_seconds") == 1


def test_a_case_is_measured_whole(clock):
    found = case.measure(FC, Method("x", OFFLOAD, 20), replace(PLAN, rates=(1e-3, 1e30), seeds=2), SMALL)
    assert found["rates"] == {"at_steps": 1e-3, "at_seconds": 1e-3}
    assert [run["seed"] for run in found["runs"]] == [0, 1] and found["pilots"][1]["at_steps"] is None
    assert found["moved_bytes"] > found["retained_bytes"] > 0 and found["step_processor_s"] == 0.01
    json.dumps(found, allow_nan=False)


def test_the_command_and_its_isolation(monkeypatch, tmp_path, capsys):
    """Two processes; the second's figures are those of a process that no other case went before."""
    monkeypatch.setattr(cli, "one_of_each", lambda found: [found[0], found[4]])
    order = ["reproduce", "fair", "--out", str(tmp_path)]
    assert main(order) == 0
    path = tmp_path / "fair-fc-ci.json"
    content = json.loads(path.read_text())
    assert path.with_suffix(".png").stat().st_size > 10_000 and not list(tmp_path.rglob("*.part"))
    said = capsys.readouterr().out
    assert "training 2/2" in said and "After 20 updates" not in said  # no sketch took part
    exact, small = content["rows"]
    assert exact["retained_bytes"] > content["allowed_bytes"] >= small["retained_bytes"]
    assert small["step_peak_bytes"] < exact["step_peak_bytes"]

    images = torch.randn(200, 64)
    digits = Digits(images, torch.zeros(200).long(), images, torch.zeros(200).long())
    method = Method.from_dict(small["method"])
    alone = case.step_cost(FC, method, replace(PLAN, rounds=1), digits)
    assert alone["step_peak_bytes"] == small["step_peak_bytes"]
    assert retained(FC, method, digits) == small["retained_bytes"]

    def must_not_run(*_):
        raise AssertionError("done before")

    monkeypatch.setattr(cli, "isolated", must_not_run)
    path.unlink()
    assert main(order) == 0
    assert json.loads(path.read_text())["rows"] == content["rows"]


def test_going_on_after_an_interruption(monkeypatch, tmp_path):
    asked = [Method(name, EXACT, 20) for name in ("a", "b")]
    log = []

    def run(order, folder, broken=()):
        log.append(order["method"]["name"])
        if order["method"]["name"] in broken:
            raise KeyboardInterrupt
        assert Digits(*torch.load(order["data"])).train_images.equal(SMALL.train_images)
        return {"name": order["method"]["name"], "rates": order["plan"]["rates"]}

    def measured(plan=PLAN):
        return cli.measured(FC, asked, plan, SMALL, Store(tmp_path), lambda name: lambda: None)

    monkeypatch.setattr(cli, "isolated", lambda order, folder: run(order, folder, broken=("b",)))
    with pytest.raises(KeyboardInterrupt):
        measured()
    monkeypatch.setattr(cli, "isolated", run)
    assert [row["name"] for row in measured()] == ["a", "b"]
    assert log == ["a", "b", "b"]
    assert [row["rates"] for row in measured(replace(PLAN, rates=(1.0, 2.0)))] == [(1, 2), (1, 2)]
    assert log == ["a", "b", "b", "a", "b"]  # other settings are other work


def test_a_process_that_fails_is_told(tmp_path, monkeypatch, capsys):
    order = {"task": "nothing", "method": Method("x", EXACT, 1).to_dict(), "plan": asdict(PLAN), "data": "no"}
    with pytest.raises(cli.CaseFailed, match=r"(?s)x ended with 1:.*No such file"):
        cli.isolated(order, tmp_path)

    def fail(*_):
        raise cli.CaseFailed("exact ended with -9:\nkilled")

    monkeypatch.setattr(cli, "isolated", fail)
    monkeypatch.setattr(cli, "methods", lambda *_: [Method("exact", EXACT, 150)])
    assert main(["reproduce", "fair", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "exact ended with -9:\nkilled\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "large"], "invalid choice: 'large'"),
        (["--networks", "cnn"], "networks of preset ci must be of fc, got 'cnn'"),
        (["--preset", "desk", "--networks", "fc"], "--data must name a folder that holds MNIST"),
        (["--preset", "desk", "--networks", "fc", "--data", "nowhere"], "looked in nowhere"),
        (["--preset", "desk", "--networks", "cnn", "--data", "nowhere"], "nowhere is not a directory"),
    ],
)
def test_wrong_arguments_end_in_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "fair", "--out", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_presets():
    """Every evaluation point is a step of its own, batches fit, and desk is a small part of paper."""
    for plans in PLANS.values():
        for plan in plans.values():
            assert plan.points <= plan.steps and plan.batch == 150 and plan.seconds > 0 and plan.seeds >= 1
            assert plan.seeds == 1 or plan.seeds - 1 in table.T95
    assert list(PLANS["desk"]) == list(PLANS["paper"]) == ["fc", "cnn"]
    assert all(PLANS["desk"][name].steps < PLANS["paper"][name].steps for name in PLANS["desk"])


def result(name, way, retained_bytes, losses, late=None, rates=(1.0, 1.0)):
    """A row whose seeds ended with these losses."""
    late = losses if late is None else late
    return {
        "method": {"name": name, "way": way, "batch": 150, "sketch": None},
        "retained_bytes": retained_bytes,
        "moved_bytes": 3_000_000 if way == OFFLOAD else 0,
        "step_peak_bytes": 2_000_000,
        "step_processor_s": 0.002,
        "rates": dict(zip(("at_steps", "at_seconds"), rates)),
        "runs": [
            {
                "rate": rate,
                "at_steps": end and (10, 0.5, end, 0.5),
                "at_seconds": last and (99, 2.0, last, 0.75),
            }
            for rate in dict.fromkeys(rates)
            for end, last in zip(losses, late)
        ],
        "environment": {"load": [1.0, 2.5]},
    }


def compared(*rows):
    plan = Plan(150, 10, 2.0, (0.5, 1.0, 2.0), 2, 2, 50, 2)
    return {
        "title": "net",
        "data": "digits",
        "images": [500, 50],
        "plan": asdict(plan),
        "allowed_bytes": 1000,
        "rows": [result("exact", EXACT, 9000, [0.4, 0.5]), *rows],
    }


def test_the_table_and_what_is_found():
    content = compared(
        result("exact, batch 9", EXACT, 990, [1.0, 1.1], rates=(1.0, 2.0)),
        result("checkpoint", CHECKPOINT, 2000, [0.4, 0.5]),  # beyond the budget: no rival
        result("save_on_cpu", OFFLOAD, 9000, [0.4, 0.5]),
        result("rows:0.1", OURS, 1000, [0.8, 0.9], late=[2.0, 2.1]),
        result("rows:1.0:2bit", OURS, 900, [0.7, 1.5], late=[None, 2.0]),
    )
    assert {len(line) for line in table.cells(content)} == {len(table.columns(content))}
    exact, small, *_, ours, coded = table.cells(content)
    assert exact[2:4] == ("9,000", "9.00") and small[6:9] == ("1.050 ± 0.071", "50.0", "99")
    assert ours[9:] == ("2.050 ± 0.071", "75.0") and coded[8:] == ("diverged",) * 3
    said = table.findings(content)
    assert said[0] == (
        "After 10 updates, loss against exact, batch 9: rows:0.1 -0.200 ± 0.000 (better); "
        "rows:1.0:2bit +0.050 ± 0.350 (no clear difference)."
    )
    assert said[1].startswith(
        "After 2 s of updates, loss against exact, batch 9: rows:0.1 +1.000 ± 0.000 (worse)"
    )
    assert "cannot be compared" in said[1] and "3.00 MB" in said[2] and "rows:0.1 0.11, 1.00, 1.00" in said[3]
    assert "the whole batch: exact with 2.00 MB" in said[4] and len(said) == 5
    edges = [note for note in table.notes(content) if note.startswith("The best rate")]
    assert edges == ["The best rate is the least or the greatest for exact, batch 9: a wider grid may help."]


def test_step_peak_of_a_case_is_that_of_the_meter():
    """The figure is the project's meter's around one step that makes its own batch."""
    method = Method("", EXACT, 20)
    network = build(FC, method, 64)

    def step():
        loss(FC, method, network, SMALL.train_images[:20].clone(), SMALL.train_labels[:20]).backward()

    assert case.step_cost(FC, method, PLAN, SMALL)["step_peak_bytes"] == step_peak(step)

"""The paper's training curves: equal bytes and minibatches, resumed runs, and what is said of them."""

import json

import pytest
import torch

from rad_kernels import Sketch
from rad_kernels.__main__ import main
from rad_kernels.reproduce import curves, curves_plot, findings, methods, training
from rad_kernels.reproduce._runs import Store, write_json
from rad_kernels.reproduce.methods import Method
from rad_kernels.reproduce.tasks import TASKS, Preset, samples

TINY = Preset(iterations=3, pilot=1, seeds=2, batch=100, real=False, evaluated=50)
FC = TASKS["fc"]
DIGITS = samples(FC, TINY, None)


# storing


def test_a_piece_is_done_once_for_the_same_settings(tmp_path):
    done, store = [], Store(tmp_path / "new")
    for settings in ({"rate": 0.1}, {"rate": 0.1}, {"rate": 0.2}, {"rate": 0.1}):
        assert store.get("a b/c", settings, lambda: done.append(1) or len(done)) == len(done)
    assert len(done) == 3  # only the second was there: one file a name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a_b_c.json"]


def test_nothing_is_stored_of_a_piece_that_failed(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.get("piece", {}, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == [] and store.find("piece", {}) is None


def test_a_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert json.loads(path.read_text()) == [1]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "piece.json").write_text("{")
    with pytest.raises(ValueError, match=r"piece\.json: damaged"):
        Store(tmp_path).find("piece", {})


# methods


def test_published_methods_are_as_published():
    found = {method.name: method for method in methods.methods(FC, FC.presets["ci"], DIGITS)}
    assert found["paper: same"].sketch == Sketch(0.1, "same", "with_replacement")
    assert found["paper: different"].sketch == Sketch(0.1, "different", "with_replacement")
    assert found["paper: project"].sketch == Sketch(0.1, "project")
    assert (found["exact"].rates, found["exact, batch 20"].rates) == ((1.35e-3,), (6.45e-4,))
    assert found["paper: different"].rates == (9.34e-4,)


def test_measuring_bytes_leaves_the_generator_alone():
    before = torch.get_rng_state()
    methods.retained(FC, Method("", "ours", 50, Sketch(0.1), ()), DIGITS)
    assert torch.equal(torch.get_rng_state(), before)


# training


def train(method, rate=1e-3, seed=0, iterations=3):
    return training.train(FC, method, rate, TINY, DIGITS, seed, iterations, lambda: None)


def test_runs_repeat_and_seeds_differ():
    method = Method("rows", "ours", 100, Sketch(0.1), ())
    first, again, other = train(method), train(method), train(method, seed=1)
    assert first["training_loss"] == again["training_loss"] != other["training_loss"]
    assert first["steps"] == [1, 2, 3] and len(first["accuracy"]) == 3
    assert all(a <= b for a, b in zip(first["cpu_s"], first["cpu_s"][1:]))


def test_a_smaller_batch_takes_the_first_images_of_the_same_minibatches():
    """A batch of 100 whose loss sees its first 20 images trains as one of 20 does."""
    small = train(Method("small", "exact", 20, None, ()))
    indices = next(training.minibatches(len(DIGITS.train_images), TINY.batch, 0))
    torch.manual_seed(0)
    network = methods.build(FC, Method("", "exact", 20, None, ()), 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    chosen = indices[:20]
    methods.loss(FC, network, DIGITS.train_images[chosen], DIGITS.train_labels[chosen]).backward()
    optimizer.step()
    with torch.inference_mode():
        images, labels = DIGITS.train_images[:50], DIGITS.train_labels[:50]
        assert small["training_loss"][0] == pytest.approx(
            methods.loss(FC, network, images, labels).item(), abs=1e-6
        )


def test_a_run_that_diverges_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "methods", lambda *_: [Method("exact", "exact", 100, None, (1e30,)), *MORE])
    monkeypatch.setattr(curves, "methods", methods.methods)
    monkeypatch.setitem(FC.presets, "ci", TINY)
    content = curves.run(FC, "ci", None, tmp_path, quiet)
    assert content["rows"][0]["runs"][0]["training_loss"][-1] is None
    assert findings.table(content)[1][4] == "diverged"
    assert any("a run diverged" in sentence for sentence in findings.sentences(content))
    curves_plot.draw(content, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


MORE = [
    Method("exact, batch 13", "exact", 13, None, (1e-3,)),
    Method("paper: different", "paper", 100, Sketch(0.1, "different"), (1e-3,)),
    Method("rows:0.1", "ours", 100, Sketch(0.1), (1e-4, 1e-3)),
]


class quiet:
    """No progress."""

    def __init__(self, runs, updates):
        self.runs, self.updates, self.names = runs, updates, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def start(self, name):
        self.names.append(name)
        return lambda: None


def test_an_interrupted_task_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(curves, "methods", lambda *_: [Method("exact", "exact", 100, None, (1e-3,)), *MORE])
    monkeypatch.setitem(FC.presets, "ci", TINY)
    real, names, limit = training.train, [], [3]

    def interrupted(task, method, *rest):
        if len(names) == limit[0]:
            raise KeyboardInterrupt
        names.append(method.name)
        return real(task, method, *rest)

    monkeypatch.setattr(curves, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curves.run(FC, "ci", None, tmp_path, quiet)
    assert len(names) == 3
    limit[0] = 100
    content = curves.run(FC, "ci", None, tmp_path, quiet)
    assert len(names) == 4 * 2 + 2  # each run and pilot once
    again = curves.run(FC, "ci", None, tmp_path, quiet)
    assert len(names) == 10 and again["rows"] == content["rows"]
    best = content["rows"][3]
    assert list(best["pilots"]) == ["0.0001", "0.001"]
    assert f"{best['rate']:g}" == min(best["pilots"], key=best["pilots"].get)


# findings


def content_of(**losses):
    """Rows with one evaluation a seed."""
    kinds = {"exact": "exact", "exact, batch 20": "exact", "paper: different": "paper", "rows:0.1": "ours"}

    def run(loss):
        return {"steps": [1], "training_loss": [loss], "accuracy": [0.5], "wall_s": [1.0], "cpu_s": [1.0]}

    rows = [
        {
            "name": name,
            "kind": kind,
            "batch": 100,
            "sketch": None,
            "rate": 1e-3,
            "pilots": {},
            "retained_bytes": 100,
            "runs": [run(loss) for loss in losses[kind if kind != "exact" else name.split(",")[-1].strip()]],
        }
        for name, kind in kinds.items()
    ]
    return {"rows": rows, "title": "t", "data": "d", "settings": {"batch": 100, "iterations": 1}}


def test_sentences_follow_the_figures():
    content = content_of(**{"exact": [1, 1.5], "batch 20": [3, 3], "paper": [2, 4], "ours": [1.5, 1.75]})
    small, paper, exact = findings.sentences(content)
    assert small.startswith(
        "paper: different ends higher than exact, batch 20: training loss 3.0000 against 3"
    )
    assert small.endswith(", on the mean of 2 seeds.")
    assert paper.startswith("rows:0.1 ends lower than paper: different: training loss 1.6250 against 3.0000,")
    assert exact.startswith("rows:0.1 ends higher than exact: training loss 1.6250 against 1.2500,")
    assert paper.endswith(", with each of 2 seeds.") and exact.endswith(", with each of 2 seeds.")
    one = content_of(**{"exact": [1], "batch 20": [3], "paper": [2], "ours": [None]})
    assert findings.sentences(one)[0].endswith("2.0000 against 3.0000, with the one seed.")
    assert findings.sentences(one)[1] == "rows:0.1 against paper: different: a run diverged."


# command line


@pytest.mark.parametrize("name", TASKS)
def test_the_smallest_preset_of_each_figure(name, tmp_path, capsys):
    """It ends with its files, and ours keep no more than the paper's different, but would with a hundredth
    more of the activations."""
    assert main(["reproduce", name, "--preset", "ci", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / f"{name}-ci.json").read_text())
    assert content["data"] == "8x8 digits" and all(row["name"] in out for row in content["rows"])
    assert (tmp_path / "out" / f"{name}-ci.png").read_bytes().startswith(b"\x89PNG")
    task = TASKS[name]
    digits = samples(task, task.presets["ci"], None)
    rows = {row["name"]: row for row in content["rows"]}
    allowed = rows["paper: different"]["retained_bytes"]
    ours = [row for row in rows.values() if row["kind"] == "ours"]
    assert len(ours) == 6
    for row in ours:
        assert row["retained_bytes"] <= allowed
        sketch = Sketch.parse(row["sketch"])
        if (keep := round(sketch.keep * 100)) < 100:
            more = Sketch((keep + 1) / 100, sketch.sampling, bits=sketch.bits)
            larger = Method("", "ours", row["batch"], more, ())
            assert methods.retained(task, larger, digits) > allowed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["fc", "--preset", "desk"], "--data must name a folder that holds MNIST"),
        (["cnn", "--preset", "desk"], "--data must name a folder that holds CIFAR-10"),
        (["fc", "--preset", "desk", "--data", "nowhere"], "missing train-images"),
        (["cnn", "--preset", "desk", "--data", "nowhere"], "CIFAR-10: nowhere is not a directory"),
        (["rnn", "--preset", "all"], "invalid choice"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reproduce", *arguments])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err

"""The benchmarks' logic on fake providers and tiny shapes: what is timed, counted, written and refused."""

import json

import pytest
import torch

from rad_kernels import Sketch
from rad_kernels.__main__ import main
from rad_kernels.bench import cli, console, goals, model, plot, roofline, runner
from rad_kernels.bench.cases import BlockCase, ConvCase, LinearCase, MatrixCase
from rad_kernels.bench.goals import Goal, Measure
from rad_kernels.bench.limits import (
    Limits,
    Work,
    exact_linear,
    measured_limits,
    packing,
    sketched_linear,
    weight_gradient,
)
from rad_kernels.bench.result import Report, Row, environment
from rad_kernels.bench.timing import Rounds, Step, interleaved, quantile, summarise, wall_clock
from rad_kernels.bench.trial import Setting, Subject, Trial
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
FEW = Rounds(seconds=0.0, least=2, most=4, warm_up=1)


# timing


class Script:
    """Steps that note when they are prepared and run, and a clock that returns given times."""

    def __init__(self, **seconds):
        self.calls, self.seconds = [], {name: iter(times) for name, times in seconds.items()}
        self.steps = {
            name: Step(
                lambda name=name: self.calls.append(("prepare", name)),
                lambda name=name: self.calls.append(("run", name)) or name,
            )
            for name in seconds
        }

    def clock(self, run):
        return next(self.seconds[run()])


def test_steps_take_turns_and_the_order_alternates():
    script = Script(a=[9, 1, 2], b=[9, 3, 4])
    times = interleaved(script.steps, script.clock, Rounds(0.0, least=2, most=2, warm_up=1))
    assert times == {"a": [1, 2], "b": [3, 4]}  # the warm-up's 9 does not count
    assert [name for kind, name in script.calls if kind == "run"] == ["a", "b", "a", "b", "b", "a"]
    assert script.calls[::2] == [("prepare", name) for _, name in script.calls[1::2]]


@pytest.mark.parametrize("seconds, count", [(1e-9, 50), (0.1, 20), (0.5, 4), (100.0, 3)])
def test_rounds_fit_the_budget_within_bounds(seconds, count):
    assert Rounds(seconds=2.0, least=3, most=50).count(seconds) == count


def test_garbage_collection_is_off_while_timing_and_restored():
    import gc

    seen = []
    steps = {"a": Step(lambda: None, lambda: seen.append(gc.isenabled()))}
    interleaved(steps, wall_clock, FEW)
    assert seen == [False] * 3 and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": Step(lambda: None, lambda: 1 / 0)}, wall_clock, FEW)
    assert gc.isenabled()


def test_ratios_pair_times_of_one_round():
    # Two rounds hit the baseline alone: the medians are equal, but mine takes twice as long.
    timing = summarise({"torch": [1, 2, 30, 4, 50], "mine": [2, 4, 3, 8, 5]})["mine"]
    assert timing.ratio == 2 and timing.ratio_minimum == 2
    assert (timing.median, timing.minimum, timing.rounds) == (4, 2, 5)


def test_quantile_interpolates():
    values = [3.0, 1.0, 2.0, 10.0]
    for q in (0.0, 0.2, 0.5, 0.8, 1.0):
        assert quantile(values, q) == pytest.approx(torch.tensor(values).quantile(q).item())


# limits


@pytest.mark.parametrize("sampling", ["rows", "same", "different", "tile_rows"])
def test_floor_of_a_large_layer_is_that_of_its_products(sampling):
    case = LinearCase(10_000, 10_000, 10_000)
    quotient = sketched_linear(case, torch.float32, Sketch(0.1, sampling)).flops
    assert quotient / exact_linear(case, torch.float32).flops == pytest.approx((4 + 2 * 0.1) / 6)


def test_work_of_a_pack_and_of_a_weight_gradient():
    case, sketch = LinearCase(100, 256, 50), Sketch(0.1, bits=4)
    kept = saved_nbytes(100, 256, torch.float32, sketch)
    assert packing(case, torch.float32, sketch) == Work(0.0, 10 * 256 * 4 + kept)
    assert weight_gradient(case, torch.float32, None) == Work(
        2.0 * 100 * 256 * 50, 4.0 * (25600 + 5000 + 12800)
    )
    assert weight_gradient(case, torch.float32, sketch) == Work(2.0 * 10 * 256 * 50, 4 * (500 + 12800) + kept)


def test_limit_is_the_slower_of_arithmetic_and_memory():
    limits = Limits(flops_per_s=100.0, bytes_per_s=10.0)
    assert limits.seconds(Work(500, 20)) == 5 and limits.seconds(Work(500, 90)) == 9


def test_limits_are_measured_with_the_given_clock():
    seconds = iter([1.0] * 6 + [2.0] * 100)  # the warm-up's faster times do not count

    def clock(run):
        run()
        return next(seconds)

    found = measured_limits(CPU, torch.float32, clock, quick=True)
    assert (found.flops_per_s, found.bytes_per_s) == (2 * 384**3 / 2, 2 * 2**26 / 2)


# rows


def fake_trial():
    """A slow baseline and a provider at half its time and work, which keeps one tensor of 12 bytes."""
    x = torch.ones(3, requires_grad=True)
    script = Script(slow=[8] * 9, fast=[4] * 9)
    subjects = {
        "slow": Subject(script.steps["slow"], None, Work(200, 0)),
        "fast": Subject(script.steps["fast"], lambda: x.exp(), Work(100, 0)),
    }
    return Trial("linear", "fake", subjects), script.clock


def test_rows_of_a_trial():
    trial, clock = fake_trial()
    slow, fast = runner.measured(trial, SETTING, clock, FEW, Limits(100.0, 1.0))
    assert (slow.ratio, slow.floor, slow.to_limit, slow.retained) == (1, 1, 4, None)
    assert (fast.ratio, fast.floor, fast.to_limit, fast.retained, fast.peak) == (0.5, 0.5, 4, 12, 0)
    assert (fast.suite, fast.case, fast.provider, fast.dtype) == ("linear", "fake", "fast", "float32")


# report


def row(**changes):
    return Row(**{**dict.fromkeys(("suite", "case", "provider", "dtype"), "x"), **NUMBERS, **changes})


NUMBERS = dict(median=0.25, p20=0.125, p80=0.5, minimum=0.0625, rounds=9, ratio=0.75, ratio_minimum=0.5)


def report(**changes):
    return Report(
        environment(CPU), {"clock": "wall"}, {"float32": {"flops_per_s": 1e9, "bytes_per_s": 1e9}}, **changes
    )


@pytest.mark.parametrize(
    "rows", [(), (row(),), (row(), row(floor=0.7, to_limit=1.5, retained=12, peak=0))], ids=len
)
def test_json_round_trip(rows):
    original = report(rows=rows)
    assert Report.from_json(original.to_json()) == original


def test_json_rounds_to_five_digits():
    written = json.loads(report(rows=(row(median=0.123456789),)).to_json())
    assert written["rows"][0]["median"] == 0.12346


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 0, "rows": []}'])
def test_foreign_json_is_refused(text):
    with pytest.raises(ValueError, match="not a benchmark report of format 1"):
        Report.from_json(text)


def test_environment_does_not_name_the_machine():
    import platform

    text = json.dumps(environment(CPU))
    assert "cpu" in text and "threads" in text
    assert platform.node() not in text and "/" not in text.replace("+", "")


def test_cells_and_durations():
    assert [console.duration(s) for s in (1.234e-6, 0.0123, 4.5678)] == ["1.23 µs", "12.3 ms", "4.57 s"]
    assert console.cells(row(retained=1048576))[-2:] == ("1,048,576", "")


def test_plot_of_ratios(tmp_path):
    picture = tmp_path / "ratios.png"
    plot.draw(report(rows=(row(), row(provider="y", floor=0.7))), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no rows"):
        plot.draw(report(), picture)


def test_roofline(tmp_path):
    picture = tmp_path / "roofline.png"
    memory_bound = row(dtype="float32", provider="copy", flops=0.0, moved=1e6)
    roofline.draw(report(rows=(row(dtype="float32", flops=1e9, moved=1e6), memory_bound)), picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no row that states its least work"):
        roofline.draw(report(rows=(row(),)), picture)


# goals


def goal(measure, bound):
    return Goal("wgrad", "a", "ours", "torch", measure, bound)


@pytest.mark.parametrize(
    "measure, value, better, worse",
    [(Measure.TIME, 0.25, 0.3, 0.2), (Measure.SPEED, 4, 3, 5), (Measure.BANDWIDTH, 2, 1, 3)],
)
def test_goals(measure, value, better, worse):
    same = dict(suite="wgrad", case="a", dtype="bfloat16")
    rows = (
        row(provider="torch", median=1.0, moved=8.0, **same),
        row(provider="ours", median=0.25, moved=4.0, **same),
        row(provider="ours", median=9.0, moved=4.0, **{**same, "dtype": "float32"}),
    )
    found = goal(measure, better).value(report(rows=rows))
    assert found == value and goal(measure, better).met(found) and not goal(measure, worse).met(found)
    assert goal(measure, value).met(found)  # the bound itself is enough
    assert goal(measure, 1).value(report(rows=rows[:1])) is None


def test_a_goal_without_a_row_was_not_measured():
    lines = goals.table(None)
    assert len(lines) == len(goals.GOALS) + 1 and {line[-1] for line in lines[1:]} == {"not measured"}
    assert goals.table(report(rows=(row(),)))[1:] == lines[1:]


# command line


def exit_of(capsys, *arguments):
    try:
        code = main(("bench", *arguments))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--suite", "nothing"],
            "suite must be of linear, wgrad, pack, conv, conv_wgrad, elementwise, model, overhead, variance",
        ),
        (["--suite", "linear,,"], "got ''"),
        (["--sketches", "diagonal:0.1"], "sampling must be one of"),
        (["--sketches", "rows:2"], "keep must be in (0, 1], got 2.0"),
        (["--sketches", ""], "sampling must be one of"),
        (["--keep", "0"], "keep must be in (0, 1], got 0.0"),
        (["--keep", "much"], "keep must be a number in (0, 1], got 'much'"),
        (["--dtype", "int8"], "dtype must be of float32, float64, bfloat16, float16; got 'int8'"),
        (["--threads", "0"], "argument --threads: must be at least 1, got 0"),
        (["--seconds", "nan"], "argument --seconds: must be between 0 and 3600, got nan"),
        (["--clock", "sun"], "argument --clock: invalid choice"),
        (["--device", "tpu"], "argument --device: invalid choice"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    code, out, err = exit_of(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("python -m rad_kernels bench: error") and message in err


def test_cuda_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = exit_of(capsys, "--device", "cuda")
    assert (code, out) == (2, "") and "torch sees no CUDA device" in err


def test_missing_data(capsys, tmp_path):
    code, out, err = exit_of(capsys, "--suite", "variance", "--data", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1) and "missing train-images" in err


def test_a_run_writes_json_and_plot(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("rad_kernels.bench.linear.OVERHEAD", (TINY,))
    monkeypatch.setattr("rad_kernels.bench.cli.Rounds", lambda _seconds: FEW)
    record, picture = tmp_path / "new" / "bench.json", tmp_path / "new" / "bench.png"
    files = ["--json", str(record), "--plot", str(picture), "--roofline", str(tmp_path / "roof.png")]
    code, out, err = exit_of(
        capsys, "--suite", "overhead", "--quick", "--peers", "--sketches", "rows,same:0.5:2bit", *files
    )
    assert (code, err) == (0, "")
    found = Report.from_json(record.read_text())
    names = [entry.provider for entry in found.rows]
    assert names[:3] == ["torch", "rows:0.1", "same:0.5:2bit"] and "official same 0.1" in names
    assert all(name in out for name in names) and "limits of float32" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_sketch_lists():
    assert cli.parse_sketches("rows, rows:0.5:4bit ,rows", 0.25) == [Sketch(0.25), Sketch(0.5, bits=4)]
    assert cli.parse_sketches(None, 0.25) is None
    assert len(set(cli.default_sketches(0.1))) == len(cli.default_sketches(0.1)) == 12

"""The GPU report without a GPU: what it would run, how stages end, and what it writes."""

import importlib.util
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from rad_kernels import Sketch
from rad_kernels.bench.cases import conv_cases, linear_cases, matrix_cases
from rad_kernels.bench.goals import GOALS
from rad_kernels.bench.model import fitting_name, model_cases
from rad_kernels.bench.result import Report, Row

OPERATORS = ("relu", "gelu", "dropout")
OTHERS = {
    *("torch", "copy", "compiled", "checkpoint", "1 bit", "4 bit", "seed only", "rows:1.0 fused"),
    fitting_name((16, 1024, 1024), torch.bfloat16),
}

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


report, checks = load("gpu_report"), load("gpu_checks")


def stage(name, code, seconds=60, group=None):
    return report.Stage(name, (sys.executable, "-c", code), seconds, group or name)


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "gpu_name", lambda: None)
    assert report.main(["--out", str(tmp_path / "new")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no CUDA device" in err
    assert not (tmp_path / "new").exists()


def test_dry_run_lists_every_stage(tmp_path):
    command = [sys.executable, "benchmarks/gpu_report.py", "--dry-run", "--no-build", "--out", str(tmp_path)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for planned in report.stages(tmp_path):
        assert str(planned) in listed
    assert all(f"--tool={tool}" in listed for tool in ("memcheck", "racecheck", "initcheck", "synccheck"))
    assert "TORCH_CUDA_ARCH_LIST=9.0a" in listed and "tests/test_gpu.py" in listed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("result, code", [("passed", 0), ("failed (1)", 1), ("out of time", 1)])
def test_dry_run_builds_where_there_is_a_compiler(tmp_path, capsys, monkeypatch, result, code):
    """The build itself is `make gpu-report ARGS=--dry-run`; it takes minutes."""
    built = []

    def run_all(planned, logs, total):
        (logs / "cross_build.log").write_text("error: the compiler's words")
        built.extend(planned)
        return [report.Outcome("cross build", result, 1.0, "", "")]

    monkeypatch.setattr(report, "run_all", run_all)
    monkeypatch.setattr(report.shutil, "which", lambda _name: "nvcc")
    assert report.main(["--out", str(tmp_path), "--dry-run"]) == code
    assert built[0].environment["TORCH_CUDA_ARCH_LIST"] == "9.0a" and "setup.py" in built[0].command
    assert ("the compiler's words" in capsys.readouterr().out) == bool(code)


def test_files_that_stages_name_exist_and_commands_parse(tmp_path, capsys):
    from rad_kernels.__main__ import main

    for planned in report.stages(tmp_path):
        scripts = [word for word in planned.command if word.endswith(".py")]
        assert all((ROOT / script).is_file() for script in scripts)
    benches = [planned for planned in report.stages(tmp_path) if planned.name.startswith("bench")]
    assert len(benches) == len(report.BENCHMARKS)
    for bench in benches if not torch.cuda.is_available() else []:
        arguments = list(bench.command[bench.command.index("rad_kernels") + 1 :])
        with pytest.raises(SystemExit, match="2"):  # parsed as far as the missing GPU
            main(arguments)
        assert "torch sees no CUDA device" in capsys.readouterr().err
    names = [word for word in report.stages(tmp_path)[1].command if word in ("facts", "kernels", "memory")]
    assert names == ["facts"] and checks.main(["nothing"]) == 2


def test_stages_fit_into_eight_minutes():
    assert report.TOTAL_SECONDS <= 480
    names = [planned.name for planned in report.stages(Path("out"))]
    assert len(set(names)) == len(names) and names.index("bench models") < names.index("suite")


def test_one_failure_does_not_stop_the_rest(tmp_path):
    planned = [
        stage("good", "print('one'); print('two words')"),
        stage("bad", "import sys; print('why'); sys.exit(3)"),
        stage("slow", "import time; print('begun', flush=True); time.sleep(60)", seconds=1.5),
        report.Stage("absent", ("no-such-program",), 5, "absent"),
        stage("after", "print('still here')"),
    ]
    told = []
    outcomes = report.run_all(planned, tmp_path, total=60, tell=told.append)
    assert [(o.name, o.result, o.last) for o in outcomes] == [
        ("good", "passed", "two words"),
        ("bad", "failed (3)", "why"),
        ("slow", "out of time", "begun"),
        ("absent", "not run", "no-such-program is not installed"),
        ("after", "passed", "still here"),
    ]
    assert len(told) == 5 and 1.4 < outcomes[2].seconds < 20
    assert (tmp_path / "bad.log").read_text().endswith("why\n")


def test_a_stage_that_is_ended_takes_its_children_along(tmp_path):
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(50)'])"
    outcomes = report.run_all([stage("parent", child, seconds=1)], tmp_path, tell=lambda _text: None)
    assert outcomes[0].result == "out of time" and outcomes[0].seconds < 20


def test_no_stage_starts_after_the_end(tmp_path):
    outcomes = report.run_all([stage("late", "print(1)")], tmp_path, total=0.5, tell=lambda _text: None)
    assert (outcomes[0].result, outcomes[0].last) == ("not run", "no time was left")


def test_stages_of_a_group_run_at_the_same_time(tmp_path):
    meet = (
        "import pathlib, sys, time; pathlib.Path({mine!r}).touch()\n"
        "while not pathlib.Path({other!r}).exists(): time.sleep(0.05)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    planned = [
        stage("one", meet.format(mine=a, other=b), group="pair"),
        stage("two", meet.format(mine=b, other=a), group="pair"),
    ]
    outcomes = report.run_all(planned, tmp_path, tell=lambda _text: None)
    assert [outcome.result for outcome in outcomes] == ["passed", "passed"]


def test_the_report_holds_everything_in_few_files(tmp_path):
    out, logs = tmp_path / "out", tmp_path / "logs"
    out.mkdir()
    logs.mkdir()
    rows = [{"sketch": "rows:0.1", "held": 1024, "formula": 1024, "peak": 4096}]
    (logs / "memory.log").write_text(f"$ command\n\n{json.dumps(rows, indent=1)}\n1 of 1\n")
    (logs / "facts.log").write_text("$ command\n\ntorch 2.11\n")
    (logs / "bench_models.log").write_text("$ command\n\nlinear 1x1->1\n")
    outcomes = [report.Outcome("memory", "passed", 1.25, "a | b", "command")]
    report.write_report(out, logs, outcomes)
    text = (out / "report.md").read_text()
    assert "| memory | passed | 1.2 | a / b |" in text and "torch 2.11" in text and "linear 1x1->1" in text
    assert "| rows:0.1 | 1,024 | 1,024 | 4,096 |" in text
    content = json.loads((out / "report.json").read_text())
    assert content["memory"] == rows and content["stages"][0]["command"] == "command"
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert archive.getnames() == ["bench_models.log", "facts.log", "memory.log"]
    assert len(list(out.iterdir())) <= 5  # and the benchmarks' three


def test_benchmarks_are_joined(tmp_path):
    def part(name, **changes):
        facts = {"cpu": "c", "threads": 1, "torch": "2"}
        numbers = dict.fromkeys(("median", "p20", "p80", "minimum", "ratio", "ratio_minimum"), 0.5)
        row = Row(name, "case", "torch", "bfloat16", rounds=9, flops=1.0, moved=1.0, **numbers)
        limits = {"bfloat16": {"flops_per_s": 1e9, "bytes_per_s": 1e9}}
        (tmp_path / f"bench-{name}.json").write_text(Report(facts, {}, limits, (row,)).to_json())

    report.join_benchmarks(tmp_path)
    assert list(tmp_path.iterdir()) == []
    part("one")
    part("two")
    report.join_benchmarks(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.png", "roofline.png"]
    joined = Report.from_json((tmp_path / "bench.json").read_text())
    assert [row.suite for row in joined.rows] == ["one", "two"]


def test_every_goal_is_among_what_is_timed(tmp_path):
    """Case and providers of each goal come up in the stage that runs its suite."""
    cuda = torch.device("cuda")
    cases = {
        "wgrad": linear_cases(cuda, False),
        "linear": linear_cases(cuda, False),
        "pack": [f"{case.rows}x{case.features}" for case in linear_cases(cuda, False)],
        "conv_wgrad": conv_cases(cuda, False),
        "elementwise": [f"{name} {case}" for case in matrix_cases(cuda, False) for name in OPERATORS],
        "model": model_cases(cuda, False),
    }
    for goal in GOALS:
        assert goal.case in [str(case) for case in cases[goal.suite]], goal
        sketches = next(
            text for suites, text in report.BENCHMARKS.values() if goal.suite in suites.split(",")
        )
        names = {str(Sketch.parse(text)) for text in sketches.split(",")} | OTHERS
        for name in (goal.provider, goal.against):
            assert name in names or name.removesuffix(" compiled") in names, goal


@pytest.mark.parametrize("only, names", [("memory", ["build", "memory"]), ("bench m,fa", None)])
def test_some_stages_only(only, names):
    chosen = [planned.name for planned in report.chosen(report.stages(Path("out")), only)]
    assert chosen == (names or ["build", "facts", "bench memory", "bench models"])


@pytest.mark.parametrize("only", ["nothing", "memory,", ""])
def test_unknown_stages(only, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main(["--only", only])
    assert "--only must name stages of build, facts" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "$ c\n\nTraceback\n", "$ c\n\n[\n 1,\n]\n"])
def test_memory_that_was_not_measured(tmp_path, text):
    log = tmp_path / "memory.log"
    assert report.json_part(log) == []
    log.write_text(text)
    assert report.json_part(log) == []


def test_layers_for_the_sanitizers_step_on_the_cpu_too():
    layers = sum(1 for _ in checks.layers())
    assert checks.run_layers(torch.device("cpu")) == 4 * (layers + 1) + 20  # the loss; PDE and products


def test_shapes_for_the_sanitizers_are_odd_and_small():
    for rows, features, outputs in checks.SHAPES:
        assert rows * max(features, outputs) * 8 <= checks.MOST_BYTES
    assert any(rows % 2 and features % 2 for rows, features, _ in checks.SHAPES)

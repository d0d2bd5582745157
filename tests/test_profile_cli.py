"""python -m rad_kernels profile: what it prints and writes, and one clear line for what cannot be done."""

import json
import sys
from pathlib import Path

import pytest
from test_cli import exit_of

from rad_kernels.profile import Profile

EXAMPLE = str(Path(__file__).resolve().parent.parent / "examples" / "gpt.py") + ":step"


def test_table_json_and_plot(capsys, tmp_path):
    record, picture = tmp_path / "p.json", tmp_path / "p.png"
    code, out, _ = exit_of(
        capsys, "profile", EXAMPLE, "--batch", "4", "--sketch", "rows:0.1:4bit", "--norm-bits", "2",
        "--optimizer", "adamw", "--json", str(record), "--plot", str(picture),
    )  # fmt: skip
    found = Profile.from_dict(json.loads(record.read_text()))
    assert code == 0 and out == f"{found}\n" and picture.read_bytes()[1:4] == b"PNG"
    assert found.ran and found.optimizer > 2 * found.parameters and found.predicted < found.retained
    assert found.layer("norm").became == "bits=2" and found.layer("head").reason.startswith("the last Linear")


def test_without_running(capsys, tmp_path):
    record = tmp_path / "p.json"
    code, out, _ = exit_of(capsys, "profile", EXAMPLE, "--batch", "1000", "--no-run", "--json", str(record))
    found = Profile.from_dict(json.loads(record.read_text()))
    assert code == 0 and not found.ran and found.retained > 1e9 and "retained, on CUDA" in out
    assert "found without running" in out and "forward +" not in out.splitlines()[0]


def test_rich_table_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = exit_of(capsys, "profile", EXAMPLE, "--batch", "2", "--no-run", "--sketch", "rows:0.5")
    assert code == 0 and "blocks.1.mlp.2" in out and "needed in all" in out and "under rows:0.5" in out


MODULE = """
import torch
number = 3
def alone(batch): return torch.nn.Linear(2, 2)
def without_loss(batch): return torch.nn.Linear(2, 2), torch.rand(batch, 2)
"""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gpt"], "the factory must look like module:function or file.py:function, got 'gpt'"),
        (["nowhere.py:step"], "no such file: nowhere.py"),
        (["nowhere_at_all:step"], "nowhere_at_all:step: No module named 'nowhere_at_all'"),
        (["made_here.py:missing"], "the module made_here has no missing"),
        (["made_here.py:number"], "the module made_here cannot call its number"),
        (["made_here.py:alone"], "must return (model, inputs) or (model, inputs, loss), got Linear"),
        (["made_here.py:without_loss"], "loss must be given: Linear returns a tensor [2, 2], not a scalar"),
        ([EXAMPLE, "--sketch", "diagonal:0.1"], "sampling must be one of"),
        ([EXAMPLE, "--act-bits", "2"], "act_bits goes with sketch, which is None"),
        ([EXAMPLE, "--json", "no/where.json"], "no such folder: no"),
        ([EXAMPLE, "--snapshot", "s.pickle"], "snapshot needs a step that runs on a CUDA device"),
        ([EXAMPLE, "--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_wrong_arguments(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("made_here.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "made_here", raising=False)
    code, out, err = exit_of(capsys, "profile", "--batch", "2", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_a_batch_of_nothing(capsys):
    code, _, err = exit_of(capsys, "profile", EXAMPLE, "--batch", "0")
    assert code == 2 and "batch must be at least 1, got 0" in err

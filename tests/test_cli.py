"""python -m rad_kernels: help, info, and one clear line with exit code 2 for whatever cannot be done."""

import gzip
import struct
import subprocess
import sys

import pytest
import torch

import rad_kernels
from rad_kernels.__main__ import main


def exit_of(capsys, *arguments):
    """(exit code, stdout, stderr) of a command line."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_module_runs():
    command = [sys.executable, "-m", "rad_kernels", "info"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == rad_kernels.show_config() and result.stderr == ""


def test_module_passes_the_exit_code_on():
    command = [sys.executable, "-m", "rad_kernels", "demo", "--keep", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_no_command_prints_help(capsys):
    code, out, err = exit_of(capsys)
    assert (code, err) == (0, "") and out.startswith("usage: python -m rad_kernels")
    assert "info" in out and "demo" in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["info", "--help"], ["demo", "--help"], ["profile", "--help"]]
)
def test_help(capsys, arguments):
    code, out, err = exit_of(capsys, *arguments)
    assert (code, err) == (0, "") and out.startswith("usage: python -m rad_kernels")


def test_version(capsys):
    assert exit_of(capsys, "--version")[:2] == (0, rad_kernels.__version__ + "\n")


def test_info(capsys):
    code, out, _ = exit_of(capsys, "info")
    assert code == 0
    for fact in (rad_kernels.__version__, torch.__version__, "CUDA", "threads", "salt"):
        assert fact in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bench-everything"], "invalid choice: 'bench-everything'"),
        (
            ["demo", "--sketches", "diagonal:0.1"],
            "sampling must be one of rows, same, different, tile_rows, project; got 'diagonal'",
        ),
        (
            ["demo", "--sketches", "rows:0.1:sorted"],
            "draw must be one of stratified, with_replacement, without_replacement, norm, hadamard; "
            "got 'sorted'",
        ),
        (["demo", "--sketches", "rows:a"], "keep must be a number in (0, 1], got 'a' in 'rows:a'"),
        (["demo", "--sketches", "rows,rows:0.1"], "sketches must differ, got 'rows,rows:0.1'"),
        (["demo", "--sketches", ""], "sampling must be one of"),
        (["demo", "--keep", "0"], "keep must be in (0, 1], got 0.0"),
        (["demo", "--keep", "1.5"], "keep must be in (0, 1], got 1.5"),
        (["demo", "--keep", "nan"], "keep must be in (0, 1], got nan"),
        (["demo", "--keep", "much"], "keep must be a number in (0, 1], got 'much'"),
        (["demo", "--batch", "1443"], "batch must be at most the 1442 training images, got 1443"),
        (["demo", "--batch", "0"], "argument --batch: must be at least 1, got 0"),
        (["demo", "--steps", "x"], "argument --steps: invalid"),
        (["demo", "--steps", "5", "--epochs", "5"], "argument --epochs: not allowed with argument --steps"),
        (["demo", "--threads", "-1"], "argument --threads: must be at least 1, got -1"),
        (["demo", "--seeds", "0"], "argument --seeds: must be at least 1, got 0"),
        (["demo", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["demo", "--two\nlines"], "unrecognized arguments: --two lines"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    code, out, err = exit_of(capsys, *arguments)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("python -m rad_kernels") and message in err


def test_missing_data(capsys, tmp_path):
    code, out, err = exit_of(capsys, "demo", "--data", str(tmp_path / "nowhere"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "missing train-images-idx3-ubyte[.gz], train-labels" in err and "not a directory" in err


def test_damaged_data(capsys, tmp_path):
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 1, 2, 3, 4)))
    code, _, err = exit_of(capsys, "demo", "--data", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "train-images-idx3-ubyte.gz: magic number 1, expected 2051" in err


def test_output_directory_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = exit_of(capsys, "demo", "--out", str(tmp_path / "file" / "below"))
    assert (code, err.count("\n")) == (2, 1) and "file" in err


def test_missing_requirement(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rich.table", None)
    for name in ("console", "plot"):
        monkeypatch.delitem(sys.modules, f"rad_kernels.demo.{name}", raising=False)
        monkeypatch.delattr(f"rad_kernels.demo.{name}", raising=False)
    code, _, err = exit_of(capsys, "demo", "--out", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1) and "pip install 'rad_kernels[demo]'" in err


def test_interrupt(capsys, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rad_kernels.demo.cli.choose_methods", interrupted)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    code, _, err = exit_of(capsys, "demo", "--out", str(tmp_path))
    assert (code, err) == (130, "interrupted\n")

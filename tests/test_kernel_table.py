"""tools/kernel_table.py: what ptxas reported against what docs/resources.md shows."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import kernel_table

ENTRY = """\
ptxas info    : Compiling entry function '_ZN3rad4packI{type}EEvPT_' for '{arch}'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 416 bytes cmem[0]
"""


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Logs of a kernel in two variants, and a compiler that says which it is."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(kernel_table, "TABLE", tmp_path / "kernels.json")
    logs = []
    for arch in kernel_table.ARCHITECTURES:
        logs.append(tmp_path / arch / "pack.log")
        logs[-1].parent.mkdir()
        text = [
            ENTRY.format(type=letter, arch=arch, registers=registers, shared=shared)
            for letter, registers, shared in (("f", 24, 0), ("d", 40, 1024))
        ]
        logs[-1].write_text("".join(text))
    return str(nvcc), logs


def test_recorded_and_compared(compiled, capsys):
    nvcc, logs = compiled
    kernel_table.main(nvcc, logs, write=True)
    content = json.loads(kernel_table.TABLE.read_text())
    assert content["nvcc"] == "13.0.88"
    assert content["archs"]["sm_86"] == {"pack: pack": [2, 24, 40, 1024]}
    assert kernel_table.table_lines(content)[1] == ("`pack: pack`", "2", *["24-40 + 1024"] * 6)
    kernel_table.main(nvcc, logs[2:4], write=False)
    assert "are those of docs/resources.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("Used 40", "Used 41"), r"sm_89 pack: pack: \[2, 24, 41, 1024\], recorded are \[2, 24, 40, 1024\]"),
        (("Used 24", "Used 23"), r"\[2, 23, 40, 1024\]"),
        (("1024 bytes", "1040 bytes"), r"\[2, 24, 40, 1040\]"),
        (("packId", "copyId"), r"pack: copy: \[1, 40, 40, 1024\], recorded are None"),
    ],
)
def test_what_fails(compiled, change, message):
    nvcc, logs = compiled
    kernel_table.main(nvcc, logs, write=True)
    logs[2].write_text(logs[2].read_text().replace(*change))
    with pytest.raises(SystemExit, match=message):
        kernel_table.main(nvcc, logs, write=False)


def test_a_kernel_that_is_gone_fails(compiled):
    nvcc, logs = compiled
    kernel_table.main(nvcc, logs, write=True)
    logs[0].write_text("")
    with pytest.raises(SystemExit, match=r"sm_80 pack: pack: None, recorded are \[2, 24, 40, 1024\]"):
        kernel_table.main(nvcc, logs, write=False)


def test_another_release_is_not_compared(compiled, capsys):
    nvcc, logs = compiled
    kernel_table.main(nvcc, logs, write=True)
    Path(nvcc).write_text(Path(nvcc).read_text().replace("13.0.88", "13.1.4"))
    logs[0].write_text(logs[0].read_text().replace("Used 40", "Used 41"))
    kernel_table.main(nvcc, logs, write=False)
    assert "docs/resources.md is of nvcc 13.0.88, this is 13.1.4" in capsys.readouterr().out


def test_the_table_needs_all_architectures(compiled):
    nvcc, logs = compiled
    with pytest.raises(SystemExit, match=r"missing: sm_80$"):
        kernel_table.main(nvcc, logs[1:], write=True)
    assert not kernel_table.TABLE.exists()


def test_a_compiler_without_a_release(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho none\n")
    nvcc.chmod(0o755)
    with pytest.raises(ValueError, match="names no release"):
        kernel_table.release(str(nvcc))

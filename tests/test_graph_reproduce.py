"""The figure of sampled paths and injected matrices."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rad_kernels.__main__ import main
from rad_kernels.reproduce import graph as figure


def test_both_graphs_are_one_network():
    for depth in (1, 2):
        arrays, scalars = figure.by_arrays(depth, 3), figure.by_scalars(depth, 3)
        assert arrays.value == pytest.approx(scalars.value, rel=1e-14)
        assert arrays.derivatives()[0] == pytest.approx(np.array(scalars.derivatives()), rel=1e-12)
        assert scalars.path_count == figure.WIDTH ** (depth + 1)


def test_the_command(tmp_path, capsys):
    assert main(["reproduce", "graph", "--out", str(tmp_path)]) == 0
    assert "P at every layer" in capsys.readouterr().out
    content = json.loads((tmp_path / "graph-ci.json").read_text())
    for name in ("graph-ci.png", "graph-example.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    one, two = content["rows"]
    assert one["last_layer"] == one["every_layer"] and one["every_layer"] < two["every_layer"]
    assert one["path_variance"] < two["path_variance"]
    assert content["example"]["paths"][0] == "x1 -> exp -> multiply_2 -> multiply_3"
    assert figure.table(content)[1][:2] == ("1", "16")


def test_the_pages_code_runs():
    page = Path(__file__).resolve().parent.parent / "docs" / "general.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    assert len(blocks) == 3 and namespace["source"].grad.abs().max() > 0
    assert len(namespace["estimate"]) == len(namespace["exact"]) == 2

"""README and docs: generated parts are up to date, code runs, links lead somewhere."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(tool, page):
    text = page.read_text(encoding="utf-8")
    assert tool.filled(text, ROOT / "docs" / "results") == text, "run: python tools/readme_tables.py"


def test_a_changed_result_changes_the_table(tool, tmp_path):
    content = json.loads((ROOT / "docs" / "results" / "demo.json").read_text(encoding="utf-8"))
    content["rows"][0]["retained_bytes"] = 123_456
    (tmp_path / "demo.json").write_text(json.dumps(content))
    page = "before\n<!-- table:demo -->\n| old |\n<!-- end -->\nafter\n"
    changed = tool.filled(page, tmp_path)
    assert changed.startswith("before\n<!-- table:demo -->\n| method |") and "| 123,456 |" in changed
    assert "old" not in changed and changed.endswith("<!-- end -->\nafter\n")


def test_broken_parts_are_refused(tool, tmp_path):
    with pytest.raises(ValueError, match="no <!-- end -->"):
        tool.filled("<!-- table:demo -->\n| old |\n", tmp_path)
    with pytest.raises(
        ValueError,
        match=r"must be one of table, notes, .*, curves, findings, table1, .*, goals, slots, got 'plot'",
    ):
        tool.filled("<!-- plot:demo -->\n<!-- end -->\n", tmp_path)
    with pytest.raises(FileNotFoundError, match="unknown"):
        tool.filled("<!-- table:unknown -->\n<!-- end -->\n", tmp_path)


def test_readme_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 2
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["model"][0].weight.grad is not None
    out = capsys.readouterr().out
    assert "_LinearBackward" in out and int(out.split()[-1]) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_exist(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []

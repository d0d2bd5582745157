"""docs/behaviour.md: every test that it names exists, every test of the behaviour files is named there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "behaviour.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)


def defined(file):
    return set(re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.M))


def test_named_tests_exist():
    assert len(NAMED) > 80
    missing = [f"{file}::{name}" for file, name in NAMED if name not in defined(ROOT / "tests" / file)]
    assert missing == []
    for file in re.findall(r"`(test_\w+\.cpp)`", PAGE):
        assert (ROOT / "tests" / "cpp" / file).is_file(), file


def test_every_promise_names_its_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "| promise |" not in line]
    assert [row for row in rows if "`test_" not in row.rsplit("|", 2)[1]] == []


def test_tests_of_behaviour_are_named():
    for file in (ROOT / "tests").glob("test_behaviour_*.py"):
        unnamed = defined(file) - {name for named, name in NAMED if named == file.name}
        assert unnamed <= {"test_every_class_is_tested"}, (file.name, unnamed)

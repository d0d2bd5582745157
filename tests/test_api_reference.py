"""docs/api.md is what the docstrings say today."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import api_reference  # noqa: E402


def test_the_reference_is_up_to_date():
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), "run: make docs"


def test_every_public_name_is_there():
    """What the package itself lists, with a docstring of its own."""
    import rad_kernels

    text = api_reference.page()
    for name, value in api_reference.public("rad_kernels"):
        assert re.search(rf"\b{name}\b", text), name
        assert api_reference.own_doc(value), name
    assert len(rad_kernels.__all__) >= 10

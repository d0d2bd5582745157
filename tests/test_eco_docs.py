"""The reference is up to date, and every public docstring names its arguments."""

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import api_reference  # noqa: E402

PUBLIC = [
    pytest.param(module, name, value, id=f"{module.removeprefix('rad_kernels')}.{name}"[1:])
    for module, names in api_reference.entries().items()
    for name, value in names
]


def test_the_reference_is_up_to_date():
    assert api_reference.PAGE.read_text() == api_reference.page(), "run `make docs`"


@pytest.mark.parametrize(("module", "name", "value"), PUBLIC)
def test_docstrings_name_their_arguments(module, name, value):
    """Of a layer, what it adds to torch's constructor; a layer that adds nothing may say nothing of it."""
    doc = api_reference.own_doc(value)
    assert doc, f"{module}.{name} has no docstring"
    if inspect.isclass(value) and issubclass(value, Warning):
        return
    arguments = set(inspect.signature(value).parameters) - {"args", "kwargs"}
    exact = getattr(torch.nn, name, None)
    if inspect.isclass(value) and exact is not None:
        arguments -= set(inspect.signature(exact).parameters)
    missing = [a for a in arguments if not re.search(rf"\b{a}\b", doc)]
    assert not missing, f"the docstring of {module}.{name} does not name {', '.join(sorted(missing))}"

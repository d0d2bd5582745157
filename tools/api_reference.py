"""Writes docs/api.md: the docstring of every public name, in the order of the layers.

python tools/api_reference.py           rewrite it
python tools/api_reference.py --check   change nothing, exit with 1 if it is out of date
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "api.md"

# Modules and what each is for; a public name is in __all__ of one of them.
MODULES = {
    "rad_kernels": "Sketches, whole models, where memory goes.",
    "rad_kernels.convert": "What `convert` reports.",
    "rad_kernels.plan": "What `fit` decides.",
    "rad_kernels.variance": "What `variance` measures.",
    "rad_kernels.nn": "Layers: torch's, with the same parameters and some keywords more.",
    "rad_kernels.functional": "The same as functions.",
    "rad_kernels.graph": "Randomized differentiation of small functions.",
    "rad_kernels.profile": "What `profile` and `predict` report.",
    "rad_kernels.memory": "What a training step retains, and its peak.",
}
SECTIONS = re.compile(r"^(Args|Returns|Raises|Attributes|Yields|Example|Raises \([^)]*\)):$")


def public(module_name: str) -> list[tuple[str, object]]:
    """Functions and classes that the module lists, each once over all modules."""
    module = importlib.import_module(module_name)
    names = [(name, getattr(module, name)) for name in sorted(module.__all__, key=str.lower)]
    return [(name, value) for name, value in names if inspect.isclass(value) or inspect.isfunction(value)]


def entries() -> dict[str, list[tuple[str, object]]]:
    seen: set[int] = set()
    found: dict[str, list[tuple[str, object]]] = {}
    for module in MODULES:
        found[module] = []
        for name, value in public(module):
            if id(value) not in seen:
                seen.add(id(value))
                found[module].append((name, value))
    return found


def signature(name: str, value: object) -> str:
    """As one would call it, without annotations that the text explains."""
    if inspect.isclass(value) and issubclass(value, Warning):
        return name
    shown = inspect.signature(value)  # type: ignore[arg-type]
    plain = [p.replace(annotation=p.empty) for p in shown.parameters.values()]
    return f"{name}{shown.replace(parameters=plain, return_annotation=shown.empty)}"


def markdown(text: str) -> str:
    """A docstring of this project's style: paragraphs, and sections of indented items."""
    lines, in_section = [], False
    for line in text.replace("``", "`").splitlines():
        if SECTIONS.match(line):
            lines += [f"**{line[:-1]}**", ""]
            in_section = True
        elif not line.startswith(" ") and line:
            in_section = False
            lines.append(line)
        elif in_section and (match := re.match(r"    (\*{0,2}[\w*][\w., *]*): (.*)", line)):
            lines.append(f"- `{match[1]}`: {match[2]}")
        elif in_section:
            lines.append(f"  {line.strip()}" if line.strip() else "")
        else:
            lines.append(line)
    return "\n".join(lines)


def own_doc(value: object) -> str:
    """The docstring of the class itself, not one that it inherits from torch."""
    doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    return inspect.cleandoc(doc) if doc else ""


def heading(name: str, value: object) -> list[str]:
    lines = [f"### {name}", "", f"```\n{signature(name, value)}\n```", ""]
    bases = [b for b in getattr(value, "__mro__", ())[1:] if b.__module__.startswith("torch.nn.modules")]
    if bases and bases[0].__name__ == name:
        lines += [f"A `torch.nn.{name}`.", ""]
    return lines


def page() -> str:
    lines = [
        "# Reference",
        "",
        "Written by `make docs` from the docstrings. Brackets hold the shapes of tensors; equations are in",
        "[maths.md](maths.md).",
        "",
    ]
    for module, names in entries().items():
        lines += [f"## {module}", "", MODULES[module], ""]
        for name, value in names:
            lines += [*heading(name, value), markdown(own_doc(value)), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing, fail if the page is out of date"
    )
    args = parser.parse_args()
    text = page()
    if args.check:
        sys.exit("docs/api.md is out of date: make docs" if PAGE.read_text() != text else 0)
    PAGE.write_text(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

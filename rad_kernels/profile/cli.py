"""The sub-command `profile`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_map

from ..sketch import BITS, NORM_BITS, Sketch
from . import profile
from .result import Profile
from .table import columns, notes, rows, sums

DESCRIPTION = """\
Runs one training step and says where its memory goes: what each module retains for backward and who else
holds it, how far the memory rises, and what would be retained under a sketch. FACTORY is called with the
batch size; it returns (model, inputs) or (model, inputs, loss), and loss(model, *inputs) is a scalar."""

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def register(commands: Any) -> None:
    """Adds the sub-command `profile`."""
    parser = commands.add_parser(
        "profile", help="where the memory of a model's training step goes", description=DESCRIPTION
    )
    add = parser.add_argument
    add("factory", metavar="FACTORY", help="module:function or path/to/file.py:function")
    add("--batch", type=int, required=True, metavar="N", help="what the factory is called with")
    add("--sketch", metavar="S", help="also predict what is retained under it, such as rows:0.1:4bit")
    add("--norm-bits", type=int, choices=NORM_BITS, help="of normalisations in the prediction (4)")
    add("--act-bits", type=int, choices=BITS, help="of activations in the prediction (4)")
    add("--recompute", choices=["attention"], help="in the prediction: attention again in backward")
    add("--optimizer", choices=OPTIMIZERS, help="also count its state")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (%(default)s)")
    add("--no-run", action="store_true", help="no data, no memory: the model is made on the meta device")
    add("--json", type=Path, metavar="FILE", help="write everything there")
    add("--plot", type=Path, metavar="FILE", help="draw memory over time and by module there, as PNG")
    add("--snapshot", type=Path, metavar="FILE", help="write torch's memory snapshot there (CUDA)")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Profiles; wrong arguments end the process with one line and exit code 2."""
    # The profiler behind the peaks logs to stderr unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        _check(args)
        factory = load(args.factory)
        with torch.device("meta") if args.no_run else nullcontext():
            made = factory(args.batch)
        model, inputs, loss = unpacked(made, args.factory)
        if args.device == "cuda":
            model, inputs = model.to("cuda"), moved(inputs, "cuda")
        given = {"norm_bits": args.norm_bits, "act_bits": args.act_bits, "recompute": args.recompute}
        found = profile(
            model,
            *inputs,
            loss=loss,
            sketch=None if args.sketch is None else Sketch.parse(args.sketch),
            optimizer=OPTIMIZERS.get(args.optimizer),
            run=not args.no_run,
            snapshot=args.snapshot,
            **{name: value for name, value in given.items() if value is not None},
        )
    except (ValueError, TypeError, OSError) as error:
        args.parser.error(str(error))
    show(found)
    if args.json is not None:
        found.to_json(args.json)
    if args.plot is not None:
        found.plot(args.plot)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.batch < 1:
        raise ValueError(f"batch must be at least 1, got {args.batch}")
    if args.sketch is not None:
        Sketch.parse(args.sketch)
    for path in (args.json, args.plot, args.snapshot):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"no such folder: {path.parent}")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda: torch sees no CUDA device; --no-run on the CPU counts CUDA's blocks as well"
        )
    if args.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'rad_kernels[bench]'")


def load(target: str) -> Callable[[int], Any]:
    """The function that "module:function" or "path/to/file.py:function" names.

    Raises:
        ValueError: it cannot be found, or what is found cannot be called.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise ValueError(f"the factory must look like module:function or file.py:function, got {target!r}")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ValueError(f"no such file: {where}")
        folder, where = str(path.resolve().parent), path.stem
    else:
        folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        raise ValueError(f"{target}: {error}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        what = "has no" if factory is None else "cannot call its"
        raise ValueError(f"{target}: the module {where} {what} {name}")
    return factory


def unpacked(made: Any, target: str) -> tuple[Module, tuple[Any, ...], Callable[..., Any] | None]:
    """Model, inputs and loss of what a factory returned.

    Raises:
        TypeError: it is neither (model, inputs) nor (model, inputs, loss).
    """
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], Module):
        raise TypeError(f"{target} must return (model, inputs) or (model, inputs, loss), got {_told(made)}")
    model, inputs, *loss = made
    return model, inputs if isinstance(inputs, tuple) else (inputs,), loss[0] if loss else None


def _told(made: Any) -> str:
    names = [type(part).__name__ for part in made] if isinstance(made, tuple) else []
    return f"({', '.join(names)})" if names else type(made).__name__


def moved(inputs: Any, device: str) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)


def show(found: Profile) -> None:
    """A table of rich on a terminal, where there is rich; else plain text."""
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        print(found)
        return
    from rich.console import Console
    from rich.table import Table

    from .table import RIGHT

    shown = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in columns(found):
        right = name in RIGHT
        table.add_column(
            name, justify="right" if right else "left", no_wrap=right or name == "module", overflow="fold"
        )
    for row in rows(found):
        table.add_row(*row)
    shown.print(table)
    whole = Table(box=None, pad_edge=False, show_header=False)
    for index in range(3):
        whole.add_column(justify="right" if index == 1 else "left")
    for line in sums(found):
        whole.add_row(*line)
    shown.print()
    shown.print(whole)
    for note in notes(found):
        shown.print(note, markup=False)

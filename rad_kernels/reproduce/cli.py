"""The sub-command `reproduce`: one figure of the paper each, or all."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..demo.result import environment
from ..sketch import SAMPLINGS
from . import fair, graph, pde, table1
from .tasks import PRESETS, TASKS

SAMPLINGS_OF_ALL = tuple(name for name in SAMPLINGS if name in ("rows", "same", "different"))
# Figures that need no data.
FIGURES = {
    "pde": (pde, "a reaction-diffusion equation fitted with a sampled adjoint"),
    "graph": (graph, "variance of sampled paths and injected matrices"),
}
MISSING = "the requirements of the figures: pip install 'rad_kernels[bench]'"
DEFAULT_OUT = Path("build") / "reproduce"


def register(commands: Any) -> None:
    parser = commands.add_parser("reproduce", help="measure figures of the paper again")
    targets = parser.add_subparsers(metavar="figure", required=True)
    _register_table1(targets)
    for task in TASKS.values():
        curves = targets.add_parser(
            task.name,
            help=f"training curves: {task.title} on {task.data_name}",
            description="Trains with exact gradients, a smaller batch, the paper's sketches as published and "
            "this package's at equal measured bytes. Runs that are done are not done again.",
        )
        _add_common(curves)
        _add_data(curves)
        curves.set_defaults(run=_run_curves, parser=curves, task=task)
    fair.add_arguments(
        targets.add_parser("fair", help="ways to train in less memory, in equal measured bytes")
    )
    for name, (figure, text) in FIGURES.items():
        parser = targets.add_parser(name, help=text, description=figure.__doc__)
        _add_common(parser)
        parser.set_defaults(run=_run_figure, parser=parser, figure=figure)
    everything = targets.add_parser("all", help="Table 1 and every figure of the paper, one after the other")
    _add_common(everything)
    _add_data(everything)
    everything.set_defaults(run=_run_all, parser=everything)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        default="ci",
        help="ci: seconds, on embedded digits; desk: minutes, on the paper's data; paper: its settings, days "
        "(%(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="JSON, PNG and finished runs (%(default)s)",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="MNIST's idx files and CIFAR-10 in any of its forms"
    )


def _run_curves(args: argparse.Namespace) -> int:
    return _guarded(args, [args.task])


def _run_all(args: argparse.Namespace) -> int:
    _print_table1("different", table1.BATCH)
    _guarded(args, list(TASKS.values()))
    for args.figure, _ in FIGURES.values():
        _run_figure(args)
    return 0


def _run_figure(args: argparse.Namespace) -> int:
    try:
        args.figure.run(args)
    except ModuleNotFoundError as error:
        args.parser.error(f"{error}; {MISSING}")
    except (ValueError, OSError) as error:
        args.parser.error(str(error))
    return 0


def _guarded(args: argparse.Namespace, tasks: list[Any]) -> int:
    """Wrong arguments and missing data end the process with one line and exit code 2."""
    try:
        from . import console, curves, curves_plot
        from ._runs import write_json

        shown = console.console()
        for task in tasks:
            content = curves.run(task, args.preset, args.data, args.out, console.progress(shown))
            args.out.mkdir(parents=True, exist_ok=True)
            path = args.out / f"{task.name}-{args.preset}.json"
            write_json(path, content)
            curves_plot.draw(content, path.with_suffix(".png"))
            console.print_result(shown, content)
            shown.print(f"written: {path} and {path.with_suffix('.png').name}", soft_wrap=True)
    except ModuleNotFoundError as error:
        args.parser.error(f"{error}; {MISSING}")
    except (ValueError, OSError) as error:
        args.parser.error(str(error))
    return 0


def _register_table1(targets: Any) -> None:
    table = targets.add_parser(
        "table1",
        help="memory of the paper's networks at several fractions",
        description="Measures what the paper's networks retain for backward, weights included, and prints it "
        "beside Table 1 of the paper, which was calculated by hand.",
    )
    add = table.add_argument
    add("--sampling", choices=SAMPLINGS_OF_ALL, default="different", help="of the sketches (%(default)s)")
    add("--batch", type=int, default=table1.BATCH, metavar="N", help="the paper's is %(default)s")
    add("--json", type=Path, metavar="F", help="write the figures there as well")
    table.set_defaults(run=_run_table1, parser=table)


def _run_table1(args: argparse.Namespace) -> int:
    if args.batch < 1:
        args.parser.error(f"batch must be at least 1, got {args.batch}")
    if args.json is not None and not args.json.parent.is_dir():
        args.parser.error(f"no such folder: {args.json.parent}")
    content = _print_table1(args.sampling, args.batch)
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _print_table1(sampling: str, batch: int) -> dict[str, Any]:
    """Measures and prints the table; its content for JSON."""
    content = table1.as_dict(sampling, batch, table1.cells(sampling, batch), environment())
    lines = table1.table(content)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for label, *figures in lines:
        print(label.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:])), sep="  ")
    return content

"""The sub-command `reproduce`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..demo.result import environment
from ..sketch import SAMPLINGS
from . import table1

SAMPLINGS_OF_ALL = tuple(name for name in SAMPLINGS if name in ("rows", "same", "different"))


def register(commands: Any) -> None:
    parser = commands.add_parser("reproduce", help="measure figures of the paper again")
    targets = parser.add_subparsers(metavar="figure", required=True)
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
    table.set_defaults(run=run, parser=table)


def run(args: argparse.Namespace) -> int:
    if args.batch < 1:
        args.parser.error(f"batch must be at least 1, got {args.batch}")
    if args.json is not None and not args.json.parent.is_dir():
        args.parser.error(f"no such folder: {args.json.parent}")
    found = table1.cells(args.sampling, args.batch)
    content = table1.as_dict(args.sampling, args.batch, found, environment())
    lines = table1.table(content)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for label, *figures in lines:
        print(label.ljust(widths[0]), *(f.rjust(w) for f, w in zip(figures, widths[1:])), sep="  ")
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0

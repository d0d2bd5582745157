"""The demo's command line: arguments, their checks, and the order in which things happen."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from ..data import CLASSES, Digits, load_digits_8x8, load_mnist
from ..sketch import Sketch
from .measure import costs, retained_bytes
from .network import HIDDEN, Method, exact, largest_batch_within, sketched, small_batch, standardised
from .result import Outcome, as_dict, to_json
from .train import EVALUATIONS, FINAL_EVALUATIONS, train

DESCRIPTION = """\
Trains the paper's fully connected network (300-300-300 hidden units, ReLU, Adam) on handwritten digits with
exact gradients, with sketches of the activations, and with exact gradients of a batch so small that it keeps
no more bytes than the sketches. Prints one table and writes demo.png and demo.json."""


def register(commands: Any) -> None:
    """Adds the sub-command `demo`."""
    parser = commands.add_parser(
        "demo",
        help="train on real digits: exact gradients, small batch and sketches side by side",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="MNIST's four idx files, raw or .gz (default: embedded 8x8 digits)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=_positive, default=1000, metavar="N", help="updates a run (%(default)s)"
    )
    length.add_argument("--epochs", type=_positive, metavar="N", help="the same in passes over the data")
    add("--batch", type=_positive, default=150, metavar="N", help="images of a minibatch (%(default)s)")
    add("--keep", default="0.1", help="share kept by sketches that do not say it themselves (%(default)s)")
    add(
        "--sketches",
        default="rows,same,different",
        metavar="LIST",
        help="each sampling[:keep[:draw]], such as rows or same:0.2:with_replacement (%(default)s)",
    )
    add("--seeds", type=_positive, default=3, metavar="N", help="training runs of each method (%(default)s)")
    add("--seed", type=int, default=0, help="of the first run; the others count up (%(default)s)")
    add(
        "--threads",
        type=_positive,
        default=1,
        metavar="N",
        help="CPU threads; so small a network needs no more than %(default)s",
    )
    add("--out", type=Path, default=Path("build/demo"), metavar="DIR", help="for PNG and JSON (%(default)s)")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Runs the demo; wrong arguments and missing data end the process with one line and exit code 2."""
    try:
        from . import console, plot

        sketches = parse_sketches(args.sketches, args.keep)
        digits, config = data_and_config(args)
        args.out.mkdir(parents=True, exist_ok=True)
    except ModuleNotFoundError as error:
        args.parser.error(f"{error}; the demo's requirements: pip install 'rad_kernels[demo]'")
    except (ValueError, OSError) as error:
        args.parser.error(str(error))
    # The profiler behind the step peaks logs to stderr unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    torch.set_num_threads(args.threads)

    methods = choose_methods(sketches, args.batch, digits)
    shown = console.console()
    outcomes = [Outcome(method, cost, []) for method, cost in zip(methods, costs(methods, digits))]
    with console.runs_shown(shown, len(methods) * args.seeds, config["steps"]) as runs:
        for outcome in outcomes:
            for seed in range(args.seed, args.seed + args.seeds):
                advance = runs.start(f"{outcome.method.name}, seed {seed}")
                curve = train(outcome.method, digits, args.batch, config["steps"], seed, advance)
                outcome.curves.append(curve)

    content = as_dict(config, outcomes)
    console.print_result(shown, content)
    picture, record = args.out / "demo.png", args.out / "demo.json"
    plot.draw(content, picture)
    record.write_text(to_json(content))
    shown.print(f"written: {picture}, {record}")
    return 0


def parse_sketches(text: str, keep: str) -> list[Sketch]:
    """Sketches of a comma-separated list; one without its own keep gets `keep`.

    Raises:
        ValueError: the list is empty or repeats itself, or an entry is no sketch.
    """
    names = [name.strip() for name in text.split(",")]
    sketches = [Sketch.parse(name if ":" in name else f"{name}:{keep}") for name in names]
    if len(set(sketches)) < len(sketches):
        raise ValueError(f"sketches must differ, got {text!r}")
    return sketches


def choose_methods(sketches: list[Sketch], batch: int, digits: Digits) -> list[Method]:
    """Exact gradients, then for each keep the sketches and the small batch that keeps no more bytes."""

    def retained(size: int) -> int:
        return retained_bytes(exact(size), digits)

    methods = [exact(batch)]
    for keep in dict.fromkeys(sketch.keep for sketch in sketches):
        group = [sketched(batch, sketch) for sketch in sketches if sketch.keep == keep]
        limit = max(retained_bytes(method, digits) for method in group)
        methods += [small_batch(largest_batch_within(limit, batch, retained), keep), *group]
    return methods


def data_and_config(args: argparse.Namespace) -> tuple[Digits, dict[str, Any]]:
    """The standardised digits, and what the JSON says about them and the runs.

    Raises:
        FileNotFoundError, ValueError: as the loaders; also for a batch larger than the training set.
    """
    digits = load_digits_8x8() if args.data is None else load_mnist(args.data)
    images, height, width = digits.train_images.shape
    if args.batch > images:
        raise ValueError(f"batch must be at most the {images} training images, got {args.batch}")
    steps = args.steps if args.epochs is None else args.epochs * (images // args.batch)
    config = {
        "network": "-".join(map(str, (height * width, *HIDDEN, CLASSES))),
        "data": {
            "name": "scikit-learn's 8x8 digits" if args.data is None else "MNIST idx files",
            "train": images,
            "test": len(digits.test_images),
            "size": f"{height}x{width}",
        },
        "batch": args.batch,
        "steps": steps,
        "seeds": args.seeds,
        "seed": args.seed,
        "evaluations": min(EVALUATIONS, steps),
        "final_evaluations": min(FINAL_EVALUATIONS, steps),
    }
    return standardised(digits), config


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value

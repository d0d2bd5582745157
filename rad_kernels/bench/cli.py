"""The command line of the benchmarks: arguments, their checks, and the order in which things happen."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..data import load_digits_8x8, load_mnist
from ..demo.network import CLASSES, HIDDEN, standardised
from ..sketch import Sketch
from .cases import DTYPES
from .limits import Limits, measured_limits
from .result import Report, Row, environment
from .runner import CLOCKS, clock_for, measured
from .suites import SUITES
from .timing import Rounds
from .trial import Setting
from .variance import frontier_sketches, minibatch_noise, trained_activations, variance_row

DESCRIPTION = """\
Times the sketches beside torch, a composition of torch's operators, checkpointing and the layer of the
paper's authors, all taking turns in one process, and compares them with what memory bandwidth and arithmetic
allow. The suite `variance` measures the noise of weight gradients instead, on a trained network."""

VARIANCE = "variance"
TRAINING_STEPS = 300
BATCH = 150
KEYS = 200  # samples a sketch; their standard error is reported


def register(commands: Any) -> None:
    """Adds the sub-command `bench`."""
    parser = commands.add_parser(
        "bench",
        help="time, memory and variance of the sketches, beside torch and others",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add(
        "--suite",
        default="all",
        metavar="LIST",
        help=f"comma-separated, of {', '.join(SUITES)}, {VARIANCE}; all is all but {VARIANCE} (%(default)s)",
    )
    add("--quick", action="store_true", help="one small case a suite and few rounds")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (%(default)s)")
    add("--dtype", default="float32", metavar="LIST", help=f"of {', '.join(DTYPES)} (%(default)s)")
    add("--threads", type=_positive, metavar="N", help="CPU threads (torch's default)")
    add("--clock", choices=CLOCKS, default="wall", help="on the CPU: passing or processor time (%(default)s)")
    add("--seconds", type=_seconds, default=4.0, metavar="S", help="about this long a case (%(default)s)")
    add("--keep", default="0.1", help="share kept where a sketch does not say it (%(default)s)")
    add(
        "--sketches", metavar="LIST", help="such as rows:0.1,different:0.1:4bit (default: a choice at --keep)"
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"{VARIANCE}: MNIST's idx files (default: embedded 8x8 digits)",
    )
    add(
        "--peers",
        action="store_true",
        help="also torch.compile, checkpointing, index_select + matmul and the authors' layer",
    )
    add("--json", type=Path, metavar="FILE", help="write the report there")
    add("--plot", type=Path, metavar="FILE", help="draw a PNG there")
    add("--roofline", type=Path, metavar="FILE", help="draw a PNG there: achieved rates under the limits")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Runs the suites; wrong arguments end the process with one line and exit code 2."""
    try:
        from . import console, plot, roofline

        suites = parse_suites(args.suite)
        dtypes = parse_dtypes(args.dtype)
        keep = Sketch.parse(f"rows:{args.keep}").keep
        chosen = parse_sketches(args.sketches, keep)
        digits = load_mnist(args.data) if args.data else load_digits_8x8() if VARIANCE in suites else None
        for path in filter(None, (args.json, args.plot, args.roofline)):
            path.parent.mkdir(parents=True, exist_ok=True)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: torch sees no CUDA device")
    except ModuleNotFoundError as error:
        args.parser.error(f"{error}; the benchmarks' requirements: pip install 'rad_kernels[bench]'")
    except (ValueError, TypeError, OSError) as error:
        args.parser.error(str(error))
    # The profiler behind the peaks logs to stderr unless told otherwise before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    if args.threads:
        torch.set_num_threads(args.threads)
    shown = console.console()
    device = torch.device(args.device)
    facts = environment(device)
    rows: list[Row] = []
    limits: dict[str, Limits] = {}
    timed = [name for name in suites if name != VARIANCE]
    for dtype in dtypes if timed else []:
        sketches = tuple(chosen or default_sketches(keep))
        setting = Setting(device, dtype, keep, sketches, args.quick, args.peers)
        rounds = Rounds(0.5 if args.quick else args.seconds)
        limit = measured_limits(device, dtype, clock_for(device, args.clock), args.quick)
        limits[str(dtype).removeprefix("torch.")] = limit
        for name in timed:
            for trial in SUITES[name](setting):
                clock = clock_for(device, args.clock, trial.host_time)
                found = measured(trial, setting, clock, rounds, limit)
                console.print_rows(shown, found)
                rows += found
    settings = {"clock": args.clock, "keep": keep, "quick": args.quick, "seconds_a_case": args.seconds}
    variances = ()
    if digits is not None and VARIANCE in suites:
        variances, settings = _variances(digits, args, chosen)
    facts["load_after"] = round(os.getloadavg()[0], 2)
    report = Report(
        facts, settings, {name: asdict(limit) for name, limit in limits.items()}, tuple(rows), variances
    )
    if variances:
        console.print_variances(shown, report)
    console.print_notes(shown, report)
    if args.json:
        args.json.write_text(report.to_json(), encoding="utf-8")
    if args.plot:
        plot.draw(report, args.plot)
    if args.roofline:
        roofline.draw(report, args.roofline)
    return 0


def _variances(
    digits: Any, args: argparse.Namespace, chosen: Sequence[Sketch] | None
) -> tuple[Any, dict[str, Any]]:
    pixels = digits.train_images[0].numel()
    steps = 20 if args.quick else TRAINING_STEPS
    activations = trained_activations(standardised(digits), steps, BATCH)
    keys = range(0, 1000 * (10 if args.quick else KEYS), 1000)
    rows = tuple(variance_row(sketch, activations, keys) for sketch in chosen or frontier_sketches())
    settings = {
        "network": "-".join(map(str, (pixels, *HIDDEN, CLASSES))),
        "data": "MNIST" if args.data else "8x8 digits",
        "training_steps": steps,
        "batch": BATCH,
        "samples_a_sketch": len(keys),
        "minibatch_noise": float(f"{minibatch_noise(activations):.5g}"),
    }
    return rows, settings


def parse_suites(text: str) -> list[str]:
    """Raises ValueError for an unknown suite."""
    names = list(SUITES) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in (*SUITES, VARIANCE):
            raise ValueError(f"suite must be of {', '.join(SUITES)}, {VARIANCE} or all; got {name!r}")
    return list(dict.fromkeys(names))


def parse_dtypes(text: str) -> list[torch.dtype]:
    """Raises ValueError for an unknown dtype."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in DTYPES:
            raise ValueError(f"dtype must be of {', '.join(DTYPES)}; got {name!r}")
    return [DTYPES[name] for name in dict.fromkeys(names)]


def parse_sketches(text: str | None, keep: float) -> list[Sketch] | None:
    """Sketches of a comma-separated list; a bare sampling gets ``keep``. Raises ValueError for a bad one."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(dict.fromkeys(Sketch.parse(name if ":" in name else f"{name}:{keep!r}") for name in names))


def default_sketches(keep: float) -> list[Sketch]:
    """Every sampling, the norm draw, dither and their composition."""
    samplings = ("rows", "same", "different", "tile_rows", "project")
    return [
        *(Sketch(keep, sampling) for sampling in samplings),
        Sketch(keep, "project", "hadamard"),
        Sketch(keep, "rows", "norm"),
        Sketch(keep, "rows", bits=4),
        Sketch(keep, "different", bits=4),
        Sketch(1, bits=8),
        Sketch(1, bits=4),
        Sketch(1, bits=1),
    ]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"must be between 0 and 3600, got {text}")
    return value

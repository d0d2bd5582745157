"""The sub-command `reproduce fair`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...data import Digits
from ...demo.result import environment
from .._runs import Store, write_json
from ..tasks import TASKS, Task, samples
from .case import Plan
from .methods import Method, budget, methods
from .presets import PLANS

DESCRIPTION = """\
Compares ways to train in less memory: exact gradients, a smaller batch, checkpointing, offloading, the
layers of the paper's authors, and sketches, each as it comes and within the same measured bytes. Every method
runs in a process of its own and uses the best of a few learning rates. Methods that are done are not done
again."""


class CaseFailed(RuntimeError):
    """The process of a method ended with an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    add = parser.add_argument
    add(
        "--preset",
        choices=tuple(PLANS),
        default="ci",
        help="ci: seconds, on the embedded digits; desk: minutes, on MNIST and CIFAR-10; paper: hours "
        "(%(default)s)",
    )
    add("--data", type=Path, metavar="DIR", help="MNIST's idx files and CIFAR-10 in any of its forms")
    add(
        "--networks",
        default=None,
        metavar="LIST",
        help="fc (MNIST), cnn (CIFAR-10) or fc,cnn (default: all of the preset)",
    )
    add(
        "--out",
        type=Path,
        default=Path("build") / "reproduce",
        metavar="DIR",
        help="for results (%(default)s)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Wrong arguments and missing data end the process with one line and exit code 2."""
    try:
        from ...demo import console
        from . import plot
        from .table import print_result

        torch.set_num_threads(1)
        plans = chosen(args.preset, args.networks)
        data = {name: samples(TASKS[name], TASKS[name].presets[args.preset], args.data) for name in plans}
        args.out.mkdir(parents=True, exist_ok=True)
        shown = console.console()
        for name, plan in plans.items():
            task = TASKS[name]
            allowed = budget(task, plan.batch, data[name])
            found = methods(task, plan.batch, data[name], allowed)
            if args.preset == "ci":
                found = one_of_each(found)
            store = Store(args.out / f"fair-{name}-{args.preset}")
            with console.runs_shown(shown, len(found), 1) as progress:
                rows = measured(task, found, plan, data[name], store, progress.start)
            content = as_dict(task, args.preset, plan, data[name], allowed, rows)
            path = args.out / f"fair-{name}-{args.preset}.json"
            write_json(path, content)
            plot.draw(content, path.with_suffix(".png"))
            print_result(shown, content)
            shown.print(f"written: {path} and {path.with_suffix('.png').name}", soft_wrap=True)
    except CaseFailed as error:
        print(error, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        args.parser.error(f"{error}; the requirements of the figures: pip install 'rad_kernels[demo]'")
    except (ValueError, OSError) as error:
        args.parser.error(str(error))
    return 0


def chosen(preset: str, networks: str | None) -> dict[str, Plan]:
    """The plans of a comma-separated list of networks.

    Raises:
        ValueError: a name that the preset does not have.
    """
    plans = PLANS[preset]
    names = list(plans) if networks is None else [name.strip() for name in networks.split(",")]
    for name in names:
        if name not in plans:
            raise ValueError(f"networks of preset {preset} must be of {', '.join(plans)}, got {name!r}")
    return {name: plans[name] for name in names}


def one_of_each(found: list[Method]) -> list[Method]:
    """Exact gradients, the smaller batch, and of every other way its last."""
    last = {method.way: method for method in found}
    return [found[0], *last.values()]


def measured(
    task: Task,
    found: list[Method],
    plan: Plan,
    digits: Digits,
    store: Store,
    announce: Callable[[str], Callable[[], None]],
) -> list[dict[str, Any]]:
    """One row a method: measured in its own process, or taken from the store."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.pt"
        torch.save([tensor.contiguous() for tensor in digits], data)
        for method in found:
            settings = {
                "task": task.name,
                "method": method.to_dict(),
                "plan": asdict(plan),
                "images": [len(digits.train_images), len(digits.test_images), digits.train_images.shape[1]],
            }
            advance = announce(method.name)

            def work(settings: dict[str, Any] = settings) -> dict[str, Any]:
                return isolated({**settings, "data": str(data)}, Path(folder))

            rows.append(store.get(method.name, settings, work))
            advance()
    return rows


def isolated(order: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `case` finds in a process of its own.

    Raises:
        CaseFailed: the process failed; the message is the end of what it said.
    """
    asked, answer = folder / "order.json", folder / "result.json"
    write_json(asked, order)
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"{__package__}.case", str(asked), str(answer)]
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        end = "\n".join(finished.stderr.splitlines()[-10:])
        raise CaseFailed(f"{order['method']['name']} ended with {finished.returncode}:\n{end}")
    return json.loads(answer.read_text(encoding="utf-8"))


def as_dict(
    task: Task, preset: str, plan: Plan, digits: Digits, allowed: int, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "environment": environment(),
        "task": task.name,
        "title": task.title,
        "data": task.data_name if task.presets[preset].real else "8x8 digits",
        "images": [len(digits.train_images), len(digits.test_images)],
        "preset": preset,
        "plan": asdict(plan),
        "allowed_bytes": allowed,
        "rows": rows,
    }

"""A GPT trained in a quarter of its activation memory: planned by rad_kernels.fit, beside exact gradients, a
smaller batch and uniform settings in the same bytes. Writes a JSON file and a plot."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpt
import torch
from common import text
from torch import Tensor, nn

from rad_kernels import Sketch, convert, fit, memory, restore
from rad_kernels.demo.result import environment, to_json

EVALUATED = 64  # windows of the text on which the training loss is taken
POINTS = 20


def make(vocabulary: int, args: argparse.Namespace) -> gpt.GPT:
    torch.manual_seed(args.seed)
    return gpt.GPT(vocabulary, args.width, args.depth)


def retained(model: nn.Module, x: Tensor, y: Tensor) -> int:
    return memory.saved_bytes(lambda: gpt.loss(model, x, y)).total


def uniform_keep(make_model: Callable[[], nn.Module], x: Tensor, y: Tensor, budget: int) -> float:
    """The largest keep in hundredths with which all layers fit, norms and activations in 4 bits."""
    low, high = 1, 90
    while low < high:
        middle = (low + high + 1) // 2
        model = uniform(make_model(), middle / 100, x)
        low, high = (middle, high) if retained(model, x, y) <= budget else (low, middle - 1)
    return low / 100


def uniform(model: nn.Module, keep: float, x: Tensor) -> nn.Module:
    convert(model, Sketch(keep), norm_bits=4, act_bits=4, example_inputs=x, recompute="attention")
    return model


def train(model: nn.Module, part: float, args: argparse.Namespace) -> list[float]:
    """Loss on fixed windows of the text at POINTS steps; ``part`` of each minibatch is used."""
    batches, _ = text(args, gpt.LENGTH)
    few = argparse.Namespace(**{**vars(args), "batch": EVALUATED, "seed": 12345})
    ex, ey = next(text(few, gpt.LENGTH)[0])
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    losses = []
    for number in range(1, args.steps + 1):
        x, y = next(batches)
        used = max(1, round(len(x) * part))
        optimizer.zero_grad()
        gpt.loss(model, x[:used], y[:used]).backward()
        optimizer.step()
        if number % max(args.steps // POINTS, 1) == 0:
            model.eval()
            with torch.no_grad():
                losses.append(float(gpt.loss(model, ex, ey)))
            model.train()
    return losses


def measure(args: argparse.Namespace) -> dict[str, Any]:
    (x, y), vocabulary = next(text(args, gpt.LENGTH)[0]), text(args, gpt.LENGTH)[1]
    whole = retained(make(vocabulary, args), x, y)
    budget = int(whole * args.budget)
    keep = uniform_keep(lambda: make(vocabulary, args), x, y, budget)
    part = max(1, round(len(x) * args.budget))
    plan = None
    rows: dict[str, dict[str, Any]] = {}
    names = ("exact", f"exact, batch {part} of {len(x)}", f"uniform rows:{keep}", "planned")
    for seed in range(args.seeds):
        args.seed = seed
        for name in names:
            model: nn.Module = make(vocabulary, args)
            if name == "planned":
                plan = fit(model, (x, y), args.budget, loss=gpt.loss)
            elif name.startswith("uniform"):
                model = uniform(model, keep, x)
            used = part if "batch" in name else len(x)
            row = rows.setdefault(name, {"retained_bytes": retained(model, x[:used], y[:used]), "losses": []})
            row["losses"].append(train(model, used / len(x), args))
            print(
                f"seed {seed}  {name:24} {row['retained_bytes']:>12,} bytes  loss {row['losses'][-1][-1]:.4f}"
            )
            if name in ("planned",) or name.startswith("uniform"):
                restore(model)
    assert plan is not None
    config = {
        key: getattr(args, key) for key in ("budget", "steps", "batch", "width", "depth", "lr", "seeds")
    }
    config |= {
        "data": args.data.name if args.data else "synthetic",
        "exact_bytes": whole,
        "budget_bytes": budget,
    }
    for row in rows.values():
        finals = [losses[-1] for losses in row["losses"]]
        row["final"] = round(statistics.fmean(finals), 4)
        row["spread"] = round(statistics.stdev(finals), 4) if len(finals) > 1 else 0.0
        row["losses"] = [[round(value, 4) for value in losses] for losses in row["losses"]]
    return {
        "config": config,
        "environment": environment(),
        "rows": rows,
        "plan": plan.to_dict(),
        "table": str(plan),
    }


def draw(content: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from rad_kernels.demo.plot import COLOURS

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    config = content["config"]
    for (name, row), colour in zip(content["rows"].items(), COLOURS):
        points = len(row["losses"][0])
        steps = [config["steps"] // points * (i + 1) for i in range(points)]
        for seed, losses in enumerate(row["losses"]):
            label = f"{name}: {row['retained_bytes']:,} bytes" if seed == 0 else None
            axes.plot(steps, losses, color=colour, label=label, linewidth=1)
    axes.set(xlabel="step", ylabel="training loss (nats a character)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help="a text file (default: synthetic)")
    add("--budget", type=float, default=0.25, help="share of the exact bytes (%(default)s)")
    add("--steps", type=int, default=400, metavar="N", help="updates (%(default)s)")
    add("--batch", type=int, default=16, metavar="N", help="texts of an update (%(default)s)")
    add("--lr", type=float, default=2e-3, help="of AdamW (%(default)s)")
    add("--width", type=int, default=64, help="of the network (%(default)s)")
    add("--depth", type=int, default=2, help="blocks (%(default)s)")
    add("--seeds", type=int, default=3, metavar="N", help="trainings of each method (%(default)s)")
    add("--json", type=Path, metavar="F", help="where the figures go")
    add("--plot", type=Path, metavar="F", help="where the plot goes")
    args = parser.parse_args(argv)
    args.seed = 0
    content = measure(args)
    print(content["table"])
    if args.json is not None:
        args.json.write_text(to_json(content), encoding="utf-8")
    if args.plot is not None:
        draw(content, args.plot)
    return content


if __name__ == "__main__":
    main()

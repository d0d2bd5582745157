"""The paper's reaction-diffusion problem (section 5): seven source parameters fitted through 40,961 steps, of
whose states a sample is kept."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import functional, memory
from ..demo.result import environment
from ..sketch import Sketch, saved_nbytes
from ._runs import Store, write_json

if TYPE_CHECKING:
    from .console import Runs

    Progress = Callable[[int, int], AbstractContextManager[Runs]]

SIDE = 33  # cells; the box is 1 x 1
STEPS_A_UNIT = 4096  # of time
DIFFUSION = 0.25
LEARNING_RATE = 1e-2
STEADY_SOURCE = 4.932  # the constant source that balances diffusion
PARAMETERS = 7
FRACTIONS = (1.0, 0.1, 0.01, 0.005, 0.002, 0.001)
# Where each parameter stands among (1, sin pi t, cos pi t) x (1, sin 2 pi x, cos 2 pi x).
PLACES = (0, 3, 6, 4, 7, 5, 8)


@dataclass(frozen=True)
class Preset:
    """steps of the simulation, updates of the parameters, draws of which the noise is measured."""

    steps: int
    iterations: int
    fractions: tuple[float, ...]
    draws: int


# The paper's 10 units of time are 40,961 steps, because its code counts both ends.
PRESETS = {
    "ci": Preset(1024, 12, (1.0, 0.1, 0.01), 4),
    "desk": Preset(40_961, 100, FRACTIONS, 16),
    "paper": Preset(40_961, 800, FRACTIONS, 16),
}


def sketch_of(fraction: float) -> Sketch:
    return Sketch(1) if fraction == 1 else Sketch(fraction, "different")


class Problem:
    """The published equation, target and loss: ``mean over cells of dt sum_t (u_{t+1} - T(t dt))^2``."""

    def __init__(self, steps: int) -> None:
        self.steps, self.dt = steps, 1 / STEPS_A_UNIT
        x = torch.linspace(0, 1, SIDE, dtype=torch.float64)
        y, x = torch.meshgrid(x, x, indexing="ij")
        initial = torch.sin(math.pi * x) * torch.sin(math.pi * y)
        perturbation = 0.25 * torch.sin(2 * math.pi * x) * torch.sin(math.pi * y)
        self.initial = initial.float()
        self.target = torch.stack([initial, perturbation, torch.zeros_like(initial)]).float()
        spatial = [torch.ones_like(x), torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x)]
        self.spatial = torch.stack(spatial).float().view(3, -1)
        t = math.pi * torch.arange(2 * STEPS_A_UNIT, dtype=torch.float64) * self.dt  # one period
        self.clock = torch.stack([torch.ones_like(t), torch.sin(t), torch.cos(t)], 1).float()
        self.places = torch.tensor(PLACES)

    def start(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        parameters = 0.2 * torch.rand(PARAMETERS, generator=generator) - 0.1
        parameters[0] = STEADY_SOURCE
        return parameters.requires_grad_()

    def simulate(self, parameters: Tensor, sketch: Sketch, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """(last state, loss)"""
        mixed = parameters.new_zeros(9).scatter(0, self.places, parameters).view(3, 3)
        last, misfit = functional.reaction_diffusion(
            self.initial,
            (mixed @ self.spatial).view(3, SIDE, SIDE),
            self.target,
            self.clock,
            steps=steps or self.steps,
            dt=self.dt,
            diffusion=DIFFUSION,
            spacing=1 / (SIDE - 1),
            sketch=sketch,
        )
        return last, misfit.mean()

    def gradient(self, parameters: Tensor, sketch: Sketch) -> Tensor:
        return torch.autograd.grad(self.simulate(parameters, sketch)[1], parameters)[0]

    def all_states(self) -> int:
        """Bytes of every state, boundary and all: what plain reverse mode keeps."""
        return self.steps * SIDE * SIDE * self.initial.dtype.itemsize

    def formula(self, fraction: float) -> int:
        """Bytes that backward needs: the sample, the fields it reads and the two factors of the source."""
        pack = saved_nbytes(self.steps, (SIDE - 2) ** 2, torch.float32, sketch_of(fraction))
        source = self.target.nbytes
        fields = (self.initial, self.target, self.clock, self.spatial, self.places)
        return pack + source + sum(tensor.nbytes for tensor in fields)


def noise(problem: Problem, fraction: float, draws: int) -> float:
    """Root mean square of the gradient estimate's error at the start, relative to the gradient."""
    parameters = problem.start(0)
    exact = problem.gradient(parameters, Sketch(1))
    torch.manual_seed(1)
    errors = [(problem.gradient(parameters, sketch_of(fraction)) - exact).norm() for _ in range(draws)]
    return float(torch.stack(errors).square().mean().sqrt() / exact.norm())


def fit(problem: Problem, fraction: float, iterations: int, advance: Callable[[], None]) -> dict[str, Any]:
    torch.manual_seed(0)
    parameters, sketch = problem.start(0), sketch_of(fraction)
    optimiser = torch.optim.Adam([parameters], LEARNING_RATE)
    losses: list[float] = []
    began = time.process_time()
    for _ in range(iterations):
        optimiser.zero_grad()
        loss = problem.simulate(parameters, sketch)[1]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        advance()
    seconds = time.process_time() - began
    with torch.no_grad():
        losses.append(problem.simulate(parameters, Sketch(1))[1].item())
    return {"losses": losses, "parameters": parameters.tolist(), "cpu_s": round(seconds, 2)}


def case(problem: Problem, fraction: float, preset: Preset, advance: Callable[[], None]) -> dict[str, Any]:
    parameters, sketch = problem.start(0), sketch_of(fraction)
    measured = memory.saved_bytes(lambda: problem.simulate(parameters, sketch)[1]).total
    return {
        "fraction": fraction,
        "formula": problem.formula(fraction),
        "measured": measured,
        "share_of_all_states": measured / problem.all_states(),
        "noise": noise(problem, fraction, preset.draws) if fraction < 1 else 0.0,
        **fit(problem, fraction, preset.iterations, advance),
    }


def surfaces(problem: Problem, parameters: list[float]) -> dict[str, Any]:
    """State before and after the fit, and target, at 85 % of the time: sin(pi t) = 1 there for ten units."""
    steps = int(0.85 * (problem.steps - 1)) + 1
    now = problem.clock[(steps - 1) % len(problem.clock)]
    with torch.no_grad():
        before = problem.simulate(problem.start(0).detach(), Sketch(1), steps)[0]
        after = problem.simulate(torch.tensor(parameters), Sketch(1), steps)[0]
        target = (now[:, None, None] * problem.target).sum(0)
    found = {"target": target, "before": before, "after": after}
    return {
        "time": (steps - 1) * problem.dt,
        **{name: [[round(v, 5) for v in row] for row in u.tolist()] for name, u in found.items()},
    }


def measure(name: str, out: Path, progress: Progress) -> dict[str, Any]:
    """Every fraction of a preset; those that are done are read from ``out``/runs."""
    preset = PRESETS[name]
    problem = Problem(preset.steps)
    store = Store(out / "runs")
    settings = {**asdict(preset), "version": 1}
    del settings["fractions"]
    with progress(len(preset.fractions), len(preset.fractions) * preset.iterations) as runs:

        def row(fraction: float) -> dict[str, Any]:
            case_name = f"pde-{name}-{fraction:g}"
            return store.get(
                case_name, settings, lambda: case(problem, fraction, preset, runs.start(case_name))
            )

        # The quick ones first: what keeps everything takes as long as all others together.
        done = {fraction: row(fraction) for fraction in reversed(preset.fractions)}
    rows = [done[fraction] for fraction in preset.fractions]
    shown = next(row for row in rows if row["fraction"] == 0.01)
    return {
        "environment": environment(),
        "preset": {"name": name, **asdict(preset)},
        "all_states": problem.all_states(),
        "rows": rows,
        "surfaces": surfaces(problem, shown["parameters"]),
    }


HEADER = (
    "states kept",
    "bytes for backward",
    "of all states",
    "gradient noise",
    "loss",
    "processor time, s",
)


def table(content: dict[str, Any]) -> list[tuple[str, ...]]:
    """Header and a line for each fraction. The loss is that after the last update."""
    lines: list[tuple[str, ...]] = [HEADER]
    for row in content["rows"]:
        lines.append(
            (
                f"{row['fraction']:g}",
                f"{row['measured']:,}",
                f"{100 * row['share_of_all_states']:.3g} %",
                f"{100 * row['noise']:.2g} %" if row["fraction"] < 1 else "exact",
                f"{row['losses'][-1]:.4g}",
                f"{row['cpu_s']:.1f}",
            )
        )
    return lines


def draw(content: dict[str, Any], path: Path) -> None:
    """Loss by update for each fraction, and the three surfaces."""
    import numpy as np
    from matplotlib.figure import Figure

    from ..bench.plot import COLOURS

    figure = Figure(figsize=(14, 8), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.1, 1))
    curves = figure.add_subplot(grid[0, :])
    for number, row in enumerate(content["rows"]):
        label = f"{row['fraction']:g} of the states, {row['measured'] / 1e6:.2f} MB"
        curves.plot(row["losses"], color=COLOURS[number % len(COLOURS)], label=label, linewidth=1.4)
    curves.set(xlabel="updates", ylabel="loss", yscale="log")
    curves.grid(which="both", alpha=0.25)
    curves.legend(fontsize="small")
    found = content["surfaces"]
    x, y = np.meshgrid(*2 * [np.linspace(0, 1, SIDE)])
    titles = {
        "target": "target",
        "before": "state before the fit",
        "after": "after it, with 0.01 kept",
    }
    for place, (name, title) in enumerate(titles.items()):
        axes: Any = figure.add_subplot(grid[1, place], projection="3d")
        axes.plot_surface(x, y, np.array(found[name]), cmap="viridis", linewidth=0)
        axes.set(zlim=(0, 1.25), xlabel="x", ylabel="y")
        axes.set_title(f"{title}, t = {found['time']:.3g}", fontsize="medium")
    steps, iterations = content["preset"]["steps"], content["preset"]["iterations"]
    figure.suptitle(f"Reaction and diffusion: {steps:,} steps on 33 x 33 cells, {iterations} updates")
    figure.savefig(path)


def run(args: argparse.Namespace) -> None:
    """Measures a preset, writes ``out``/pde-PRESET.json and .png and prints the table."""
    from . import console

    shown = console.console()
    content = measure(args.preset, args.out, console.progress(shown))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"pde-{args.preset}.json"
    write_json(path, content)
    draw(content, path.with_suffix(".png"))
    console.print_table(shown, "reaction and diffusion", table(content))
    shown.print(f"written: {path} and {path.with_suffix('.png').name}", soft_wrap=True)

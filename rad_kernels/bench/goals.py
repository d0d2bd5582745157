"""What the CUDA kernels are meant to reach on one H200 in bfloat16, and what a report says they do reach."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .cases import DTYPES
from .model import fitting_name
from .result import Report, Row
from .trial import BASELINE, COMPILED

DTYPE = "bfloat16"
NOT_MEASURED = "not measured"


class Measure(Enum):
    """How ``provider`` stands to ``against`` in one case."""

    TIME = "times the time"  # at most the bound
    SPEED = "times as fast"  # at least the bound
    BANDWIDTH = "of the bandwidth"  # at least the bound


@dataclass(frozen=True)
class Goal:
    suite: str
    case: str
    provider: str
    against: str
    measure: Measure
    bound: float

    def value(self, report: Report) -> float | None:
        """None where the report lacks one of the two rows. Ratios are of the medians."""
        mine, other = (self._row(report, name) for name in (self.provider, self.against))
        if mine is None or other is None:
            return None
        if self.measure is Measure.TIME:
            return mine.median / other.median
        if self.measure is Measure.SPEED:
            return other.median / mine.median
        if mine.moved is None or other.moved is None:
            return None
        return (mine.moved / mine.median) / (other.moved / other.median)

    def met(self, value: float) -> bool:
        return value <= self.bound if self.measure is Measure.TIME else value >= self.bound

    def _row(self, report: Report, provider: str) -> Row | None:
        wanted = self.suite, self.case, provider, DTYPE
        return next((r for r in report.rows if (r.suite, r.case, r.provider, r.dtype) == wanted), None)


def _products() -> list[Goal]:
    goals = []
    speeds = {8192: (10, 7, 3.4, 1.8), 32768: (14, 8, 3.6, 1.85)}
    for tokens, bounds in speeds.items():
        for keep, bound in zip((0.05, 0.1, 0.25, 0.5), bounds):
            case = f"{tokens}x4096->4096"
            goals.append(Goal("wgrad", case, f"rows:{keep}", BASELINE, Measure.SPEED, bound))
    for keep, bound in zip((0.05, 0.1, 0.25, 0.5), (0.72, 0.74, 0.79, 0.875)):
        goals.append(Goal("linear", "8192x4096->4096", f"rows:{keep}", BASELINE, Measure.TIME, bound))
    for keep, bound in zip((0.05, 0.1, 0.25, 0.5), speeds[8192]):
        goals.append(Goal("wgrad", "8192x8192->8192", f"rows:{keep}", BASELINE, Measure.SPEED, bound))
    case = "8192x4096->4096"
    goals.append(Goal("wgrad", case, "tile_rows:0.1", "rows:0.1", Measure.TIME, 1.05))
    goals.append(Goal("wgrad", case, "rows:1.0 fused", BASELINE, Measure.TIME, 1.05))
    goals += [
        Goal("wgrad", case, f"different:{keep}", BASELINE, Measure.TIME, 1.06) for keep in (0.1, 0.25, 0.5)
    ]
    for keep, bound in ((0.1, 7.0), (0.25, 3.2)):
        case = "256x256x28^2->256 k3"
        goals.append(Goal("conv_wgrad", case, f"rows:{keep}", BASELINE, Measure.SPEED, bound))
    return goals


def _memory() -> list[Goal]:
    packs = ("rows:0.1", "tile_rows:0.1", "different:0.1", "rows:0.1:4bit", "rows:1.0:4bit")
    goals = [Goal("pack", "32768x4096", name, "copy", Measure.BANDWIDTH, 0.9) for name in packs]
    operators = (("relu", "1 bit", 0.85), ("gelu", "4 bit", 0.95), ("dropout", "seed only", 0.85))
    for name, provider, bound in operators:
        goals.append(Goal("elementwise", f"{name} 32768x8192", provider, BASELINE, Measure.TIME, bound))
    return goals


def _models() -> list[Goal]:
    shape, dtype = (16, 1024, 1024), DTYPES[DTYPE]
    mlp, block = (f"{name} {'x'.join(map(str, shape))}" for name in ("mlp", "block"))
    return [
        Goal("model", mlp, fitting_name(shape, dtype), "checkpoint", Measure.TIME, 0.62),
        Goal("model", block, f"rows:0.1 {COMPILED}", COMPILED, Measure.TIME, 1.0),
    ]


GOALS = (*_products(), *_memory(), *_models())


def table(report: Report | None) -> list[tuple[str, ...]]:
    """Lines of a table; without a report, or without a row, the value says that it was not measured."""
    lines: list[tuple[str, ...]] = [("suite", "case", "what", "goal", "measured")]
    for goal in GOALS:
        sign = "≤" if goal.measure is Measure.TIME else "≥"
        what = f"`{goal.provider}` against {goal.against}, {goal.measure.value}"
        value = goal.value(report) if report else None
        shown = NOT_MEASURED if value is None else f"{value:.3g}{'' if goal.met(value) else ' (missed)'}"
        lines.append((goal.suite, goal.case, what, f"{sign} {goal.bound:g}", shown))
    return lines

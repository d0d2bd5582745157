"""Fit a model's training step into a number of bytes with the least noise in its gradients."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import Module

from ..convert import Report, convert, restore
from ..convert.choose import Pattern
from ..convert.probe import Step
from ..convert.recompute import recomputable
from ..profile.predict import device_of
from ..profile.step import Observed, run_step
from ..sketch import Sketch
from . import clock
from .knapsack import Problem, Reals, choose
from .layers import LayerNoise, Setting, kind_of
from .probe import Found, probe
from .result import Plan, PlanRow

SETTINGS = 6  # different ones in a plan: compiled blocks are compiled once for each combination
ATTEMPTS = 5
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_KEEPS = (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09, 0.0625, 0.03)
SKETCHES = (
    *(Sketch(1, bits=bits) for bits in (8, 4, 2, 1)),
    *(Sketch(keep, bits=bits) for bits in (4, 2) for keep in _KEEPS),
    *(Sketch(keep) for keep in (0.5, 0.25, 0.1, 0.05)),
    *(Sketch(keep, "different") for keep in (0.5, 0.25, 0.1)),
)


def fit(
    model: Module,
    inputs: object,
    budget: str | float,
    *,
    loss: Callable[..., Any] | None = None,
    minimise: str = "variance",
    noise: float = 1.0,
    recompute: str | None = "auto",
    exclude: Pattern | Iterable[Pattern] | None = None,
    tangents: int = 4,
) -> Plan:
    """Convert a model, in place, so that a training step stays within a budget of memory.

    One exact step is run to see what each layer retains and, by the closed forms of docs/maths.md, what each
    setting would add to the variance of the gradients. The settings of all layers are then chosen together,
    at most six different ones, applied by ``convert``, and the step is measured: the model never ends above
    the budget. ``rad_kernels.restore`` takes everything back.

    Args:
        model: any module that is not converted yet. If nothing fits it is left as it was.
        inputs: of one step: a tensor or a tuple. The noise is that of steps like this one.
        budget: a number of bytes such as ``"8GiB"``, for the peak of a step (forward and backward, gradients
            included) above what is allocated before it; or a share in (0, 1) of the bytes that a step of the
            model as it is retains for backward.
        loss: ``loss(model, *inputs)`` runs the forward pass and returns a scalar. None: ``model(*inputs)``
            returns it, by itself or as attribute ``loss``.
        minimise: "variance" of all gradients, or the measured "time" of the layers, subject to ``noise``.
        noise: for "time", the variance that may be added, as a multiple of the minibatch's own.
        recompute: "attention" as in ``convert``; "auto" does so only if nothing fits otherwise; None never.
        exclude: names, patterns or classes of layers to be left alone.
        tangents: random directions for the noise of normalisations and activations; their share of the
            variance is known to about ``sqrt(2 / tangents)`` at worst.

    Returns:
        The Plan; ``print(plan)`` shows it.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument has an unknown value, the loss is no scalar, or nothing fits: the message has
            the smallest number of bytes that can be reached.
        RuntimeError: something in the model has no forward derivative, so that the noise of normalisations
            and activations cannot be followed.
    """
    step, share, limit = _checked(model, inputs, budget, loss, minimise, noise, recompute, tangents)
    kinds = [None, "attention"] if recompute == "auto" else [recompute]
    if not any(recomputable(module) for module in model.modules()):
        kinds = [kind for kind in kinds if kind is None] or kinds
    device = device_of(model)
    before = run_step(model, step, device)
    retained = _retained(before)
    limit = int(share * retained) if share is not None else limit
    report = convert(
        model, _CHEAPEST, norm_bits=1, act_bits=1, exclude=exclude, example_inputs=step, dry_run=True
    )
    assert isinstance(report, Report)
    planned = [row.name for row in report.rows if row.became not in ("", "exact")]
    names = [name for name in planned if kind_of(model.get_submodule(name))]
    found = probe(model, step, names, SKETCHES, tangents)
    smallest = None
    for kind in kinds:
        fitting = _Fitting(model, step, device, report, found, kind, exclude, share is None, limit)
        plan = fitting.run(retained, minimise == "time", noise * found.minibatch)
        if plan is not None:
            return plan
        smallest = min(fitting.smallest, smallest or fitting.smallest)
    what = "step peak" if share is None else f"retained of {retained:,}"
    raise ValueError(
        f"nothing fits into budget={budget!r}, {limit:,} bytes: the smallest that can be reached are "
        f"{smallest:,} bytes ({what})"
    )


_CHEAPEST = Sketch(0.03, bits=2)


def _checked(
    model: object,
    inputs: object,
    budget: object,
    loss: object,
    minimise: object,
    noise: object,
    recompute: object,
    tangents: object,
) -> tuple[Step, float | None, int]:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any("_rad_converted" in vars(module) for module in model.modules()):
        raise ValueError("model is converted already: rad_kernels.restore(model) first")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be callable as loss(model, *inputs), got {type(loss).__name__}")
    if minimise not in ("variance", "time"):
        raise ValueError(f"minimise must be 'variance' or 'time', got {minimise!r}")
    if recompute not in (None, "auto", "attention"):
        raise ValueError(f"recompute must be None, 'auto' or 'attention', got {recompute!r}")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not noise > 0:
        raise ValueError(f"noise must be a number above 0, got {noise!r}")
    if isinstance(tangents, bool) or not isinstance(tangents, int) or tangents < 1:
        raise ValueError(f"tangents must be an integer of at least 1, got {tangents!r}")
    given = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    step = Step(loss, given)
    if isinstance(budget, str):
        return step, None, parsed_bytes(budget)
    if isinstance(budget, bool) or not isinstance(budget, float):
        raise TypeError(f"budget must be bytes like '8GiB' or a share like 0.25, got {budget!r}")
    if not 0 < budget < 1:
        raise ValueError(f"budget must be a share in (0, 1), or bytes like '8GiB'; got {budget!r}")
    return step, budget, 0


def parsed_bytes(text: str) -> int:
    """Bytes of "8GiB", "500 MB" or "1048576B".

    Raises:
        ValueError: text is no such number.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?i?b)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ValueError(f"budget must be bytes like '8GiB', '500MB' or '4096B', got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def _retained(observed: Observed) -> int:
    return sum(tensor.bytes for tensor in observed.tensors if not tensor.owner)


@dataclass
class Item:
    """Layers that take one setting together. exact: bytes that leaving them alone retains."""

    layers: list[LayerNoise]
    exact: int

    @property
    def options(self) -> dict[str, tuple[Setting, int, float]]:
        """label -> (setting, bytes, variance); one pack serves all of a group."""
        found: dict[str, tuple[Setting, int, float]] = {"exact": (None, self.exact, 0.0)}
        first = self.layers[0]
        for setting in first.pack:
            if all(setting in layer.pack for layer in self.layers):
                variance = sum(layer.variance[setting] for layer in self.layers)
                found[label(setting)] = (setting, first.pack[setting], variance)
        return found

    def seconds(self, cache: dict[object, float]) -> dict[str, float]:
        """label -> measured seconds of forward and backward."""
        settings = [setting for setting, _, _ in self.options.values()]
        sums = [clock.seconds(layer, settings, cache) for layer in self.layers]
        return {label(setting): sum(each[setting] for each in sums) for setting in settings}


class _Fitting:
    """The search for one way to treat attention."""

    def __init__(
        self,
        model: Module,
        step: Step,
        device: torch.device,
        report: Report,
        found: Found,
        recompute: str | None,
        exclude: Pattern | Iterable[Pattern] | None,
        by_peak: bool,
        limit: int,
    ) -> None:
        self.model, self.step, self.device, self.found = model, step, device, found
        self.recompute, self.by_peak, self.limit = recompute, by_peak, limit
        self.exclude = _as_list(exclude)
        self.convertible = [row.name for row in report.rows if row.became]
        self.bits = [
            row.name for row in report.rows if row.became.startswith("bits=") or ", bits=" in row.became
        ]
        with self._applied({}):
            self.base = run_step(model, step, device)
        self.items = self._items(report)
        self.smallest = 0

    def _items(self, report: Report) -> list[Item]:
        grouped = {name: group for group in report.shared for name in group}
        items: list[Item] = []
        done: set[str] = set()
        for name, layer in self.found.layers.items():
            if name in done:
                continue
            members = [n for n in grouped.get(name, (name,)) if n in self.found.layers]
            done |= set(members)
            exact = sum(
                t.bytes
                for t in self.base.tensors
                if not t.owner
                and not t.held_by
                and set(members) & t.modules
                and t.modules <= set(self.found.layers)
            )
            if exact and layer.pack:  # what is computed again keeps nothing, so it can as well be exact
                items.append(Item([self.found.layers[n] for n in members], exact))
        return items

    def run(self, retained: int, by_time: bool, most_variance: float) -> Plan | None:
        """Choose, apply and measure, with the budget corrected by what the last choice was off."""
        labels = list(dict.fromkeys(name for item in self.items for name in item.options))
        problem, variance = _problem(self.items, labels, by_time)
        everything = sum(item.exact for item in self.items)
        fixed = _retained(self.base) - everything
        measured_base = max(self.base.curve.peak("forward"), self.base.curve.peak("backward"))
        offset = fixed + (measured_base - _retained(self.base) if self.by_peak else 0)
        best: tuple[float, dict[str, Setting], Observed] | None = None
        self.smallest = int(problem.smallest()) + offset
        tried: set[tuple[int, ...]] = set()
        for _ in range(ATTEMPTS):
            chosen = _chosen(problem, variance, self.limit - offset, by_time, most_variance)
            if chosen is None and best is None:  # the estimate may be off: measure what is least
                chosen = [int(row.argmin()) for row in problem.nbytes]
            if chosen is None or tuple(chosen) in tried:
                break
            tried.add(tuple(chosen))
            wish = {
                layer.name: item.options[labels[column]][0]
                for item, column in zip(self.items, chosen)
                for layer in item.layers
            }
            with self._applied(wish):
                observed = run_step(self.model, self.step, self.device)
            measured = self._size(observed)
            spent = sum(problem.nbytes[i, c] for i, c in enumerate(chosen))
            offset = int(measured - spent)
            self.smallest = int(problem.smallest()) + offset
            cost = sum(problem.cost[i, c] for i, c in enumerate(chosen))
            if measured <= self.limit and (best is None or cost < best[0]):
                best = (cost, wish, observed)
        if best is None:
            return None
        self._apply(best[1])
        return self._plan(best[1], best[2], retained)

    def _size(self, observed: Observed) -> int:
        if not self.by_peak:
            return _retained(observed)
        return max(observed.curve.peak("forward"), observed.curve.peak("backward"))

    @contextmanager
    def _applied(self, wish: dict[str, Setting]) -> Iterator[None]:
        changed = self._apply(wish)
        try:
            yield
        finally:
            if changed:
                restore(self.model)

    def _apply(self, wish: dict[str, Setting]) -> bool:
        """Convert by the settings; whether there was anything to convert."""
        sketches: dict[Pattern, Sketch | None] = {
            name: s for name, s in wish.items() if isinstance(s, Sketch)
        }
        bits = {name: s for name, s in wish.items() if isinstance(s, int)}
        left = [name for name in self.bits if name not in bits]
        inert = [n for n in self.convertible if n not in self.bits and kind_of(self.model.get_submodule(n))]
        if not sketches and not bits and not self.recompute and set(self.convertible) <= {*left, *inert}:
            return False
        convert(
            self.model,
            sketches,
            norm_bits=4,
            act_bits=4,
            exclude=[*self.exclude, *left],
            example_inputs=self.step,
            recompute=self.recompute,
        )
        for name, value in bits.items():
            self.model.get_submodule(name).bits = value  # type: ignore[assignment]
        report = self.model.rad_report
        assert isinstance(report, Report)
        rows = tuple(replace(r, became=f"bits={bits[r.name]}") if r.name in bits else r for r in report.rows)
        self.model.__dict__["rad_report"] = replace(report, rows=rows)
        return True

    def _plan(self, wish: dict[str, Setting], observed: Observed, retained: int) -> Plan:
        rows = []
        for item in self.items:
            setting = wish[item.layers[0].name]
            _, nbytes, variance = item.options[label(setting)]
            names = tuple(layer.name for layer in item.layers)
            rows.append(PlanRow(names, item.layers[0].kind, label(setting), item.exact, nbytes, variance))
        return Plan(
            tuple(rows),
            self.limit,
            "step peak" if self.by_peak else "retained",
            retained,
            _retained(observed),
            max(observed.curve.peak("forward"), observed.curve.peak("backward")),
            self.found.gradient_square,
            sum(row.variance for row in rows),
            self.found.minibatch,
            self.recompute,
        )


def _as_list(exclude: Pattern | Iterable[Pattern] | None) -> list[Pattern]:
    if exclude is None:
        return []
    return [exclude] if isinstance(exclude, str | type) else list(exclude)


def label(setting: Setting) -> str:
    """The same for codes of a whole activation and of normalised values: bits are one setting."""
    if setting is None:
        return "exact"
    if isinstance(setting, int):
        return f"{setting} bits"
    return f"{setting.bits} bits" if setting.keep == 1 else str(setting)


def _problem(items: list[Item], labels: list[str], by_time: bool) -> tuple[Problem, Reals]:
    """(costs and bytes, variance), each [items, labels]."""
    shape = (len(items), len(labels))
    nbytes, variance, cost = np.full(shape, np.inf), np.full(shape, np.inf), np.full(shape, np.inf)
    cache: dict[object, float] = {}
    for i, item in enumerate(items):
        seconds = item.seconds(cache) if by_time else {}
        for name, (_, size, added) in item.options.items():
            column = labels.index(name)
            nbytes[i, column], variance[i, column] = size, added
            cost[i, column] = seconds[name] if by_time else added
    return Problem(cost, nbytes), variance


def _chosen(problem: Problem, variance: Reals, budget: float, by_time: bool, most: float) -> list[int] | None:
    """The settings of least cost; for time, at the least price of variance that keeps it below ``most``."""
    if not by_time:
        return choose(problem, budget, SETTINGS)
    rows = np.arange(len(variance))
    finite = np.where(np.isfinite(variance), variance, 0.0)
    low, high, best = 1e-6, 1e6, None
    scale = float(problem.cost.min(1).sum()) / most if most > 0 else 1.0
    for _ in range(12):
        price = (low * high) ** 0.5
        chosen = choose(Problem(problem.cost + price * scale * finite, problem.nbytes), budget, SETTINGS)
        if chosen is not None and float(variance[rows, chosen].sum()) <= most:
            high, best = price, chosen
        else:
            low = price
    return best

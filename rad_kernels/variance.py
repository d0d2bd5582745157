"""How noisy the gradients of a converted model are, what that does to clipping, and how to hold a level of
noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .convert.probe import Step, without_trace
from .plan.probe import scalar
from .sketch import Sketch


@dataclass(frozen=True)
class ParameterNoise:
    """One parameter: squared norm of its exact gradient, variance of the noisy one (summed over entries), and
    the standard error of that variance."""

    name: str
    square: float
    variance: float
    error: float


@dataclass(frozen=True)
class Noise:
    """What ``variance`` measured; str() is a table.

    rows: by parameter. square: squared norm of the exact gradient. variance: of the noisy gradient, summed
    over its entries; error: its standard error. norm_ratio: mean norm of the noisy gradient over the norm of
    the exact one.
    """

    rows: tuple[ParameterNoise, ...]
    square: float
    variance: float
    error: float
    norm_ratio: float

    @property
    def relative(self) -> float:
        """Variance as a share of the squared gradient."""
        return self.variance / self.square

    @property
    def predicted_norm_ratio(self) -> float:
        """``sqrt(1 + relative)``, which the ratio of root mean squares is exactly: E ||g^||^2 = ||g||^2 +
        V."""
        return sqrt(1 + self.relative)

    def matching_clip(self, threshold: float) -> float:
        """What ``clip_grad_norm_`` needs so that it clips noisy gradients by the factor by which
        ``threshold`` clips exact ones: noise makes the norm larger, and the same threshold would shorten
        every step.

        Raises:
            ValueError: threshold is not above 0.
        """
        if not threshold > 0:
            raise ValueError(f"threshold must be above 0, got {threshold!r}")
        return threshold * self.norm_ratio

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cells = [("parameter", "||g||^2", "variance", "+-", "share")]
        for row in (*self.rows, ParameterNoise("all", self.square, self.variance, self.error)):
            share = f"{row.variance / row.square:.3g}" if row.square else ""
            cells.append((row.name, f"{row.square:.3g}", f"{row.variance:.3g}", f"{row.error:.1g}", share))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
            for row in cells
        ]
        return "\n".join([*lines, f"norm of the gradient: {self.norm_ratio:.4f} times the exact one"])


def variance(
    model: Module,
    inputs: object,
    *,
    loss: Callable[..., Any] | None = None,
    samples: int = 16,
) -> Noise:
    """Measure the noise of the gradients of a model that is in training, on one minibatch.

    The exact gradient is that of the model with every layer of this package switched to its exact path; then
    ``samples`` steps are run with fresh keys. Nothing changes: parameters, gradients, buffers, modes and
    random generators are afterwards as they were. What a plan predicts is ``Plan.variance``.

    Args:
        model: converted, or built from layers of this package. What else is random in it, such as dropout,
            counts as noise.
        inputs: of one step: a tensor or a tuple.
        loss: ``loss(model, *inputs)`` returns a scalar; None: ``model(*inputs)`` does.
        samples: at least 2.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or value, the loss is no scalar, or no layer
            of the model keeps a sketch or codes.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 2:
        raise ValueError(f"samples must be an integer of at least 2, got {samples!r}")
    noisy = _noisy(model)
    if not noisy:
        raise ValueError(
            f"no layer of this {type(model).__name__} keeps a sketch or codes: nothing is random"
        )
    step = Step(loss, tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,))
    named: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    exact = _exact(model, step, noisy, named)
    squares = {name: float(g.square().sum()) for name, g in exact.items()}
    errors: dict[str, list[float]] = {name: [] for name in named}
    norms = []
    for number in range(samples):
        found = _gradients(model, step, named, number)
        norms.append(sqrt(sum(float(g.square().sum()) for g in found.values())))
        for name, g in found.items():
            errors[name].append(float((g - exact[name]).square().sum()))
    rows = tuple(ParameterNoise(name, squares[name], *_mean(errors[name])) for name in named)
    total, error = _mean([sum(each) for each in zip(*errors.values())])
    square = sum(squares.values())
    return Noise(rows, square, total, error, sum(norms) / len(norms) / sqrt(square))


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.mean()), float(tensor.std() / len(values) ** 0.5)


def _noisy(model: Module) -> list[tuple[Any, str]]:
    """(holder, attribute) of each sketch and number of bits that adds noise. Holders are layers of this
    package and what ``convert`` put into layers and attributes of others."""
    found: list[tuple[Any, str]] = []
    for module in model.modules():
        for holder in (module, *vars(module).values()):
            ours = type(holder).__module__.partition(".")[0] == __name__.partition(".")[0]
            if ours and not isinstance(holder, Sketch):
                found += [(holder, name) for name in _SETTINGS if _is_setting(getattr(holder, name, None))]
    return found


_SETTINGS = ("sketch", "bits", "setting")


def _is_setting(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, Sketch) and not value.is_exact)


def _exact(
    model: Module, step: Step, noisy: list[tuple[Any, str]], named: dict[str, Tensor]
) -> dict[str, Tensor]:
    before = [getattr(holder, attribute) for holder, attribute in noisy]
    try:
        for (holder, attribute), value in zip(noisy, before):
            setattr(holder, attribute, Sketch(1) if isinstance(value, Sketch) else None)
        return _gradients(model, step, named, 0)
    finally:
        for (holder, attribute), value in zip(noisy, before):
            setattr(holder, attribute, value)


def _gradients(model: Module, step: Step, named: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """In float64. number: of the sample, by which the keys differ."""
    with without_trace(model), torch.enable_grad():
        model.train()
        torch.manual_seed(torch.initial_seed() + number)
        loss = scalar(step(model))
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p, dtype=torch.float64) if g is None else g.double()
        for (name, p), g in zip(named.items(), found)
    }


class NoiseController:
    """Moves the settings of a model along a ladder so that the noise of its gradients stays near a target.

    Call it in the training loop, before a step: in the first of every ``every`` calls it measures the noise
    on the minibatch that it is given. Above the target it takes the next finer rung, and the next coarser one
    where that one's noise, as last measured, would stay below the target.

    >>> control = NoiseController(model, ["rows:0.1:4bit", "rows:0.25:4bit", "rows:1.0:4bit"], target=0.1)
    >>> control(step, (x, y))  # doctest: +SKIP

    Args:
        model: converted; layers with a sketch are moved.
        rungs: sketches from coarse to fine, at most six, as ``Sketch`` or its text.
        target: variance as a share of the squared gradient.
        loss: as in ``variance``. samples, every: steps of a measurement, calls between measurements.
        writer: anything with ``add_scalar(name, value, step)``, such as torch's TensorBoard SummaryWriter.

    Raises:
        TypeError, ValueError: an argument is of a wrong type or value, or no layer has a sketch.
    """

    def __init__(
        self,
        model: Module,
        rungs: Sequence[Sketch | str],
        target: float,
        *,
        loss: Callable[..., Any] | None = None,
        samples: int = 4,
        every: int = 100,
        writer: Any = None,
    ) -> None:
        if not 2 <= len(rungs) <= 6:
            raise ValueError(f"rungs must be 2 to 6 sketches, got {len(rungs)}")
        if not target > 0:
            raise ValueError(f"target must be above 0, got {target!r}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be an integer of at least 1, got {every!r}")
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must have add_scalar(name, value, step), got {type(writer).__name__}")
        self.rungs = tuple(r if isinstance(r, Sketch) else Sketch.parse(r) for r in rungs)
        self.layers = [place for place in _noisy(model) if isinstance(getattr(*place), Sketch)]
        if not self.layers:
            raise ValueError(f"no layer of this {type(model).__name__} has a sketch: convert it first")
        self.model, self.target, self.loss = model, target, loss
        self.samples, self.every, self.writer = samples, every, writer
        self.seen: dict[int, float] = {}  # rung -> its noise when last measured
        self.first: dict[int, float] = {}  # rung -> its noise when it was last taken
        self._calls = 0
        self._take(0)

    def __call__(self, step: int, inputs: object) -> Noise | None:
        """Measure and move if it is time; the measurement, else None."""
        self._calls += 1
        if (self._calls - 1) % self.every:
            return None
        noise = variance(self.model, inputs, loss=self.loss, samples=self.samples)
        self.seen[self.rung] = noise.relative
        self.first.setdefault(self.rung, noise.relative)
        self._write(step, noise)
        if noise.relative > self.target and self.rung + 1 < len(self.rungs):
            self._take(self.rung + 1)
        elif noise.relative <= self.target and self.rung > 0:
            self._try_coarser(noise.relative)
        return noise

    def _try_coarser(self, relative: float) -> None:
        """The coarser rung's noise is taken to have changed by the factor by which this one's has."""
        coarser, own = self.seen.get(self.rung - 1), self.first[self.rung]
        if coarser is None or coarser * relative / own <= self.target:
            self._take(self.rung - 1)

    def _take(self, rung: int) -> None:
        self.rung = rung
        self.first.pop(rung, None)
        for holder, attribute in self.layers:
            setattr(holder, attribute, self.rungs[rung])

    def _write(self, step: int, noise: Noise) -> None:
        if self.writer is None:
            return
        values = {"variance": noise.relative, "norm_ratio": noise.norm_ratio, "rung": self.rung}
        for name, value in values.items():
            self.writer.add_scalar(f"rad_kernels/{name}", value, step)


__all__ = ["Noise", "NoiseController", "ParameterNoise", "variance"]

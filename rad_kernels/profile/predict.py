"""What a model would retain under a sketch, and the state of its optimizer, without running anything."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..convert import Report, convert
from ..convert.choose import Sketches
from ..convert.probe import Step
from ..functional import SketchWarning
from .fake import Fakes, explained
from .result import Prediction, rounded
from .step import Observed, fake_step

Loss = Callable[..., Any] | None
OptimizerLike = Optimizer | Callable[[Iterable[Parameter]], Optimizer] | None


def predict(
    model: Module, *inputs: Any, loss: Loss = None, sketch: Sketches, peak: bool = False, **options: Any
) -> Prediction:
    """What a training step of the model retains once it is converted, found on fake tensors: nothing is run,
    allocated or changed.

    The code that decides and packs in training decides here, so the bytes are those that
    ``memory.saved_bytes`` measures after ``convert(model, sketch, ..., example_inputs=...)``.

    Args:
        model: any module, on any device; also one made under ``torch.device("meta")``.
        inputs, loss: as for ``profile``.
        sketch: as for ``convert``.
        peak: whether to follow the memory through forward and backward too.
        options: further arguments of ``convert`` (norm_bits, act_bits, include, exclude, share, recompute).

    Raises:
        TypeError, ValueError: as ``profile`` and ``convert``.
        RuntimeError: the model cannot run without data, since what it does depends on values of tensors.
    """
    fakes = Fakes(fake_device(model))
    with explained("a prediction"):
        fake = fakes.copy(model)
        faked = Step(loss, fakes.tree(inputs))
        before = fake_step(fake, faked, fakes, backward=False)
        with fakes.mode, warnings.catch_warnings():
            warnings.simplefilter("ignore", SketchWarning)  # the report has the reasons
            convert(fake, sketch, example_inputs=faked, **options)
        after = fake_step(fake, faked, fakes, backward=peak)
    report: Any = fake.rad_report
    return _prediction(before, after, report, peak)


def _prediction(before: Observed, after: Observed, report: Report, peak: bool) -> Prediction:
    sizes = [tensor.bytes for tensor in after.tensors if not tensor.owner]
    shared = {name: group[0] for group in report.shared for name in group[1:]}
    return Prediction(
        retained=sum(sizes),
        by_module=by_module(after),
        before=sum(tensor.bytes for tensor in before.tensors if not tensor.owner),
        before_by_module=by_module(before),
        became={row.name: row.became for row in report.rows if row.became},
        reasons={
            row.name: f"pack of {shared[row.name]}" if row.name in shared else row.reason
            for row in report.rows
            if row.reason or row.name in shared
        },
        shared=report.shared,
        rounded=rounded(sizes),
        peak=max(after.curve.peak("forward"), after.curve.peak("backward")) if peak else None,
    )


def by_module(observed: Observed) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tensor in observed.tensors:
        if not tensor.owner:
            sums[tensor.module] = sums.get(tensor.module, 0) + tensor.bytes
    return sums


def fake_device(model: Module) -> torch.device:
    """Where fake tensors pretend to be: on the model's device, or the CPU for one without memory."""
    return device_of(model, without="meta")


def device_of(model: Module, without: str = "") -> torch.device:
    """The device of all parameters and buffers but those on a kind of device; the CPU if there are none.

    Raises:
        ValueError: there are several.
    """
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type != without}
    if len(devices) > 1:
        raise ValueError(f"model must be on one device, got {', '.join(sorted(map(str, devices)))}")
    return next(iter(devices), torch.device("cpu"))


def optimizer_bytes(optimizer: OptimizerLike, model: Module) -> int | None:
    """Bytes of an optimizer's state after a step: measured if it has one, else by a step on the meta device.

    Raises:
        TypeError: neither an Optimizer nor something that makes one of parameters.
        RuntimeError: the optimizer cannot step without data.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, Optimizer) and optimizer.state:
        return _state_bytes(optimizer)
    shadows = {id(p): _shadow(p) for p in model.parameters() if p.requires_grad}
    with explained("the optimizer's state"):
        if isinstance(optimizer, Optimizer):
            shadow = copy.deepcopy(optimizer, dict(shadows))
        else:
            shadow = optimizer(list(shadows.values()))
            if not isinstance(shadow, Optimizer):
                raise TypeError(
                    "optimizer must be a torch.optim.Optimizer or make one of a list of parameters, "
                    f"got {type(shadow).__name__}"
                )
        shadow.step()
    return _state_bytes(shadow)


def _shadow(parameter: Parameter) -> Parameter:
    shadow = Parameter(torch.empty_like(parameter, device="meta"))
    shadow.grad = torch.empty_like(shadow)
    return shadow


def _state_bytes(optimizer: Optimizer) -> int:
    tensors = [leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())

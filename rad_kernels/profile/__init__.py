"""Where the memory of a training step goes, and where it would go under a sketch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..convert import convert
from ..convert.choose import Sketches
from ..convert.probe import Step
from .fake import Fakes, explained
from .predict import Loss, OptimizerLike, device_of, fake_device, optimizer_bytes, predict
from .result import Curve, LayerMemory, Prediction, Profile, SavedTensor
from .step import Observed, fake_step, run_step

__all__ = ["Curve", "LayerMemory", "Prediction", "Profile", "SavedTensor", "predict", "profile"]

OPTIONS = tuple(
    name
    for name in inspect.signature(convert).parameters
    if name not in ("model", "sketch", "example_inputs", "dry_run")
)


def profile(
    model: Module,
    *inputs: Any,
    loss: Loss = None,
    sketch: Sketches | None = None,
    optimizer: OptimizerLike = None,
    run: bool = True,
    snapshot: str | Path | None = None,
    **options: Any,
) -> Profile:
    """Run one training step, or only its fake, and say where its memory goes.

    Nothing changes: parameters, gradients, buffers, modes, hooks and random generators are afterwards as they
    were before. Only what the model's own code stores elsewhere, such as a counter of its calls, remains. A
    model in eval mode is measured as ``model.train()`` makes it; else each module keeps its mode.

    Args:
        model: any module with all parameters on one device, CPU or CUDA; with ``run=False`` also one without
            memory, made under ``torch.device("meta")``.
        inputs: what the step is given, of any nesting; the caller is taken to hold them.
        loss: ``loss(model, *inputs)`` runs the forward pass and returns a scalar. None: ``model(*inputs)``
            returns it, by itself or as attribute ``loss``.
        sketch: as for ``convert``; predicts what each module would retain, without running or changing it.
        optimizer: an Optimizer, or what makes one of a list of parameters, such as ``torch.optim.AdamW``. It
            never steps; its state is measured, or found by a step on the meta device.
        run: False works on fake tensors alone: no data, no memory, no arithmetic. Temporaries inside of
            operators are not seen then.
        snapshot: file for torch's memory snapshot (https://pytorch.org/memory_viz); CUDA only.
        options: further arguments of ``convert`` for the prediction.

    Returns:
        a Profile; ``print(profile)`` shows the table.

    Raises:
        TypeError: an argument is of a wrong type, or an option is unknown.
        ValueError: the loss is no scalar or needs no gradient, devices differ, or an argument does not go
            with another.
        RuntimeError: without running, what the model does depends on values of tensors; or torch's profiler
            is running already.
    """
    device = _checked(model, loss, sketch, run, snapshot, options)
    notes = [] if model.training else ["the model was in eval mode: profiled as after model.train()"]
    step = Step(loss, inputs)
    if run:
        with _snapshot(snapshot):
            observed = run_step(model, step, device)
    else:
        fakes = Fakes(fake_device(model))
        with explained("profiling without running"):
            observed = fake_step(fakes.copy(model), Step(loss, fakes.tree(inputs)), fakes)
        notes.append("not run: what operators allocate and free inside is not in the peaks")
    hooked = sum(bool(p._post_accumulate_grad_hooks) for p in model.parameters())
    if hooked:
        notes.append(f"{hooked} parameters have hooks after the accumulation of gradients, which were off")
    prediction = None
    if sketch is not None:
        prediction = predict(model, *inputs, loss=loss, sketch=sketch, peak=True, **options)
    layers = _layers(model, observed, prediction, run)
    return Profile(
        model=type(model).__name__,
        device=str(device),
        ran=run,
        layers=layers,
        tensors=observed.tensors,
        parameters=_bytes(model.parameters()),
        buffers=_bytes(model.buffers()),
        gradients=observed.gradients,
        optimizer=optimizer_bytes(optimizer, model),
        curve=observed.curve,
        sketch="" if sketch is None else str(sketch),
        prediction=prediction,
        notes=tuple(notes),
    )


def _checked(
    model: object, loss: object, sketch: object, run: bool, snapshot: object, options: dict[str, Any]
) -> torch.device:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be callable as loss(model, *inputs), got {type(loss).__name__}")
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"unknown argument {name!r}; of convert there are {', '.join(OPTIONS)}")
        if sketch is None:
            raise ValueError(f"{name} goes with sketch, which is None")
    lazy = next((n for n, t in model.named_parameters() if torch.nn.parameter.is_lazy(t)), None)
    if lazy is not None:
        raise ValueError(f"model must have all parameters, but {lazy} waits for a first call")
    device = device_of(model) if run else fake_device(model)
    if run and device.type not in ("cpu", "cuda"):
        raise ValueError(f"model must be on the CPU or a CUDA device, got {device}; or pass run=False")
    if snapshot is not None and not (run and device.type == "cuda"):
        raise ValueError(f"snapshot needs a step that runs on a CUDA device, got {device}, run={run}")
    return device


class _snapshot:
    """torch's record of CUDA's allocator, written to a file."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = path

    def __enter__(self) -> None:
        if self.path is not None:
            torch.cuda.memory._record_memory_history()

    def __exit__(self, *exception: object) -> None:
        if self.path is not None:
            try:
                torch.cuda.memory._dump_snapshot(str(self.path))
            finally:
                torch.cuda.memory._record_memory_history(enabled=None)


def _layers(
    model: Module, observed: Observed, prediction: Prediction | None, ran: bool
) -> tuple[LayerMemory, ...]:
    """Modules that hold, save or do something, in the order of registration, then what has no place there."""
    modules = {name or type(model).__name__: module for name, module in model.named_modules()}
    retained: dict[str, int] = {}
    alone: dict[str, int] = {}
    for tensor in observed.tensors:
        if not tensor.owner:
            retained[tensor.module] = retained.get(tensor.module, 0) + tensor.bytes
            if not tensor.held_by and tensor.modules == {tensor.module}:
                alone[tensor.module] = alone.get(tensor.module, 0) + tensor.bytes
    predicted = {} if prediction is None else prediction.by_module
    names = dict.fromkeys((*modules, *retained, *predicted))
    layers = []
    for name in names:
        module = modules.get(name)
        own = _bytes(()) if module is None else _bytes(module.parameters(recurse=False))
        if not (own or name in retained or name in predicted or (prediction and name in prediction.became)):
            continue
        layers.append(
            LayerMemory(
                name=name,
                type="" if module is None else type(module).__name__,
                calls=observed.calls.get(name, 0),
                parameters=own,
                retained=retained.get(name, 0),
                alone=alone.get(name, 0),
                became=prediction.became.get(name, "") if prediction else "",
                reason=prediction.reasons.get(name, "") if prediction else "",
                predicted=predicted.get(name, 0) if prediction else None,
                forward_peak=observed.peaks.forward.get(name),
                backward_peak=observed.peaks.backward.get(name),
                note=_note(name, retained, prediction) if ran else "",
            )
        )
    return tuple(layers)


def _note(name: str, retained: dict[str, int], prediction: Prediction | None) -> str:
    if prediction is None:
        return ""
    real, fake = retained.get(name, 0), prediction.before_by_module.get(name, 0)
    if real == fake:
        return ""
    return f"the prediction rests on torch's fake operators, which here retain {fake:,} bytes, not {real:,}"


def _bytes(tensors: Any) -> int:
    storages = {
        t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)
    }
    return sum(storages.values())

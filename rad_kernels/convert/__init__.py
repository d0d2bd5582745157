"""One call that makes a model keep less for its backward pass, and one that takes it back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar, overload

import torch
from torch.nn import Module

from ..functional import check_sketch
from ..sketch import BITS, NORM_BITS
from . import functions, gated, swap
from . import recompute as recomputing
from .choose import Choice, Pattern, Sketches, Wishes, as_patterns, choose
from .functions import INSTEAD
from .lookalikes import Lookalike
from .probe import Probe, run
from .report import Kept, Report, Row
from .share import Group, SharedLinear

__all__ = ["Kept", "Report", "Row", "convert", "restore"]


AnyModule = TypeVar("AnyModule", bound=Module)


@overload
def convert(
    model: AnyModule,
    sketch: Sketches,
    norm_bits: int | None = 4,
    act_bits: int | None = 4,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] | None = None,
    share: str | bool = "auto",
    example_inputs: object = None,
    recompute: str | None = None,
    dry_run: Literal[False] = False,
) -> AnyModule: ...


@overload
def convert(
    model: Module,
    sketch: Sketches,
    norm_bits: int | None = 4,
    act_bits: int | None = 4,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] | None = None,
    share: str | bool = "auto",
    example_inputs: object = None,
    recompute: str | None = None,
    *,
    dry_run: Literal[True],
) -> Report: ...


def convert(
    model: Module,
    sketch: Sketches,
    norm_bits: int | None = 4,
    act_bits: int | None = 4,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] | None = None,
    share: str | bool = "auto",
    example_inputs: object = None,
    recompute: str | None = None,
    dry_run: bool = False,
) -> Module | Report:
    """Turn the layers of a model into those of ``rad_kernels.nn``, in place.

    Parameters stay the very objects that they were, so optimizers, ties, hooks, parametrizations and
    ``state_dict`` go on working. ``restore`` takes it back. Unless they are named exactly, these are left
    alone: the last Linear (in the order of the probe, else of registration) and weights tied to an Embedding;
    with a probe also layers whose input the caller holds anyway or whose pack would cost 90 % of the exact
    bytes. Frozen weights and subclasses of torch's layers always are. ``model.rad_report`` has each layer and
    the reason.

    Args:
        model: any module; what is already a layer of this package stays as it is.
        sketch: for all layers with weights, or by name, pattern (``"blocks.*.fc1"``) or class of layers; None
            leaves a layer alone. Exact names decide first, then patterns, then classes.
        norm_bits, act_bits: of normalisations and of smooth activations: 8, 4, 2, 1, of normalisations also
            3, or None, which leaves them alone.
        include, exclude: names, patterns or classes that conversion is limited to, or stays away from.
        share: "auto" gives one pack to Linears of one parent that the probe has seen reading one tensor;
            False never does. Compiled code does not share.
        example_inputs: of the model's call: a tensor, a tuple, or a dict of keywords. The model runs twice in
            training mode, without a trace, to measure what it keeps.
        recompute: "attention" computes the branch norm - projections - attention again in backward, for
            blocks with a method ``attention_branch`` and pre-norm torch.nn.TransformerEncoderLayer.
        dry_run: change nothing and return the report.

    Returns:
        model, or with dry_run the Report.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument has an unknown value, a pattern matches nothing, nothing would be converted,
            or recompute finds no block that it knows.
    """
    wishes = _checked(model, sketch, norm_bits, act_bits, include, exclude, share, recompute)
    probe = None if example_inputs is None else run(model, example_inputs)
    choices = choose(model, wishes, probe)
    converted = [choice for choice in choices if not choice.reason]
    blocks = {n: m for n, m in model.named_modules() if recompute and recomputing.recomputable(m)}
    if recompute and not blocks:
        raise ValueError('recompute="attention" finds no block: they need a method attention_branch(x, ...)')
    if not converted and not blocks:
        reasons = "; ".join(f"{c.name or 'the model'}: {c.reason}" for c in choices[:10])
        raise ValueError(f"nothing to convert in {type(model).__name__} ({reasons or 'no layer is known'})")
    groups = _groups(converted, probe) if share == "auto" and probe is not None else []
    units = {} if probe is None else gated.find(model, converted, probe)
    if dry_run:
        return _report(choices, groups, units, blocks, probe, None)
    _apply(model, converted, groups, blocks, act_bits)
    for name, activation in units.items():
        owner = model.get_submodule(name)
        assert act_bits is not None
        swap.add_attributes(owner, forward=gated.GatedForward(owner, activation, act_bits))
    after = None if probe is None else run(model, example_inputs, calls=False)
    model.__dict__["rad_report"] = _report(choices, groups, units, blocks, probe, after)
    return model


def restore(model: AnyModule) -> AnyModule:
    """Undo ``convert``: torch's own classes and attributes, the same Parameters; returns the model.

    Raises:
        TypeError: model is no module.
        ValueError: nothing in it was converted.
    """
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    undone = [swap.undo(module) for module in model.modules()]
    if not any(undone):
        raise ValueError(f"nothing in this {type(model).__name__} was converted")
    for module in model.modules():
        module.__dict__.pop("rad_report", None)
    return model


def _checked(
    model: object,
    sketch: Sketches,
    norm_bits: int | None,
    act_bits: int | None,
    include: Pattern | Iterable[Pattern] | None,
    exclude: Pattern | Iterable[Pattern] | None,
    share: str | bool,
    recompute: str | None,
) -> Wishes:
    if not isinstance(model, Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(sketch, Mapping):
        as_patterns("keys of sketch", list(sketch))
        for value in sketch.values():
            if value is not None:
                check_sketch(value)
    else:
        check_sketch(sketch)
    for name, bits, allowed in (("norm_bits", norm_bits, NORM_BITS), ("act_bits", act_bits, BITS)):
        if bits is not None and (isinstance(bits, bool) or bits not in allowed):
            raise ValueError(f"{name} must be None, {', '.join(map(str, allowed))}; got {bits!r}")
    if share != "auto" and share is not False:
        raise ValueError(f'share must be "auto" or False, got {share!r}')
    if recompute not in (None, "attention"):
        raise ValueError(f'recompute must be None or "attention", got {recompute!r}')
    return Wishes(
        sketch, norm_bits, act_bits, as_patterns("include", include), as_patterns("exclude", exclude)
    )


def _groups(converted: list[Choice], probe: Probe) -> list[list[Choice]]:
    """Linears of one parent and sketch whose inputs in the probe were the same tensors, call by call."""
    found: dict[tuple[object, ...], list[Choice]] = {}
    for choice in converted:
        module, inputs = choice.module, probe.inputs.get(choice.name)
        if type(module) is not torch.nn.Linear or not inputs or module._forward_pre_hooks:
            continue
        parent = choice.name.rpartition(".")[0]
        found.setdefault((parent, choice.sketch, *map(id, inputs)), []).append(choice)
    return [group for group in found.values() if len(group) > 1]


def _apply(
    model: Module,
    converted: list[Choice],
    groups: list[list[Choice]],
    blocks: dict[str, Module],
    act_bits: int | None,
) -> None:
    grouped = {id(choice.module) for group in groups for choice in group}
    for choice in converted:
        if choice.layer is None:
            (setting,) = choice.settings.values()
            forward = Lookalike(choice.module, choice.lookalike, setting)
            swap.add_attributes(choice.module, forward=forward)
        else:
            new = SharedLinear if id(choice.module) in grouped else choice.layer.rad
            swap.change_class(choice.module, choice.layer.torch, new, choice.settings)
    for group in groups:
        members = [choice.module for choice in group if isinstance(choice.module, SharedLinear)]
        shared = Group(members, tuple(choice.name for choice in group))
        for member in members:
            swap.add_attributes(member, _rad_group=shared)
    for module in model.modules():
        for attribute, name in list(functions.held(module)):
            if act_bits is not None or not functions.takes_bits(name):
                swap.replace_function(module, attribute, name, functions.Function(module, name, act_bits))
    for block in blocks.values():
        recomputing.install(block)


def _report(
    choices: list[Choice],
    groups: list[list[Choice]],
    units: Iterable[str],
    blocks: dict[str, Module],
    before: Probe | None,
    after: Probe | None,
) -> Report:
    def retained(probe: Probe | None, name: str) -> int | None:
        return None if probe is None else probe.bytes_of(name)

    rows = tuple(
        Row(
            choice.name,
            choice.layer.torch.__name__ if choice.layer else type(choice.module).__name__,
            choice.became,
            choice.reason,
            retained(before, choice.name),
            retained(after, choice.name),
        )
        for choice in choices
    )
    return Report(
        rows,
        () if after is None else _kept(after),
        tuple(tuple(choice.name for choice in group) for group in groups),
        tuple(units),
        tuple(blocks),
        None if before is None else before.saved.total,
        None if after is None else after.saved.total,
    )


def _kept(probe: Probe) -> tuple[Kept, ...]:
    """What torch's own operations still retain, largest first."""
    sums: dict[tuple[str, str], list[int]] = {}
    for entry in probe.saved.entries:
        if not entry.op.startswith("_"):
            sums.setdefault((entry.module, entry.op), []).append(entry.bytes)
    kept = [Kept(m, op, len(sizes), sum(sizes), INSTEAD.get(op, "")) for (m, op), sizes in sums.items()]
    return tuple(sorted(kept, key=lambda k: -k.bytes))

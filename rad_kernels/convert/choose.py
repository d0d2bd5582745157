"""Which layers of a model are converted, to what, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch.nn import Module, Parameter

from ..sketch import Sketch
from . import matrices
from .lookalikes import Lookalike, kind_of, known_as
from .probe import Probe
from .registry import Layer, by_torch_class, known_base, subclassed

Pattern = str | type[Module]
Sketches = Sketch | Mapping[Pattern, Sketch | None]

ALREADY = "already a layer of rad_kernels"


@dataclass
class Choice:
    """A layer and what becomes of it: settings, or the reason why it is left alone. What has no torch class
    that it could be swapped for is a lookalike of the given name."""

    name: str
    module: Module
    layer: Layer | None
    settings: dict[str, object] = field(default_factory=dict)
    reason: str = ""
    lookalike: str = ""

    @property
    def kind(self) -> str:
        return kind_of(self.lookalike) if self.layer is None else self.layer.kind

    @property
    def sketch(self) -> Sketch:
        sketch = self.settings["sketch"]
        assert isinstance(sketch, Sketch)
        return sketch

    @property
    def became(self) -> str:
        if self.reason:
            return ""
        told = {k: v for k, v in self.settings.items() if k in ("sketch", "bits")}
        return ", ".join(f"{key}={value}" for key, value in told.items()) or "exact"


@dataclass(frozen=True)
class Wishes:
    """The arguments of convert that say what is converted."""

    sketch: Sketches
    norm_bits: int | None
    act_bits: int | None
    include: tuple[Pattern, ...]
    exclude: tuple[Pattern, ...]

    def sketch_of(self, name: str, module: Module) -> Sketch | None:
        """The sketch for a layer: exact names decide first, then patterns, then classes, in order."""
        if isinstance(self.sketch, Sketch):
            return self.sketch
        keys = sorted(self.sketch, key=lambda key: 2 if isinstance(key, type) else not is_name(key))
        found = next((key for key in keys if matches(key, name, module)), None)
        return None if found is None else self.sketch[found]

    def names_exactly(self, name: str) -> bool:
        """Whether the caller asks for this very layer, which overrides the reasons to skip it."""
        asked = self.include
        if isinstance(self.sketch, Mapping):
            asked += tuple(key for key, value in self.sketch.items() if value is not None)
        return any(isinstance(key, str) and is_name(key) and key == name for key in asked)


def is_name(pattern: str) -> bool:
    return not any(c in pattern for c in "*?[")


def matches(pattern: Pattern, name: str, module: Module) -> bool:
    if isinstance(pattern, str):
        return fnmatchcase(name, pattern)
    return isinstance(module, pattern)


def as_patterns(argument: str, value: Pattern | Iterable[Pattern] | None) -> tuple[Pattern, ...]:
    """Raises TypeError for anything but names, patterns and classes of modules."""
    if value is None:
        return ()
    patterns = (value,) if isinstance(value, str | type) or not isinstance(value, Iterable) else tuple(value)
    for pattern in patterns:
        if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, Module)):
            raise TypeError(f"{argument} must be names, patterns or classes of modules, got {pattern!r}")
    return patterns


def choose(model: Module, wishes: Wishes, probe: Probe | None) -> list[Choice]:
    """One choice for each layer that this package has a counterpart for, in the order of registration.

    Raises:
        ValueError: a name or pattern matches no such layer.
    """
    choices: list[Choice] = []
    for name, module in model.named_modules():
        if _is_part_of_attention(name, choices):
            continue
        if (choice := _candidate(name, module)) is not None:
            choices.append(choice)
    _check_patterns(wishes, choices)
    users = _users(model, {choice.name for choice in choices})
    last = _last_linear(choices, probe)
    for choice in choices:
        if choice.reason:
            continue
        choice.reason = _not_asked(choice, wishes)
        if not choice.reason and choice.kind != "sketch":
            choice.settings = dict(choice.layer.settings) if choice.layer else {}
            bits = {"norm": wishes.norm_bits, "activation": wishes.act_bits}
            if choice.kind in bits:
                choice.settings["bits"] = bits[choice.kind]
        elif not choice.reason:
            sketch = wishes.sketch_of(choice.name, choice.module)
            choice.settings = {**(choice.layer.settings if choice.layer else {}), "sketch": sketch}
            choice.reason = _not_sketched(choice, sketch, wishes, probe, users, last)
    return choices


def _candidate(name: str, module: Module) -> Choice | None:
    cls = type(module)
    base = known_base(cls)
    layer = None if base is None else by_torch_class()[base]
    if isinstance(module.__dict__.get("forward"), Lookalike):
        return Choice(name, module, None, reason=ALREADY)
    lookalike = "" if layer is not None else known_as(module)
    if layer is None and not lookalike:
        bases = list(subclassed(cls))
        if not bases:
            return None
        if any(issubclass(cls, by_torch_class()[b].rad) for b in bases):
            return Choice(name, module, None, reason=ALREADY)
        return Choice(name, module, None, reason=f"a subclass of torch.nn.{bases[0].__name__}")
    if "forward" in module.__dict__:
        return Choice(name, module, layer, reason="its forward was replaced on the instance")
    return Choice(name, module, layer, lookalike=lookalike)


def _check_patterns(wishes: Wishes, choices: list[Choice]) -> None:
    given = [("include", p) for p in wishes.include] + [("exclude", p) for p in wishes.exclude]
    if isinstance(wishes.sketch, Mapping):
        given += [("sketch", pattern) for pattern in wishes.sketch]
    for argument, pattern in given:
        if not any(matches(pattern, choice.name, choice.module) for choice in choices):
            raise ValueError(f"{argument}: {pattern!r} matches no layer that can be converted")


def _not_asked(choice: Choice, wishes: Wishes) -> str:
    name, module = choice.name, choice.module
    if wishes.include and not any(matches(p, name, module) for p in wishes.include):
        return "not in include"
    if any(matches(p, name, module) for p in wishes.exclude):
        return "in exclude"
    if choice.kind == "norm" and wishes.norm_bits is None:
        return "norm_bits is None"
    if choice.kind == "activation" and wishes.act_bits is None:
        return "act_bits is None"
    return ""


def _not_sketched(
    choice: Choice,
    sketch: Sketch | None,
    wishes: Wishes,
    probe: Probe | None,
    users: Mapping[Parameter, str],
    last: str | None,
) -> str:
    """Why a layer with weights is left alone: what makes a sketch impossible, then what makes it unwise."""
    module, name = choice.module, choice.name
    if sketch is None:
        return "no sketch for it"
    if sketch.is_exact:
        return f"sketch {sketch} is exact"
    frozen = not any(p.requires_grad for n, p in module.named_parameters() if "bias" not in n)
    if frozen and not isinstance(module, matrices.CONVOLUTIONS):  # of these torch keeps the input
        return "its weights are frozen: nothing is kept for them"
    if refused := matrices.refusal(module, choice.layer, sketch):
        return refused
    if wishes.names_exactly(name):
        return ""
    if name == last:
        return "the last Linear before the loss: name it to convert it"
    tied = next((users[parameter] for parameter in module.parameters() if parameter in users), None)
    if tied is not None:
        return f"tied to {tied}"
    if probe is None:
        return ""
    inputs = probe.inputs.get(name, [])
    if not inputs:
        return "not called in the probe"
    if probe.reads_the_callers(name):
        return "its input is the model's, which the caller holds anyway"
    if not frozen and matrices.is_wasteful(module, inputs, sketch):
        return f"a pack would cost 90 % of the exact bytes or more ({sketch})"
    return ""


def _is_part_of_attention(name: str, choices: list[Choice]) -> bool:
    """MultiheadAttention multiplies by its out_proj itself."""
    return any(
        isinstance(c.module, torch.nn.MultiheadAttention) and name.startswith(f"{c.name}.") for c in choices
    )


def _users(model: Module, candidates: set[str]) -> dict[Parameter, str]:
    """Parameter -> name of a module that holds it and is no candidate, such as a tied Embedding."""
    users: dict[Parameter, str] = {}
    for name, module in model.named_modules():
        owner = name.split(".parametrizations.")[0]
        if not any(owner == c or (c and owner.startswith(f"{c}.")) for c in candidates):
            users.update((parameter, owner) for parameter in module.parameters(recurse=False))
    return users


def _last_linear(choices: list[Choice], probe: Probe | None) -> str | None:
    """The last Linear in the order of the probe, else in that of registration."""
    names = [c.name for c in choices if isinstance(c.module, torch.nn.Linear)]
    if probe is not None:
        called = [name for name in probe.order if name in set(names)]
        names = called or names
    return names[-1] if names else None

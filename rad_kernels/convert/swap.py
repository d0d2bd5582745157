"""Replacing a module's class and attributes in place, and undoing it.

Everything that makes a module what it is to others lives in its ``__dict__`` (Parameters, buffers, hooks), so
a class swap keeps it all, and references from optimizers and wrappers stay valid. What a conversion changed
is written down in the module itself: deepcopy and pickle carry it along.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import Module

from .registry import is_dynamic

RECORD = "_rad_converted"


@dataclass
class Record:
    """What was changed in one module.

    classes: (torch's, ours), None if the class stayed. added: names that were put in the instance's __dict__.
    functions: attribute -> name in torch.nn.functional of the function that it held.
    """

    classes: tuple[type[Module], type[Module]] | None = None
    added: tuple[str, ...] = ()
    functions: dict[str, str] = field(default_factory=dict)


def record_of(module: Module) -> Record | None:
    return module.__dict__.get(RECORD)


def change_class(module: Module, old: type[Module], new: type[Module], settings: dict[str, object]) -> None:
    """Make module an instance of new where it was one of old, with settings as attributes."""
    record = record_of(module) or Record()
    before = set(module.__dict__)
    module.__class__ = _rebased(type(module), old, new)
    for name, value in settings.items():
        setattr(module, name, value)
    added = tuple(sorted(set(module.__dict__) - before))
    module.__dict__[RECORD] = Record((old, new), record.added + added, record.functions)


def add_attributes(module: Module, **attributes: object) -> None:
    """Put plain objects into the instance, hiding those of its class."""
    record = record_of(module) or Record()
    module.__dict__.update(attributes)
    module.__dict__[RECORD] = Record(record.classes, (*record.added, *attributes), record.functions)


def replace_function(module: Module, attribute: str, name: str, replacement: object) -> None:
    """Replace torch.nn.functional's ``name``, held by an attribute of the instance."""
    record = record_of(module) or Record()
    module.__dict__[attribute] = replacement
    functions = {**record.functions, attribute: name}
    module.__dict__[RECORD] = Record(record.classes, record.added, functions)


def undo(module: Module) -> bool:
    """Take back all that was changed in this module; whether there was anything."""
    record = record_of(module)
    if record is None:
        return False
    for name in record.added:
        module.__dict__.pop(name, None)
    for attribute, name in record.functions.items():
        module.__dict__[attribute] = getattr(torch.nn.functional, name)
    if record.classes is not None:
        old, new = record.classes
        module.__class__ = _rebased(type(module), new, old)
    del module.__dict__[RECORD]
    return True


_SOURCE = "_rad_made_from"  # of a class made here: the class that it was made from


def _rebased(cls: type, old: type, new: type) -> type:
    """cls with old replaced by new: new itself, or a dynamic class like cls on top of it."""
    if cls is old:
        return new
    if not is_dynamic(cls) or old not in cls.__mro__:
        return cls
    bases = tuple(_rebased(base, old, new) for base in cls.__bases__)
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    source = body.pop(_SOURCE, None)
    if source is not None and source.__bases__ == bases and _same_body(source, body):
        return source
    return type(cls.__name__, bases, {**body, _SOURCE: cls})


def _same_body(cls: type, body: dict[str, object]) -> bool:
    own = {n: v for n, v in vars(cls).items() if n not in ("__dict__", "__weakref__", _SOURCE)}
    return own.keys() == body.keys() and all(own[name] is body[name] for name in own)

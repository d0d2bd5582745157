"""Which torch layer becomes which layer of this package, read from ``rad_kernels.nn`` itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import Module

from .. import nn as rad_nn

NORMS = (
    torch.nn.modules.batchnorm._BatchNorm,
    torch.nn.LayerNorm,
    torch.nn.GroupNorm,
    torch.nn.RMSNorm,
)
LOSSES = (torch.nn.modules.loss._Loss,)


@dataclass(frozen=True)
class Layer:
    """A torch class and its counterpart.

    settings: keywords that the counterpart adds to torch's constructor, with their defaults. Each is also an
    attribute of its instances.
    """

    torch: type[Module]
    rad: type[Module]
    settings: Mapping[str, object]

    @property
    def kind(self) -> str:
        """What decides its setting: "sketch", "norm", "activation", or "exact" where none is given."""
        if "sketch" in self.settings:
            return "sketch"
        if "bits" not in self.settings or issubclass(self.torch, LOSSES):
            return "exact"
        return "norm" if issubclass(self.torch, NORMS) else "activation"


@cache
def by_torch_class() -> dict[type[Module], Layer]:
    """Every layer of rad_kernels.nn that has a torch layer of its own name as base."""
    layers = {}
    for name in rad_nn.__all__:
        rad, exact = getattr(rad_nn, name), getattr(torch.nn, name, None)
        if exact is None or not issubclass(rad, exact):
            continue
        known = inspect.signature(exact.__init__).parameters
        added = {
            key: parameter.default
            for key, parameter in inspect.signature(rad.__init__).parameters.items()
            if key not in known and parameter.kind is parameter.KEYWORD_ONLY
        }
        layers[exact] = Layer(exact, rad, added)
    return layers


def is_dynamic(cls: type) -> bool:
    """Whether cls was made while the program ran, as parametrizations and FSDP2 make them."""
    found: object = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not cls and "forward" not in vars(cls)


def known_base(cls: type) -> type[Module] | None:
    """The torch class that cls is, or that it is a dynamic class of; None for any other subclass."""
    if cls in by_torch_class():
        return cls
    if is_dynamic(cls):
        return next(filter(None, map(known_base, cls.__bases__)), None)
    return None


def subclassed(cls: type) -> Iterator[type[Module]]:
    """Torch classes of the registry that cls inherits from."""
    return (base for base in cls.__mro__ if base in by_torch_class())

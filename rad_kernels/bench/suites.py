"""The suites by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .conv import conv, conv_wgrad
from .elementwise import elementwise
from .linear import linear, overhead, pack, wgrad
from .model import model
from .trial import Trial

SUITES: dict[str, Callable[..., Iterator[Trial]]] = {
    "linear": linear,
    "wgrad": wgrad,
    "pack": pack,
    "conv": conv,
    "conv_wgrad": conv_wgrad,
    "elementwise": elementwise,
    "model": model,
    "overhead": overhead,
}

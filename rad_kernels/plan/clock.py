"""How long forward and backward of a layer take under each setting, measured on inputs of the probe's
shapes."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterable

import torch
from torch.nn import Module, Sequential

from ..convert import convert
from ..functional import SketchWarning
from ..sketch import Sketch
from .layers import LayerNoise, Setting

RUNS = 3


def seconds(
    layer: LayerNoise, settings: Iterable[Setting], cache: dict[object, float]
) -> dict[Setting, float]:
    """Least of three runs of each setting, all calls of the layer in a step together. Layers that are alike
    are measured once."""
    found = {}
    for setting in settings:
        total = 0.0
        for shape in layer.shapes:
            module = layer.module
            sizes = tuple(tuple(p.shape) for p in module.parameters())
            kind = (type(module), module.extra_repr(), sizes, shape, layer.dtype, setting)
            if kind not in cache:
                cache[kind] = _measure(module, shape, layer.dtype, setting)
            total += cache[kind]
        found[setting] = total
    return found


def _measure(module: Module, shape: tuple[int, ...], dtype: torch.dtype, setting: Setting) -> float:
    whole = Sequential(copy.deepcopy(module)).train()
    bits = setting if isinstance(setting, int) else 4
    if setting is not None:
        convert(whole, {"0": setting} if isinstance(setting, Sketch) else {}, norm_bits=bits)
        if isinstance(setting, int):
            whole[0].bits = setting  # type: ignore[assignment]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    best = float("inf")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        warnings.simplefilter("ignore", SketchWarning)
        for _ in range(RUNS):
            _wait(device)
            start = time.perf_counter()
            whole(x).sum().backward()
            _wait(device)
            best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

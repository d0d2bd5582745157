"""The ways to train in less memory, and the largest batch or keep of each within a number of bytes."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from ...convert import convert
from ...data import Digits
from ...functional import SketchWarning
from ...memory import saved_bytes
from ...official import OfficialConv2d, OfficialLinear
from ...sketch import Sketch
from ..tasks import Task

EXACT, CHECKPOINT, OFFLOAD, OFFICIAL, OURS = "exact", "checkpoint", "offload", "official", "ours"
KEEP = 0.1  # the paper's
PARTS = 1000  # keep is chosen in thousandths
SKETCHES = (("different", None), ("rows", None), ("different", 4), ("rows", 4), ("rows", 2))


@dataclass(frozen=True)
class Method:
    """way: one of the five above. sketch: what `official` and `ours` keep."""

    name: str
    way: str
    batch: int
    sketch: Sketch | None = None

    def to_dict(self) -> dict[str, Any]:
        sketch = None if self.sketch is None else str(self.sketch)
        return {"name": self.name, "way": self.way, "batch": self.batch, "sketch": sketch}

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Method:
        sketch = None if found["sketch"] is None else Sketch.parse(found["sketch"])
        return cls(found["name"], found["way"], found["batch"], sketch)


class Checkpointed(nn.Module):
    """A network that keeps its input alone and runs forward once more in the backward pass.

    The reentrant variant, because the tensors that it retains can be counted. It needs an input that requires
    a gradient; an empty one saves computing that of the images.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        differentiable = x.new_empty(0, requires_grad=True)
        return checkpoint(
            lambda images, _: self.network(images),
            x,
            differentiable,
            use_reentrant=True,
            preserve_rng_state=False,  # nothing in these networks draws
        )


def build(task: Task, method: Method, inputs: int) -> nn.Module:
    """The task's network in the method's way. Equal seeds give equal weights, whatever the method."""
    network = task.make(inputs)
    if method.way == CHECKPOINT:
        return Checkpointed(network)
    if method.sketch is not None and method.way == OFFICIAL:
        return nn.Sequential(*(_official(layer, method.sketch) for layer in network.children()))
    if method.sketch is not None:
        layers = {
            n: method.sketch for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
        }
        convert(network, layers)
    return network


def _official(layer: nn.Module, sketch: Sketch) -> nn.Module:
    different = sketch.sampling == "different"
    if isinstance(layer, nn.Linear):
        copy: nn.Module = OfficialLinear(layer.in_features, layer.out_features, sketch.keep, different)
    elif isinstance(layer, nn.Conv2d):
        (size, _), padding = layer.kernel_size, int(layer.padding[0])
        copy = OfficialConv2d(layer.in_channels, layer.out_channels, size, sketch.keep, different, padding)
    else:
        return layer
    copy.load_state_dict(layer.state_dict())
    return copy


def loss(task: Task, method: Method, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a batch, whose graph keeps what the method keeps."""
    saving: AbstractContextManager[Any] = contextlib.nullcontext()
    if method.way == OFFLOAD:
        saving = save_on_cpu()
    with saving:
        return F.cross_entropy(network(task.feed(images)), labels)


def retained(task: Task, method: Method, digits: Digits) -> int:
    """Bytes that autograd keeps for the backward pass of one step, measured.

    Offloading is measured without its hooks, which hide what they keep: on a CPU that is the same tensors.
    """
    counted = replace(method, way=EXACT) if method.way == OFFLOAD else method
    images, labels = _batch(method, digits)
    with torch.random.fork_rng(devices=[]):
        network = build(task, counted, images.shape[1])
        return saved_bytes(lambda: loss(task, counted, network, images, labels)).total


def moved(task: Task, method: Method, digits: Digits) -> int:
    """Bytes that offloading would copy from a GPU in the forward pass of one step, and back in the backward.

    It copies every tensor that is saved, those of parameters too, and one that is saved twice twice.
    """
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    images, labels = _batch(method, digits)
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(count, lambda tensor: tensor):
        network = build(task, method, images.shape[1])
        loss(task, replace(method, way=EXACT), network, images, labels)
    return total


def _batch(method: Method, digits: Digits) -> tuple[Tensor, Tensor]:
    """A batch of its own storage: a slice would keep the whole set."""
    return digits.train_images[: method.batch].clone(), digits.train_labels[: method.batch].clone()


def budget(task: Task, batch: int, digits: Digits) -> int:
    """Bytes retained with the paper's keep and its better sampling, each image with its own sample."""
    return retained(task, Method("", OURS, batch, Sketch(KEEP, "different")), digits)


@contextlib.contextmanager
def quick_meter() -> Iterator[None]:
    """The meter looks for parameters among all objects of the process. Here nobody's are older than this."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def methods(task: Task, batch: int, digits: Digits, allowed: int) -> list[Method]:
    """Everybody as they come, and everybody within the allowed bytes, with the largest batch or keep.

    Raises:
        ValueError: nothing of a method fits.
    """
    official = Sketch(KEEP, "different", "with_replacement")
    as_they_come = [
        Method("exact", EXACT, batch),
        Method("checkpoint", CHECKPOINT, batch),
        Method("save_on_cpu", OFFLOAD, batch),
        Method(f"official {official.sampling}:{KEEP}", OFFICIAL, batch, official),
    ]

    def smaller(name: str, way: str, sketch: Sketch | None = None) -> Method:
        def size(count: int) -> int:
            return retained(task, Method(name, way, count, sketch), digits)

        sized = largest(batch, size, allowed, f"{name}: batch")
        return Method(f"{name}, batch {sized}", way, sized, sketch)

    def sketched(sampling: str, bits: int | None) -> Method:
        def size(part: int) -> int:
            sketch = Sketch(part / PARTS, sampling, bits=bits)
            with (
                warnings.catch_warnings()
            ):  # of keeps so large that nothing is saved, which do not fit either
                warnings.simplefilter("ignore", SketchWarning)
                return retained(task, Method("", OURS, batch, sketch), digits)

        keep = largest(PARTS, size, allowed, f"{sampling}: keep") / PARTS
        sketch = Sketch(keep, sampling, bits=bits)
        return Method(str(sketch), OURS, batch, sketch)

    with quick_meter():
        within = [
            smaller("exact", EXACT),
            smaller("checkpoint", CHECKPOINT),
            smaller(as_they_come[-1].name, OFFICIAL, official),
            *(sketched(sampling, bits) for sampling, bits in SKETCHES),
        ]
    # A method may fit as it comes.
    return [*as_they_come, *(m for m in within if m.sketch is not None or m.batch < batch)]


def largest(most: int, size: Callable[[int], int], allowed: int, what: str) -> int:
    """The largest number in 1..most whose size is allowed; sizes do not fall.

    They are nearly proportional, so every other guess is where a straight line says.

    Raises:
        ValueError: the size of 1 is not allowed.
    """
    low, least = 1, size(1)
    high, greatest = most, size(most)
    if least > allowed:
        raise ValueError(f"{what}: even the smallest needs {least:,} bytes of the allowed {allowed:,}")
    if greatest <= allowed:
        return most
    straight = True
    while high - low > 1:
        middle = (low + high) // 2
        if straight:
            middle = low + (allowed - least) * (high - low) // (greatest - least)
            middle = min(max(middle, low + 1), high - 1)
        found = size(middle)
        if found <= allowed:
            low, least = middle, found
        else:
            high, greatest = middle, found
        straight = not straight
    return low

"""Every layer of rad_kernels.nn once, beside torch's own, for tests of what all layers promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rad_kernels import Sketch, nn

FINE = Sketch(1, bits=8)  # every entry, each off by less than 1/500 of its group's range
QUARTER = Sketch(0.25)


@dataclass(frozen=True)
class Family:
    """make(sketch, bits): the layer. shape: of its input, large enough that a pack is worth it. keys: drawn
    by a training call. call: from the layer and x to a tensor. batched: the first axis of x may be left out.
    twice: the gradient can be differentiated again, as torch's."""

    name: str
    make: Made
    shape: tuple[int, ...]
    keys: int = 0
    call: Callable[[torch.nn.Module, Tensor], Tensor] = lambda layer, x: layer(x)
    batched: bool = True
    twice: bool = False

    def __str__(self) -> str:
        return self.name

    def layer(self, sketch: Sketch = QUARTER, bits: int = 4) -> torch.nn.Module:
        torch.manual_seed(1)
        return self.make(sketch, bits)

    def pair(self, sketch: Sketch = FINE, bits: int = 8) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Ours and torch's, with the same parameters."""
        ours = self.layer(sketch, bits)
        return ours, exact_of(ours)

    def x(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return values(self.shape, dtype, 7)


def values(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


class Product(torch.nn.Module):
    """What SwiGLU computes."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up


class Loss(torch.nn.Linear):
    """What LinearCrossEntropy computes."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(super().forward(x), target)


OWN = {"SwiGLU": Product, "LinearCrossEntropy": Loss}


def exact_of(layer: torch.nn.Module) -> torch.nn.Module:
    """Torch's layer with the parameters and attributes of ours."""
    exact, name = copy.deepcopy(layer), type(layer).__name__
    exact.__class__ = OWN.get(name) or getattr(torch.nn, name)
    return exact


def classes(x: Tensor) -> Tensor:
    """A target for logits or rows of x: whole numbers that follow from nothing but its shape."""
    shape = (x.shape[0], *x.shape[2:]) if x.dim() > 1 else ()
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(x.device) % 7


def first(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def to_itself(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x)[0]


def halves(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer(*x.tensor_split(2, -1))


def to_classes(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer(x, classes(x))


SPATIAL = {1: (10, 6, 24), 2: (4, 6, 9, 8), 3: (2, 6, 6, 5, 4)}
ROWS = (40, 64)


@dataclass(frozen=True)
class Made:
    """A layer by its name and arguments, with the sketch or bits that a test wants of it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    added: tuple[str, ...] = ()

    def __call__(self, sketch: Sketch, bits: int) -> torch.nn.Module:
        own = {"sketch": sketch, "bits": bits}
        return getattr(nn, self.name)(*self.args, **self.kwargs, **{key: own[key] for key in self.added})

    def exact(self) -> torch.nn.Module:
        """Torch's own, made anew."""
        cls = OWN.get(self.name) or getattr(torch.nn, self.name)
        return cls(*self.args, **self.kwargs)


def sketched(name: str, *args: Any, **kwargs: Any) -> Made:
    return Made(name, args, kwargs, ("sketch",))


def coded(name: str, *args: Any) -> Made:
    return Made(name, args, {}, ("bits",))


def plain(name: str, *args: Any) -> Made:
    return Made(name, args, {})


def recurrent(name: str) -> Made:
    return Made(name, (24, 16), {"batch_first": True}, ("sketch", "bits"))


SMOOTH = (
    "GELU",
    "SiLU",
    "Mish",
    "Tanh",
    "Sigmoid",
    "LogSigmoid",
    "Softplus",
    "ELU",
    "CELU",
    "SELU",
    "Hardswish",
)
PIECEWISE = ("ReLU", "ReLU6", "LeakyReLU", "Hardtanh", "Hardsigmoid", "Softshrink", "Hardshrink")


def _families() -> list[Family]:
    attention = sketched("MultiheadAttention", 64, 4, batch_first=True)
    found = [
        Family("Linear", sketched("Linear", 64, 7), ROWS, 1),
        Family("MultiheadAttention", attention, (4, 10, 64), 2, to_itself),
        Family("LinearCrossEntropy", plain("LinearCrossEntropy", 64, 7), ROWS, 0, to_classes, False),
        Family("CrossEntropyLoss", coded("CrossEntropyLoss"), ROWS, 1, to_classes),
        Family("SwiGLU", coded("SwiGLU"), ROWS, 2, halves),
        Family("PReLU", coded("PReLU", 64), ROWS, 1, batched=False),
        Family("LayerNorm", coded("LayerNorm", 64), ROWS, 1),
        Family("RMSNorm", coded("RMSNorm", 64), ROWS, 1),
        Family("GroupNorm", coded("GroupNorm", 2, 6), SPATIAL[2], 1, batched=False),
        Family("Threshold", plain("Threshold", 0.1, 0.5), ROWS, twice=True),
        Family("Dropout", plain("Dropout", 0.5), ROWS, 1, twice=True),
        Family("AlphaDropout", plain("AlphaDropout", 0.5), ROWS, 1, twice=True),
    ]
    for dims, shape in SPATIAL.items():
        for name in (f"Conv{dims}d", f"ConvTranspose{dims}d"):
            found.append(Family(name, sketched(name, 6, 5, 3, padding=1), shape, 1))
        sides = {1: 12, 2: (3, 4), 3: (3, 5, 2)}[dims]
        for kind, twice in (("Max", False), ("Avg", True)):
            found.append(Family(f"{kind}Pool{dims}d", plain(f"{kind}Pool{dims}d", 2), shape, twice=twice))
            name = f"Adaptive{kind}Pool{dims}d"
            found.append(Family(name, plain(name, sides), shape, twice=twice))
        name = f"BatchNorm{dims}d"
        found.append(Family(name, coded(name, 6), shape, 1, batched=False))
    found += [Family(name, recurrent(name), (6, 9, 24), 3, first) for name in ("RNN", "LSTM", "GRU")]
    found += [Family(name, coded(name), ROWS, 1) for name in SMOOTH]
    found += [Family(name, plain(name), ROWS, twice=True) for name in PIECEWISE]
    return found


FAMILIES = _families()
# Torch's own forward and backward passes, under our names.
AS_TORCH = ("Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout")
DROPOUTS = [family for family in FAMILIES if "Dropout" in family.name]
NO_DROPOUTS = [family for family in FAMILIES if "Dropout" not in family.name]
WITH_SKETCH = [family for family in FAMILIES if hasattr(family.layer(), "sketch")]
WITH_BITS = [family for family in FAMILIES if hasattr(family.layer(), "bits")]
WITH_WEIGHTS = [family for family in FAMILIES if list(family.layer().parameters())]


def step(family: Family, layer: torch.nn.Module, x: Tensor, seed: int = 5) -> list[Tensor]:
    """y, dx and the gradients of parameters of one seeded step, dy being the same at every call."""
    torch.manual_seed(seed)
    leaf = x.detach().requires_grad_()
    y = family.call(layer, leaf)
    dy = values(y.shape, y.dtype, 8)
    grads = torch.autograd.grad(y, [leaf, *layer.parameters()], dy, allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None)]


def near(got: Tensor, want: Tensor, share: float = 0.05) -> bool:
    """Within a share of the largest value, or a thousandth of the random numbers that went in: what the noise
    of eight bits stays below, and what a value out of place does not."""
    assert got.shape == want.shape and got.dtype == want.dtype
    if got.numel() == 0:
        return True
    return bool((got - want).abs().max() <= share * want.abs().max() + 1e-3)

"""Layers whose noise has a closed form: what each setting costs in bytes and adds in variance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad as conv_gradients
from torch import Tensor
from torch.nn import Module

from .. import _C, ops
from ..convert.lookalikes import known_as
from ..convert.registry import NORMS
from ..functional._conv import _by_channel
from ..functional._norm import _batch_shape, _memory_order, _set_shape
from ..ops.elementwise import NUMBER
from ..sketch import BITS, NORM_BITS, Sketch, is_worthwhile, saved_nbytes
from . import formulae

Setting = Sketch | int | None  # what is kept of an activation; bits of a norm or function; None: all of it

_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)
# torch's class -> name and parameters of its function, as ops take them.
_FUNCTIONS: dict[type[Module], Callable[..., tuple[str, tuple[float, float, float]]]] = {
    torch.nn.GELU: lambda m: ("gelu" if m.approximate == "none" else "gelu_tanh", (0, 0, 0)),
    torch.nn.SiLU: lambda m: ("silu", (0, 0, 0)),
    torch.nn.Mish: lambda m: ("mish", (0, 0, 0)),
    torch.nn.Hardswish: lambda m: ("hardswish", (0, 0, 0)),
    torch.nn.Tanh: lambda m: ("tanh", (0, 0, 0)),
    torch.nn.Sigmoid: lambda m: ("sigmoid", (0, 0, 0)),
    torch.nn.LogSigmoid: lambda m: ("logsigmoid", (0, 0, 0)),
    torch.nn.Softplus: lambda m: ("softplus", (m.beta, m.threshold, 0)),
    torch.nn.ELU: lambda m: ("elu", (m.alpha, 1, 1)),
    torch.nn.CELU: lambda m: ("elu", (m.alpha, 1, 1 / m.alpha)),
    torch.nn.SELU: lambda m: ("elu", (1.6732632423543772, 1.0507009873554805, 1)),
}


@dataclass
class LayerNoise:
    """One layer in the probe step.

    kind: "linear", "conv", "norm" or "activation". rows: [rows, features] of its matrices, one a call.
    pack: setting -> bytes. variance: setting -> sum of the variances that it adds to all gradients. square,
    minibatch: of layers with a matrix of weights, ||D||^2 and the variance of D over minibatches.
    """

    name: str
    module: Any
    kind: str
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtype: torch.dtype = torch.float32
    pack: dict[Setting, int] = field(default_factory=dict)
    variance: dict[Setting, float] = field(default_factory=dict)
    square: float = 0.0
    minibatch: float = 0.0

    @property
    def bits(self) -> list[int]:
        """Of a normalisation or function: those that are worthwhile."""
        return [setting for setting in self.pack if isinstance(setting, int)]

    def add(self, setting: Setting, nbytes: int, variance: float) -> None:
        self.pack[setting] = self.pack.get(setting, 0) + nbytes
        self.variance[setting] = self.variance.get(setting, 0.0) + variance


def kind_of(module: Any) -> str:
    """ "" for a layer without a closed form."""
    if isinstance(module, torch.nn.Linear) or known_as(module) == "conv1d":
        return "linear"
    if isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
        return "conv" if module.padding_mode == "zeros" and not isinstance(module.padding, str) else ""
    if isinstance(module, NORMS):
        return "norm"
    return "activation" if type(module) in _FUNCTIONS else ""


def weigh_linear(
    layer: LayerNoise, x: Tensor, dy: Tensor, dtype: torch.dtype, sketches: Iterable[Sketch]
) -> None:
    """Price one call of a linear layer. dtype: of the pack, which autocast decides."""
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    rows, features = x.shape
    worthwhile = [s for s in sketches if s.is_worthwhile(rows, features, dtype)]
    for sketch, variance in formulae.linear_variances(worthwhile, x, dy).items():
        layer.add(sketch, saved_nbytes(rows, features, dtype, sketch), variance)


def weigh_conv(layer: LayerNoise, x: Tensor, dy: Tensor, dtype: torch.dtype) -> None:
    """Price one call of a convolution: codes of its whole input, whose variance has a closed form."""
    module = layer.module
    if not module.weight.requires_grad:  # nothing is kept, and there is no gradient to be noisy
        return layer.add(Sketch(1, bits=max(BITS)), 0, 0.0)
    if x.dim() < module.weight.dim():
        x, dy = x.unsqueeze(0), dy.unsqueeze(0)
    reach = _reach(module, x, dy)
    for bits in BITS:
        sketch = Sketch(1, bits=bits)
        by_channel = _by_channel(x.shape, sketch, dtype)
        shape = ops.packed_shape(x.shape, by_channel)
        if sketch.is_worthwhile(*shape, dtype):
            matrix, weight = ((t if by_channel else t.movedim(1, -1)).reshape(shape) for t in (x, reach))
            variance = formulae.conv_variance(bits, matrix.to(_precise(x)), weight)
            layer.add(sketch, saved_nbytes(*shape, dtype, sketch), variance)


def _reach(module: Any, x: Tensor, dy: Tensor) -> Tensor:
    """Of each entry of x, the sum of dy^2 over all outputs and taps that it meets."""
    groups, spatial = module.groups, x.dim() - 2
    squares = dy.double().square().unflatten(1, (groups, -1)).sum(2).flatten(0, 1).unsqueeze(1)
    ones = squares.new_ones(1, 1, *module.kernel_size)
    geometry = (module.stride, module.padding, module.dilation)
    if isinstance(module, _TRANSPOSED):
        found = getattr(F, f"conv{spatial}d")(squares, ones, None, *geometry)
    else:
        size = (squares.shape[0], 1, *x.shape[2:])
        found = getattr(conv_gradients, f"conv{spatial}d_input")(size, ones, squares, *geometry)
    return found.reshape(x.shape[0], groups, *x.shape[2:]).repeat_interleave(x.shape[1] // groups, 1)


@dataclass
class Noisy:
    """One call of a layer that puts noise into dx; it waits for the tangents of its input."""

    layer: LayerNoise
    x: Tensor
    dy: Tensor

    def __post_init__(self) -> None:
        # Now, because the pass with tangents puts dual numbers in the place of the parameters.
        weight = getattr(self.layer.module, "weight", None)
        self.weight = None if weight is None else weight.detach()
        if self.layer.kind == "activation":
            self._add_activation()
        else:
            self._add_norm(weight is not None and weight.requires_grad)

    def _add(self, bits: int, cost: int, variance: float) -> None:
        if is_worthwhile(cost, self.x.numel() * self.x.dtype.itemsize):
            self.layer.add(bits, cost, variance)

    def _add_activation(self) -> None:
        for bits in BITS:
            self._add(bits, ops.derivative_nbytes(self.x.numel(), bits), 0.0)

    def _add_norm(self, learns: bool) -> None:
        norm, numel = _Norm(self.layer.module, self.weight, self.x), self.x.numel()
        statistics = numel // norm.shape.set * ops.statistics_dtype(self.x.dtype).itemsize
        dy_squares = norm.sets(self.dy).square()
        for bits in NORM_BITS:
            own = float((norm.steps(bits).square() * dy_squares).sum()) / 12 if learns else 0.0
            self._add(bits, ops.norm_saved_nbytes(numel, norm.shape, bits) + statistics, own)

    def price(self, tangent: Tensor, share: float) -> None:
        """Add ``share`` of the variance along one random tangent."""
        if self.layer.kind == "activation":
            function, parameters = _FUNCTIONS[type(self.layer.module)](self.layer.module)
            for bits in self.layer.bits:
                step = _C.derivative_step(NUMBER[function], parameters, bits)
                self.layer.add(bits, 0, share * formulae.derivative_variance(step, self.dy, tangent))
            return
        norm = _Norm(self.layer.module, self.weight, self.x)
        a, z = norm.spread_weight() * norm.sets(self.dy), norm.sets(tangent)
        for bits in self.layer.bits:
            variance = norm.steps(bits).square() / 12
            self.layer.add(bits, 0, share * formulae.norm_variance(variance, norm.xhat, a, norm.rstd, z))


def _norm_shape(module: Any, x: Tensor) -> ops.NormShape:
    if isinstance(module, torch.nn.GroupNorm):
        return _set_shape(x, "group", module.num_groups)
    if isinstance(module, torch.nn.LayerNorm | torch.nn.RMSNorm):
        return _set_shape(x, "layer", module.normalized_shape)
    return _batch_shape(x)


class _Norm:
    """A normalisation of x, set by set, in the precision of its statistics."""

    def __init__(self, module: Any, weight: Tensor | None, x: Tensor) -> None:
        self.module, self.weight, self.shape, self.layout = module, weight, _norm_shape(module, x), x
        values = self.sets(x)
        centred = not isinstance(module, torch.nn.RMSNorm)
        eps = module.eps if module.eps is not None else torch.finfo(values.dtype).eps
        values = values - values.mean(1, True) if centred else values
        self.rstd = (values.square().mean(1, True) + eps).rsqrt()
        self.xhat = values * self.rstd

    def sets(self, t: Tensor) -> Tensor:
        """[sets, values of a set]"""
        t = t.to(_precise(t))
        return t.transpose(0, 1).flatten(1) if self.shape.by_channel else t.reshape(-1, self.shape.set)

    def spread_weight(self) -> Tensor | float:
        """Of each value of ``sets``."""
        if self.weight is None:
            return 1.0
        weight = self.weight.to(self.xhat.dtype)
        if isinstance(self.module, torch.nn.LayerNorm | torch.nn.RMSNorm):
            return weight.reshape(1, -1)
        return self.sets(weight.view(1, -1, *[1] * (self.layout.dim() - 2)).expand(self.layout.shape))

    def steps(self, bits: int) -> Tensor:
        """Of each value's group; a batch's values are one line in memory order."""
        if not self.shape.by_channel:
            return formulae.dither_steps(self.xhat, bits, True).to(self.xhat.dtype)
        x = self.layout
        last = x.dim() > 2 and _memory_order(x) != torch.contiguous_format
        order = [0, *range(2, x.dim()), 1] if last else list(range(x.dim()))
        image = self.xhat.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1).permute(order)
        steps = formulae.dither_steps(image.reshape(1, -1), bits, True).to(image.dtype).view(image.shape)
        return self.sets(steps.permute([order.index(i) for i in range(x.dim())]))


def _precise(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32

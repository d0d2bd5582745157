"""One exact training step under observation: what each setting of each layer would add to the gradients'
variance.

The noise of a sample stays in its own weight gradient. That of a normalisation or activation enters dx and
from there every gradient below. With J the derivative of the layer's input by all parameters, a noise e of dx
becomes J^T e, and for signs u drawn for every parameter

    E ||J^T e||^2 = E <J^T e, u>^2 = E (sum_i e_i z_i)^2,    z = J u.

z is the tangent of the layer's input along u: one forward pass with dual numbers has those of all layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..convert.probe import Step, without_trace
from ..functional._checks import autocast_dtype
from ..sketch import Sketch
from .layers import LayerNoise, Noisy, kind_of, weigh_conv, weigh_linear

MICROBATCHES = 8


@dataclass
class Found:
    """layers: by name, in the order of registration. gradient_square: squared norm of all gradients."""

    layers: dict[str, LayerNoise]
    gradient_square: float = 0.0
    loss: float = 0.0
    calls: dict[tuple[str, int], Noisy] = field(default_factory=dict)

    @property
    def square(self) -> float:
        """Squared norm of the gradients of the layers' matrices."""
        return sum(layer.square for layer in self.layers.values())

    @property
    def minibatch(self) -> float:
        """Variance of these gradients over minibatches of this size."""
        return sum(layer.minibatch for layer in self.layers.values())


def scalar(result: Any) -> Tensor:
    """The loss that a step returns, by itself or as attribute ``loss``.

    Raises:
        ValueError: it is no scalar, or needs no gradient.
    """
    if not isinstance(result, Tensor):
        result = getattr(result, "loss", result)
    if not isinstance(result, Tensor) or result.numel() != 1:
        got = f"a tensor {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"loss(model, *inputs), or without loss the model, must return a scalar; got {got}")
    if not result.requires_grad:
        raise ValueError("nothing requires a gradient: no parameter that the loss depends on does")
    return result


def probe(
    model: Module, step: Step, names: Iterable[str], sketches: Iterable[Sketch], tangents: int
) -> Found:
    """Price every setting of the named layers. Nothing in the model changes, nor do random generators.

    Args:
        names: of layers with a closed form, or of others with weights to be counted for the minibatch's
            noise.
        sketches: for linear layers.
        tangents: random directions for the noise of normalisations and activations; more are more precise.
    """
    modules = dict(model.named_modules())
    layers = {name: LayerNoise(name, modules[name], kind_of(modules[name])) for name in names}
    found = Found(layers)
    sketches = list(sketches)
    with without_trace(model), torch.enable_grad():
        model.train()
        _backward(model, step, found, sketches)
    if found.calls:
        generator = torch.Generator().manual_seed(0)
        for _ in range(tangents):
            with without_trace(model):
                model.train()
                _forward_along(model, step, found, generator, 1 / tangents)
    found.calls.clear()
    return found


def _backward(model: Module, step: Step, found: Found, sketches: list[Sketch]) -> None:
    counts: dict[str, int] = {}

    def called(name: str, _module: Module, args: Any, kwargs: Any, y: Any) -> None:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        call = counts[name] = counts.get(name, -1) + 1
        if x is None or not isinstance(y, Tensor) or not y.requires_grad:
            return
        layer, dtype = found.layers[name], autocast_dtype(x)
        layer.shapes.append(tuple(x.shape))
        layer.dtype = x.dtype
        y.register_hook(partial(_priced, found, layer, call, x.detach(), dtype, sketches))

    handles = [
        layer.module.register_forward_hook(partial(called, name), with_kwargs=True)
        for name, layer in found.layers.items()
    ]
    try:
        loss = scalar(step(model))
    finally:
        for handle in handles:
            handle.remove()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found.loss = float(loss.detach())
    found.gradient_square = sum(float(g.double().square().sum()) for g in gradients if g is not None)


def _priced(
    found: Found,
    layer: LayerNoise,
    call: int,
    x: Tensor,
    dtype: torch.dtype,
    sketches: list[Sketch],
    dy: Tensor,
) -> None:
    with torch.no_grad():
        dy = dy.detach()
        if layer.kind == "linear":
            weigh_linear(layer, x, dy, dtype, sketches)
            _count_minibatch(layer, x, dy)
        elif layer.kind == "conv":
            weigh_conv(layer, x, dy, dtype)
        else:
            found.calls[layer.name, call] = Noisy(layer, x, dy)


def _count_minibatch(layer: LayerNoise, x: Tensor, dy: Tensor) -> None:
    """||D||^2, and how D would vary over minibatches, from the gradients of parts of this one."""
    parts = min(MICROBATCHES, len(x))
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    total, squares = torch.zeros((), device=x.device), 0.0
    for xs, dys in zip(x.tensor_split(parts), dy.tensor_split(parts)):
        part = dys.reshape(-1, dy.shape[-1]).to(precise).mT @ xs.reshape(-1, x.shape[-1]).to(precise)
        squares += float(part.double().square().sum())
        total = total + part
    square = float(total.double().square().sum())
    layer.square += square
    if parts > 1:
        layer.minibatch += parts / (parts - 1) * (squares - square / parts)


class _Whole(Module):
    """A model with its loss, so that functional_call replaces the model's parameters."""

    def __init__(self, model: Module, step: Step) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self) -> Any:
        return self.step(self.model)


def _forward_along(model: Module, step: Step, found: Found, generator: torch.Generator, share: float) -> None:
    counts: dict[str, int] = {}

    def called(name: str, _module: Module, args: Any, kwargs: Any) -> None:
        call = counts[name] = counts.get(name, -1) + 1
        noisy = found.calls.get((name, call))
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if noisy is None or x is None:
            return
        tangent = forward_ad.unpack_dual(x).tangent
        if tangent is not None:
            noisy.price(tangent, share)

    names = {name for name, _ in found.calls}
    handles = [
        found.layers[name].module.register_forward_pre_hook(partial(called, name), with_kwargs=True)
        for name in names
    ]
    try:
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            duals = {
                f"model.{name}": forward_ad.make_dual(p.detach(), _signs(p, generator))
                for name, p in model.named_parameters()
                if p.requires_grad
            }
            functional_call(_Whole(model, step), duals, ())
    except RuntimeError as error:  # NotImplementedError is one
        raise RuntimeError(
            "the noise of normalisations and activations cannot be followed to the weights: something in the "
            f"model has no forward derivative; exclude them. {str(error).splitlines()[0]}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()


def _signs(parameter: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, parameter.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
    return signs.to(parameter.device, parameter.dtype)

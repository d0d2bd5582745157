"""Smooth functions: their derivative is kept in a few dithered bits an element."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import check_bits, check_tensor
from ._piecewise import _number


class _DerivativeProduct(Function):
    """dy times the coded derivative, whose own derivative is not kept.

    ``token`` ties dx to x in the graph, so that a second derivative is an error and not zero.
    """

    @staticmethod
    def forward(dy, saved, token, function, parameters, bits, stride):
        return ops.derivative_product(dy, saved, function, parameters, bits, stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("a coded derivative cannot be differentiated again; bits=None keeps torch's own")


class _Smooth(Function):
    @staticmethod
    def forward(x, function, parameters, bits):
        return *ops.activation(x, function, parameters, bits), x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, saved, token = output
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved, token)
        ctx.arguments = (*inputs[1:], y.stride())

    @staticmethod
    def backward(ctx, dy, *_):
        dx = None if dy is None else _DerivativeProduct.apply(dy, *ctx.saved_tensors, *ctx.arguments)
        return dx, None, None, None


def only_draws(*tensors: Tensor) -> bool:
    """Whether nothing is kept of a coding call but its draw. Compiled code would drop a draw whose result is
    not used: there the op codes without need."""
    if torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def codes_nothing(x: Tensor, bits: int | None) -> bool:
    """Whether torch's own path serves, apart from grad mode: that must not change how much RNG is used."""
    if bits is None or x.numel() == 0:
        return True
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _smooth(
    x: Tensor,
    exact: Callable[[Tensor], Tensor],
    function: str,
    bits: int | None,
    parameters: tuple[float, float, float] = (0.0, 0.0, 0.0),
    inplace: bool = False,
) -> Tensor:
    """The one path of all smooth functions; ``exact`` is torch's own, with ``inplace`` where it has it."""
    check_bits(bits)
    check_tensor("x", x)
    if codes_nothing(x, bits):
        return exact(x)
    if only_draws(x):
        ops.draw_key(x.device)
        return exact(x)
    y = _Smooth.apply(x, function, parameters, bits)[0]
    return x.copy_(y) if inplace else y


def gelu(x: Tensor, approximate: str = "none", *, bits: int | None = 4) -> Tensor:
    """``F.gelu`` that keeps its derivative in ``bits`` dithered bits an element instead of x.

    The output is torch's bit for bit; dx is unbiased, with variance ``(dy step)^2 / 12`` (docs/maths.md,
    derivatives). ``bits=None``, inference mode and an empty x take torch's own path; without gradients
    nothing is kept, but a key is drawn. One NaN among the derivatives makes all of dx NaN. A second
    derivative raises.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        approximate: "none" or "tanh".
        bits: 8, 4, 2, 1, or None for torch's exact gradient.

    Raises:
        TypeError: x is not a strided floating tensor, or bits is no integer.
        ValueError: bits or approximate is none of the values above.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    name = "gelu" if approximate == "none" else "gelu_tanh"
    return _smooth(x, lambda x: F.gelu(x, approximate=approximate), name, bits)


def silu(x: Tensor, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.silu`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    return _smooth(x, lambda x: F.silu(x, inplace=inplace), "silu", bits, inplace=inplace)


def mish(x: Tensor, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.mish`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    return _smooth(x, lambda x: F.mish(x, inplace=inplace), "mish", bits, inplace=inplace)


def hardswish(x: Tensor, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.hardswish`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    return _smooth(x, lambda x: F.hardswish(x, inplace=inplace), "hardswish", bits, inplace=inplace)


def tanh(x: Tensor, *, bits: int | None = 4) -> Tensor:
    """``torch.tanh`` with a coded derivative: ``gelu`` tells what that means, and the errors.

    torch keeps the output: this pays where nothing behind it keeps it as well.
    """
    return _smooth(x, torch.tanh, "tanh", bits)


def sigmoid(x: Tensor, *, bits: int | None = 4) -> Tensor:
    """``torch.sigmoid`` with a coded derivative: as ``tanh``."""
    return _smooth(x, torch.sigmoid, "sigmoid", bits)


def logsigmoid(x: Tensor, *, bits: int | None = 4) -> Tensor:
    """``F.logsigmoid`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    return _smooth(x, F.logsigmoid, "logsigmoid", bits)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0, *, bits: int | None = 4) -> Tensor:
    """``F.softplus`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    beta, threshold = _number("beta", beta), _number("threshold", threshold)
    return _smooth(x, lambda x: F.softplus(x, beta, threshold), "softplus", bits, (beta, threshold, 0.0))


# F.selu's own constants.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def elu(x: Tensor, alpha: float = 1.0, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.elu`` with a coded derivative: ``gelu`` tells what that means, and the errors.

    Raises:
        ValueError: also for an alpha that is not finite.
    """
    alpha = _number("alpha", alpha)
    if not -math.inf < alpha < math.inf:
        raise ValueError(f"alpha must be finite, got {alpha}")
    return _smooth(x, lambda x: F.elu(x, alpha, inplace), "elu", bits, (alpha, 1.0, 1.0), inplace)


def celu(x: Tensor, alpha: float = 1.0, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.celu`` with a coded derivative: ``gelu`` tells what that means, and the errors.

    Raises:
        ValueError: also for an alpha that is not positive and finite.
    """
    alpha = _number("alpha", alpha)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    return _smooth(x, lambda x: F.celu(x, alpha, inplace), "elu", bits, (alpha, 1.0, 1.0 / alpha), inplace)


def selu(x: Tensor, inplace: bool = False, *, bits: int | None = 4) -> Tensor:
    """``F.selu`` with a coded derivative: ``gelu`` tells what that means, and the errors."""
    parameters = (_SELU_ALPHA, _SELU_SCALE, 1.0)
    return _smooth(x, lambda x: F.selu(x, inplace=inplace), "elu", bits, parameters, inplace)

"""Piecewise linear functions: one bit an element says which slope the gradient has, exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._activation import _Masked
from ._checks import check_tensor

_SIXTH = 0.1666666716337204  # in float32: torch's factor in every dtype

# (rule, lo, hi, on, off): where the gradient has the factor `on`; elsewhere it has `off`.
Kink = tuple[str, float, float, float, float]


class _Sloped(Function):
    """dx = dy * (mask ? on : off): linear in dy, so it is its own derivative."""

    @staticmethod
    def forward(dy, mask, on, off, stride):
        return ops.sloped(dy, mask, on, off, stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, mask, *ctx.arguments = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx, ddx):
        return _Sloped.apply(ddx, *ctx.saved_tensors, *ctx.arguments), None, None, None, None


class _Piecewise(Function):
    @staticmethod
    def forward(x, function, kink):
        return function(x), ops.kink(x, *kink[:3])

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(mask)
        ctx.slopes, ctx.stride = inputs[2][3:], y.stride()

    @staticmethod
    def backward(ctx, dy, _):
        if ctx.slopes == (1.0, 0.0):
            dx = _Masked.apply(dy, *ctx.saved_tensors, ctx.stride)
        else:
            dx = _Sloped.apply(dy, *ctx.saved_tensors, *ctx.slopes, ctx.stride)
        return dx, None, None


def _piecewise(x: Tensor, function: Callable[[Tensor], Tensor], kink: Kink, inplace: bool) -> Tensor:
    check_tensor("x", x)
    if x.requires_grad and torch.is_grad_enabled():
        y = _Piecewise.apply(x, function, kink)[0]
    else:
        y = function(x)
    return x.copy_(y) if inplace else y


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def hardtanh(x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """``F.hardtanh`` that keeps one bit an element instead of x: exact.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        min_val, max_val: the range.
        inplace: overwrite x.

    Raises:
        TypeError: x is not a strided floating tensor, or a bound is no number.
        ValueError: min_val is above max_val.
    """
    lo, hi = _number("min_val", min_val), _number("max_val", max_val)
    if lo > hi:
        raise ValueError(f"min_val must not be above max_val, got {min_val} and {max_val}")
    return _piecewise(x, lambda x: F.hardtanh(x, lo, hi), ("between", lo, hi, 1.0, 0.0), inplace)


def relu6(x: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu6`` that keeps one bit an element instead of x: exact. Arguments and errors as ``hardtanh``."""
    return _piecewise(x, F.relu6, ("between", 0.0, 6.0, 1.0, 0.0), inplace)


def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``F.leaky_relu`` that keeps one bit an element instead of x: exact. Errors as ``hardtanh``."""
    slope = _number("negative_slope", negative_slope)
    return _piecewise(x, lambda x: F.leaky_relu(x, slope), ("above", 0.0, 0.0, 1.0, slope), inplace)


def threshold(x: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """``F.threshold`` that keeps one bit an element instead of x: exact. Errors as ``hardtanh``."""
    limit, value = _number("threshold", threshold), _number("value", value)
    kink = ("not_below", limit, 0.0, 1.0, 0.0)
    return _piecewise(x, lambda x: F.threshold(x, limit, value), kink, inplace)


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """``F.hardsigmoid`` that keeps one bit an element instead of x: exact. Errors as ``hardtanh``."""
    return _piecewise(x, F.hardsigmoid, ("within", -3.0, 3.0, _SIXTH, 0.0), inplace)


def softshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """``F.softshrink`` that keeps one bit an element instead of x: exact. Errors as ``hardtanh``."""
    return _shrink(x, F.softshrink, lambd)


def hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """``F.hardshrink`` that keeps one bit an element instead of x: exact. Errors as ``hardtanh``."""
    return _shrink(x, F.hardshrink, lambd)


def _shrink(x: Tensor, function: Callable[[Tensor, float], Tensor], lambd: float) -> Tensor:
    limit = _number("lambd", lambd)
    if limit < 0:
        raise ValueError(f"lambd must be at least 0, got {lambd}")
    return _piecewise(x, lambda x: function(x, limit), ("outside", -limit, limit, 1.0, 0.0), False)

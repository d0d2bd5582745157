from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from ..sketch import PLANE_ALIGN, TRAILER_BYTES
from .key import visible_key
from .salt import rank_salt

_ops = torch.ops.rad_kernels


def relu(x: Tensor) -> tuple[Tensor, Tensor]:
    """``(relu(x), mask)`` ; mask int32 [ceil(numel / 32)], one bit an element in y's memory order."""
    return _ops.relu(x)


def relu_(x: Tensor) -> Tensor:
    """relu in place; returns the mask, in the memory order of a dense tensor like x."""
    return _ops.relu_(x)


def masked(dy: Tensor, mask: Tensor, stride: Sequence[int]) -> Tensor:
    """dy where the mask is set, else 0; ``stride`` is that of the tensor that the mask came from."""
    return _ops.masked(dy, mask, stride)


RULES = ("above", "not_below", "between", "within", "outside")


def kink(x: Tensor, rule: str, lo: float, hi: float) -> Tensor:
    """int32 [ceil(numel / 32)]: a mask like relu's of where ``rule`` (csrc/contract/elementwise.h) holds."""
    return _ops.kink(x, RULES.index(rule), lo, hi)


def sloped(dy: Tensor, mask: Tensor, on: float, off: float, stride: Sequence[int]) -> Tensor:
    """dy * on where the mask is set, else dy * off (0 for off = 0, whatever dy is)."""
    return _ops.sloped(dy, mask, on, off, stride)


def _logsigmoid(x: Tensor) -> Tensor:
    """F.logsigmoid, whose output is contiguous, with strides like x as all others have."""
    y = F.logsigmoid(x)
    ordered = torch.empty_like(x)
    return y if y.stride() == ordered.stride() else ordered.copy_(y)


# name -> torch's function of x and the three parameters that csrc/contract/elementwise.h gives it.
FUNCTIONS: dict[str, Callable[[Tensor, float, float, float], Tensor]] = {
    "gelu": lambda x, a, b, c: F.gelu(x),
    "gelu_tanh": lambda x, a, b, c: F.gelu(x, approximate="tanh"),
    "silu": lambda x, a, b, c: F.silu(x),
    "mish": lambda x, a, b, c: F.mish(x),
    "tanh": lambda x, a, b, c: torch.tanh(x),
    "sigmoid": lambda x, a, b, c: torch.sigmoid(x),
    "logsigmoid": lambda x, a, b, c: _logsigmoid(x),
    "softplus": lambda x, a, b, c: F.softplus(x, a, b),
    "elu": lambda x, a, b, c: torch.ops.aten.elu(x, a, b, c),
    "hardswish": lambda x, a, b, c: F.hardswish(x),
    "relu": lambda x, a, b, c: F.relu(x),
}
NUMBER = {name: number for number, name in enumerate(FUNCTIONS)}
_NAMES = tuple(FUNCTIONS)
Parameters = Sequence[float]


def derivative_nbytes(numel: int, bits: int) -> int:
    """Bytes that are kept of the derivatives of ``numel`` elements: core/derivative.h once more, for traced
    shapes."""
    codes = (numel + 7) // 8 * bits
    return (codes + PLANE_ALIGN - 1) // PLANE_ALIGN * PLANE_ALIGN + TRAILER_BYTES


def activation(
    x: Tensor, function: str, parameters: Parameters, bits: int, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(f(x), saved)``: torch's f and ``bits``-bit codes of f'(x) in f(x)'s memory order."""
    return _ops.activation(x, NUMBER[function], parameters, bits, rank_salt(), visible_key(key, x.device))


def derivative_product(
    dy: Tensor, saved: Tensor, function: str, parameters: Parameters, bits: int, stride: Sequence[int]
) -> Tensor:
    """dy times the unbiased estimate of f'(x); ``stride`` is that of the forward's output."""
    return _ops.derivative_product(dy, saved, NUMBER[function], parameters, bits, stride)


def _activation(
    x: Tensor, function: int, parameters: Parameters, bits: int, salt: int, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # In Python, because torch's stable ABI cannot call functions with scalar arguments.
    saved = _ops.derivative_codes(x, function, parameters, bits, salt, key)
    return FUNCTIONS[_NAMES[function]](x, *parameters), saved


torch.library.impl("rad_kernels::activation", ("cpu", "cuda"))(_activation)


def dropout(x: Tensor, threshold: int, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(y, saved)``: x scaled where its 32-bit word is at least ``threshold``, else 0; saved is the key."""
    return _ops.dropout(x, threshold, rank_salt(), visible_key(key, x.device))


def dropout_backward(dy: Tensor, saved: Tensor, threshold: int, stride: Sequence[int]) -> Tensor:
    """dy through the same mask; ``stride`` is that of the forward's output."""
    return _ops.dropout_backward(dy, saved, threshold, stride)


@register_fake("rad_kernels::kink")
def _(x, rule, lo, hi):
    return _mask_like(x)


@register_fake("rad_kernels::sloped")
def _(dy, mask, on, off, stride):
    return dy.new_empty_strided(dy.shape, stride)


def _codes_like(x: Tensor, bits: int) -> Tensor:
    return x.new_empty(derivative_nbytes(x.numel(), bits), dtype=torch.uint8)


@register_fake("rad_kernels::activation")
def _(x, function, parameters, bits, salt, key=None):
    return torch.empty_like(x), _codes_like(x, bits)


@register_fake("rad_kernels::derivative_codes")
def _(x, function, parameters, bits, salt, key=None):
    return _codes_like(x, bits)


@register_fake("rad_kernels::derivative_product")
def _(dy, saved, function, parameters, bits, stride):
    return dy.new_empty_strided(dy.shape, stride)


def _mask_like(x: Tensor) -> Tensor:
    return x.new_empty((x.numel() + 31) // 32, dtype=torch.int32)


@register_fake("rad_kernels::relu")
def _(x):
    return torch.empty_like(x), _mask_like(x)


@register_fake("rad_kernels::relu_")
def _(x):
    return _mask_like(x)


@register_fake("rad_kernels::masked")
def _(dy, mask, stride):
    return dy.new_empty_strided(dy.shape, stride)


@register_fake("rad_kernels::dropout")
def _(x, threshold, salt, key=None):
    return torch.empty_like(x), x.new_empty(TRAILER_BYTES, dtype=torch.uint8)


@register_fake("rad_kernels::dropout_backward")
def _(dy, saved, threshold, stride):
    return dy.new_empty_strided(dy.shape, stride)

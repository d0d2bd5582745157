from __future__ import annotations

import numbers
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import check_tensor


class _Masked(Function):
    """dx = mask ? dy : 0: linear in dy, so it is its own derivative."""

    @staticmethod
    def forward(dy, mask, stride):
        return ops.masked(dy, mask, stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, mask, ctx.stride = inputs
        ctx.save_for_backward(mask)

    @staticmethod
    def backward(ctx, ddx):
        return _Masked.apply(ddx, *ctx.saved_tensors, ctx.stride), None, None


class _ReLU(Function):
    @staticmethod
    def forward(x):
        return ops.relu(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, mask = output
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(mask)
        ctx.stride = y.stride()

    @staticmethod
    def backward(ctx, dy, _):
        return _Masked.apply(dy, *ctx.saved_tensors, ctx.stride)


class _ReLUInplace(Function):
    """The mask leaves through ``kept.mask``: with a second output, autograd would refuse views as input."""

    @staticmethod
    def forward(x, kept):
        kept.mask = ops.relu_(x)
        return x

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, kept = inputs
        ctx.mark_dirty(x)
        ctx.save_for_backward(kept.mask)
        ctx.stride = torch.empty_like(x, device="meta").stride()

    @staticmethod
    def backward(ctx, dy):
        return _Masked.apply(dy, *ctx.saved_tensors, ctx.stride), None


def _is_writable(x: Tensor) -> bool:
    """False where torch refuses to modify x in place, which autograd tells a custom Function too late."""
    if x.is_leaf or 0 in x.stride():
        return False
    if x._base is None:
        return True
    autograd = torch._C._autograd
    return not x._base.is_leaf and autograd._get_creation_meta(x) == autograd.CreationMeta.DEFAULT


def relu(x: Tensor, inplace: bool = False) -> Tensor:
    """``F.relu(x, inplace)`` that keeps one bit an element instead of its output: exact.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        inplace: overwrite x.

    Raises:
        TypeError: x is not a strided floating tensor.
    """
    check_tensor("x", x)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return F.relu(x, inplace=inplace)
    if not inplace:
        return _ReLU.apply(x)[0]
    if torch.compiler.is_compiling():  # the compiler makes this an in-place kernel of its own
        return x.copy_(_ReLU.apply(x)[0])
    return _ReLUInplace.apply(x, SimpleNamespace()) if _is_writable(x) else F.relu_(x)


class _Dropout(Function):
    """y and dx are one linear map of x and dy, regenerated from the saved key."""

    @staticmethod
    def forward(x, threshold):
        return ops.dropout(x, threshold)

    @staticmethod
    def setup_context(ctx, inputs, output):
        y, saved = output
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(saved)
        ctx.threshold, ctx.stride = inputs[1], y.stride()

    @staticmethod
    def backward(ctx, dy, _):
        return _DropoutBackward.apply(dy, *ctx.saved_tensors, ctx.threshold, ctx.stride), None


class _DropoutBackward(Function):
    @staticmethod
    def forward(dy, saved, threshold, stride):
        return ops.dropout_backward(dy, saved, threshold, stride)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, saved, ctx.threshold, ctx.stride = inputs
        ctx.save_for_backward(saved)

    @staticmethod
    def backward(ctx, ddx):
        dy = _DropoutBackward.apply(ddx, *ctx.saved_tensors, ctx.threshold, ctx.stride)
        return dy, None, None, None


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """``F.dropout`` that keeps its 64-byte key instead of a mask.

    Each element is dropped with probability round(p 2^32) / 2^32 and the others scaled by that probability's
    own 1 / (1 - p), so that the expectation is exact. Under torch.compile this is ``F.dropout``: a compiler
    merges equal calls and runs them again with another key.

    Args:
        x: any shape and strides; float32, float64, bfloat16 or float16.
        p: probability in [0, 1] of an element to be zeroed.
        training: False returns x as it is.
        inplace: overwrite x.

    Raises:
        TypeError: x is not a strided floating tensor, or p is no number.
        ValueError: p is outside [0, 1].
    """
    check_tensor("x", x)
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(f"p must be a real number in [0, 1], got {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    threshold = round(p * 2**32)
    if threshold in (0, 2**32):
        p = threshold // 2**32
    trivial = not training or x.numel() == 0 or p in (0, 1)
    if trivial or torch.compiler.is_compiling() or x.device.type == "meta":
        return F.dropout(x, float(p), training, inplace)
    y = _Dropout.apply(x, threshold)[0]
    return x.copy_(y) if inplace else y


_SATURATION = 1.7580993408473766  # selu's limit at minus infinity, negated


def alpha_dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """``F.alpha_dropout`` that keeps its 64-byte key instead of a mask.

    Dropped elements take selu's limit, and an affine map restores mean 0 and variance 1. Arguments, errors
    and compiled code as ``dropout``.
    """
    check_tensor("x", x)
    if isinstance(p, bool) or not isinstance(p, numbers.Real):
        raise TypeError(f"p must be a real number in [0, 1], got {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p!r}")
    trivial = not training or x.numel() == 0 or round(p * 2**32) in (0, 2**32)
    if trivial or torch.compiler.is_compiling() or x.device.type == "meta":
        return F.alpha_dropout(x, float(p), training, inplace)
    scale = ((1 + p * _SATURATION**2) * (1 - p)) ** -0.5
    kept = dropout(x + _SATURATION, p)
    y = kept * (scale * (1 - p)) - scale * _SATURATION * (1 - p)
    return x.copy_(y) if inplace else y

"""PReLU: the slope of each element in a bit, what the slope is multiplied with in a few."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import autocast_dtype, check_bits, check_tensor
from ._smooth import codes_nothing


class _SlopeProduct(Function):
    """dy, zero where x is positive, times the codes of min(x, 0); ``token`` ties it to x in the graph, so
    that a second derivative is an error and not zero."""

    @staticmethod
    def forward(dy, saved, token, bits):
        real = torch.float64 if dy.dtype == torch.float64 else torch.float32
        return ops.gated_product(dy.to(real), saved, bits)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("a coded slope cannot be differentiated again; bits=None keeps torch's own")


class _PReLU(Function):
    @staticmethod
    def forward(x, weight, bits):
        return *ops.prelu(x, weight, bits), x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight, ctx.bits = inputs
        y, mask, saved, token = output
        ctx.mark_non_differentiable(mask, saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask, saved, token, weight if ctx.needs_input_grad[0] else None)
        ctx.weight_shape, ctx.stride = weight.shape, y.stride()

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return None, None, None
        mask, saved, token, weight = ctx.saved_tensors
        positive = ops.masked(torch.ones_like(dy), mask, ctx.stride) != 0
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = torch.where(positive, dy, _along_channels(weight, dy) * dy)
        if ctx.needs_input_grad[1]:
            terms = _SlopeProduct.apply(torch.where(positive, 0.0, dy), saved, token, ctx.bits)
            others = [d for d in range(dy.dim()) if d != 1 or ctx.weight_shape.numel() == 1]
            dw = (terms.sum(others) if others else terms).reshape(ctx.weight_shape).to(dy.dtype)
        return dx, dw, None


def _along_channels(weight: Tensor, x: Tensor) -> Tensor:
    return weight.reshape(()) if weight.numel() == 1 else weight.view(-1, *[1] * (x.dim() - 2))


def _check_weight(x: Tensor, weight: Tensor) -> None:
    check_tensor("weight", weight)
    channels = x.shape[1] if x.dim() > 1 else 1
    if weight.dim() > 1 or weight.numel() not in (1, channels):
        raise ValueError(
            f"weight must have shape [1] or [{channels}] for x of shape {tuple(x.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"x and weight must be on one device, got {x.device} and {weight.device}")
    if autocast_dtype(weight) != autocast_dtype(x):
        raise TypeError(f"x and weight must have one dtype, got {x.dtype} and {weight.dtype}")


def prelu(x: Tensor, weight: Tensor, *, bits: int | None = 4) -> Tensor:
    """``F.prelu`` that keeps one bit an element, and min(x, 0) in ``bits`` dithered bits, instead of x.

    With y = x where x > 0, else w x: the output and ``dx = dy`` or ``w dy`` are torch's; ``dw = sum of dy x``
    over the elements that are not positive is unbiased, from the codes of these x alone (docs/maths.md,
    derivatives). Backward decodes them all at once, where torch makes a product of the same size. A weight
    that needs no gradient leaves the bit alone, and nothing is drawn. ``bits=None``, inference mode and an
    empty x take torch's own path; without gradients nothing is kept, but a key is drawn. A second derivative
    of dw raises.

    Args:
        x: [N, C, ...] or any shape with one slope, any strides; float32, float64, bfloat16 or float16.
        weight: [1], or [C] slopes; x's dtype (or an autocast one) and device.
        bits: 8, 4, 2, 1, or None for torch's exact gradient.

    Raises:
        TypeError: an argument is not a strided floating tensor, dtypes differ, or bits is no integer.
        ValueError: bits is none of the values above; shapes or devices do not fit together.
    """
    check_bits(bits)
    check_tensor("x", x)
    _check_weight(x, weight)
    if codes_nothing(x, bits):
        return F.prelu(x, weight)
    assert bits is not None
    codes = bits if weight.requires_grad else 0
    recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not recorded and not torch.compiler.is_compiling():
        if codes:
            ops.draw_key(x.device)
        return F.prelu(x, weight)
    dtype = autocast_dtype(x)
    return _PReLU.apply(x.to(dtype), weight.to(dtype), codes)[0]

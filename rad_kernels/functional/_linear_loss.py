"""Linear and cross-entropy in one, without a [rows, classes] tensor. Exact: nothing is sampled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import autocast_dtype, check_parameters, check_x
from ._loss import coefficients_of_classes
from ._loss_checks import check_class_weight, check_how, check_indices

CHUNK_BYTES = {"cuda": 1 << 27}  # of a chunk's logits in float32
DEFAULT_CHUNK_BYTES = 1 << 24


def _cast(dtype, x, weight, bias):
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


class _Gradients(Function):
    """All three gradients in one pass over the chunks."""

    @staticmethod
    def forward(scale, hit, level, x, weight, bias, target, class_weight, lse, chunk, dtype, needs):
        x, weight, bias = _cast(dtype, x, weight, bias)
        return ops.linear_cross_entropy_backward(
            x, weight, bias, target, class_weight, lse, scale, hit, level, chunk, needs
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "linear_cross_entropy cannot be differentiated again: use F.cross_entropy of F.linear"
        )


class _LinearCrossEntropy(Function):
    """Losses of rows. Parameters are cast inside, so that only they, x and the logsumexp are retained."""

    @staticmethod
    def forward(x, weight, bias, target, class_weight, ignore_index, smoothing, chunk, dtype):
        x, weight, bias = _cast(dtype, x, weight, bias)
        return ops.linear_cross_entropy(x, weight, bias, target, class_weight, ignore_index, smoothing, chunk)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.ignore_index, ctx.smoothing, ctx.chunk, ctx.dtype = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx, grad, _):
        needs = ctx.needs_input_grad[:3]
        if grad is None:
            return (None,) * 9
        x, weight, bias, target, class_weight, lse = ctx.saved_tensors
        coefficients = coefficients_of_classes(
            grad, target, class_weight, "none", ctx.ignore_index, ctx.smoothing, weight.shape[0]
        )
        grads = _Gradients.apply(
            *coefficients, x, weight, bias, target, class_weight, lse, ctx.chunk, ctx.dtype, needs
        )
        inputs = zip(grads, (x, weight, bias), needs, strict=True)
        return *(g.to(t.dtype) if need else None for g, t, need in inputs), *(None,) * 6


def _check_chunk(chunk: object) -> None:
    if chunk is None:
        return
    if isinstance(chunk, bool) or not isinstance(chunk, int):
        raise TypeError(f"chunk must be None or a number of rows, got {chunk!r}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 row, got {chunk}")


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    chunk: int | None = None,
) -> Tensor:
    """``F.cross_entropy(F.linear(x, weight, bias), target)`` that never holds all logits.

    Kept are x and one logsumexp a row; backward computes the logits of ``chunk`` rows at a time once more.
    Loss and gradients are exact, equal to torch's up to rounding: sums over rows and classes are float32 for
    16-bit numbers. No random numbers are used. A second derivative raises (docs/maths.md, cross-entropy).

    Args:
        x: [..., in_features]; float32, float64, bfloat16 or float16.
        weight: [classes, in_features], of x's dtype (or an autocast one).
        target: class indices [...], int64 or uint8.
        bias: [classes] or None.
        class_weight: [classes], floating, or None.
        ignore_index, reduction, label_smoothing: as ``cross_entropy``.
        chunk: rows whose logits are held at a time; None: as many as fit into 16 MiB of float32 (CUDA: 128).

    Returns:
        A scalar, or with "none" the losses [...]; of x's dtype, float32 under autocast.

    Raises:
        TypeError: an argument is not a tensor of such a dtype, or chunk is no integer.
        ValueError: shapes, devices or values do not fit; class_weight needs a gradient.
    """
    check_x(x)
    check_parameters(x, weight, bias)
    check_how(ignore_index, reduction, label_smoothing)
    check_indices(target, x.shape[:-1], x)
    check_class_weight("class_weight", class_weight, weight.shape[0], x)
    _check_chunk(chunk)
    if class_weight is not None and class_weight.requires_grad and torch.is_grad_enabled():
        raise ValueError("class_weight must need no gradient")
    dtype, classes = autocast_dtype(x), max(1, weight.shape[0])
    real = torch.float64 if dtype == torch.float64 else torch.float32
    result = dtype if dtype == x.dtype and not _under_autocast(x) else real
    if chunk is None:
        chunk = max(1, CHUNK_BYTES.get(x.device.type, DEFAULT_CHUNK_BYTES) // (4 * classes))
    class_weight = None if class_weight is None else class_weight.to(real)
    rows, flat = x.reshape(-1, x.shape[-1]), target.reshape(-1).long()
    losses = _LinearCrossEntropy.apply(
        rows, weight, bias, flat, class_weight, ignore_index, float(label_smoothing), chunk, dtype
    )[0]
    if reduction == "none":
        return losses.view(target.shape).to(result)
    if reduction == "sum":
        return losses.sum().to(result)
    counted = flat != ignore_index
    if class_weight is None:
        return (losses.sum() / counted.sum()).to(result)
    own = torch.where(counted, class_weight[torch.where(counted, flat, 0)], 0.0)
    return (losses.sum() / own.sum()).to(result)


def _under_autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)

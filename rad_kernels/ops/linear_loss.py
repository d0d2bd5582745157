"""Linear and cross-entropy together, a chunk of rows at a time, so that no [rows, classes] tensor exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .loss import class_loss

_ops = torch.ops.rad_kernels


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """``(losses, logsumexp)`` of x [rows, features], each [rows] and float32 (float64 for float64)."""
    return _ops.linear_cross_entropy(
        x, weight, bias, target, class_weight, ignore_index, label_smoothing, chunk
    )


def linear_cross_entropy_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    logsumexp: Tensor,
    scale: Tensor,
    hit: Tensor,
    level: Tensor | None,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias)``, empty where ``needs`` is false.

    The gradient of the logits is ``scale p - level class_weight - [class == target] hit``.
    """
    return _ops.linear_cross_entropy_backward(
        x, weight, bias, target, class_weight, logsumexp, scale, hit, level, chunk, needs
    )


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(rows: int, chunk: int) -> Iterator[slice]:
    return (slice(begin, min(begin + chunk, rows)) for begin in range(0, rows, chunk))


def _log_p(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities and logsumexp of a chunk."""
    logits = F.linear(x, weight, bias).to(_real(x.dtype))
    logsumexp = torch.logsumexp(logits, 1)
    return logits.sub_(logsumexp[:, None]), logsumexp


def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    losses = x.new_empty(len(x), dtype=_real(x.dtype))
    logsumexp = torch.empty_like(losses)
    with torch.autocast(x.device.type, enabled=False):
        for rows in _chunks(len(x), chunk):
            log_p, logsumexp[rows] = _log_p(x[rows], weight, bias)
            losses[rows] = class_loss(
                log_p, target[rows], class_weight, "none", ignore_index, label_smoothing
            )
            del log_p  # before the next chunk's logits are made
    return losses, logsumexp


def _linear_cross_entropy_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    logsumexp: Tensor,
    scale: Tensor,
    hit: Tensor,
    level: Tensor | None,
    chunk: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    real = _real(x.dtype)
    dx = torch.empty_like(x) if needs[0] else x.new_empty(0)
    dw = torch.zeros_like(weight, dtype=real) if needs[1] else x.new_empty(0)
    db = weight.new_zeros(len(weight), dtype=real) if needs[2] else x.new_empty(0)
    target = target.clamp(0, len(weight) - 1)  # ignored rows, whose hit is 0
    with torch.autocast(x.device.type, enabled=False):
        for rows in _chunks(len(x), chunk):
            dy = F.linear(x[rows], weight, bias).to(real)
            dy.sub_(logsumexp[rows, None]).exp_().mul_(scale[rows, None])
            if level is not None:
                each = level[rows, None]
                dy.sub_(each if class_weight is None else each * class_weight)
            dy.scatter_add_(1, target[rows, None], -hit[rows, None])
            if needs[2]:
                db += dy.sum(0)
            dy = dy.to(x.dtype)
            if needs[0]:
                torch.mm(dy, weight, out=dx[rows])
            if needs[1] and dw.dtype == x.dtype:
                dw.addmm_(dy.t(), x[rows])
            elif needs[1]:
                dw += dy.t() @ x[rows]
            del dy
    return dx, dw.to(weight.dtype), db.to(weight.dtype)


torch.library.impl("rad_kernels::linear_cross_entropy", ("cpu", "cuda"))(_linear_cross_entropy)
torch.library.impl("rad_kernels::linear_cross_entropy_backward", ("cpu", "cuda"))(
    _linear_cross_entropy_backward
)


@register_fake("rad_kernels::linear_cross_entropy")
def _(x, weight, bias, target, class_weight, ignore_index, label_smoothing, chunk):
    losses = x.new_empty(x.shape[0], dtype=_real(x.dtype))
    return losses, torch.empty_like(losses)


@register_fake("rad_kernels::linear_cross_entropy_backward")
def _(x, weight, bias, target, class_weight, logsumexp, scale, hit, level, chunk, needs):
    like = (torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[0]))
    return tuple(t if need else x.new_empty(0) for t, need in zip(like, needs, strict=True))

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from ..sketch import PLANE_ALIGN, TRAILER_BYTES
from .key import visible_key
from .salt import rank_salt

_ops = torch.ops.rad_kernels
_GROUP = 64


def probability_nbytes(numel: int, bits: int) -> int:
    """Bytes that are kept of ``numel`` probabilities: core/probability.h once more, for traced shapes."""
    planes = ((numel + 7) // 8 * bits, (numel + _GROUP - 1) // _GROUP * 2)
    return sum((n + PLANE_ALIGN - 1) // PLANE_ALIGN * PLANE_ALIGN for n in planes) + TRAILER_BYTES


def along_classes(weight: Tensor, x: Tensor) -> Tensor:
    return weight.view(1, -1, *[1] * (x.dim() - 2))


def _counted_weight(weight: Tensor, target: Tensor, ignored: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # no shape that depends on data
        chosen = weight.gather(0, target.masked_fill(ignored, 0).flatten())
        return chosen.masked_fill(ignored.flatten(), 0.0).sum()
    return weight.gather(0, target.masked_select(~ignored).flatten()).sum()


def class_loss(
    log_p: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    """The operations of torch's cross_entropy after its log_softmax, in its order, so that bits agree."""
    hit = F.nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction=reduction)
    if smoothing == 0:
        return hit
    level = -(log_p if weight is None else log_p * along_classes(weight, log_p)).sum(1)
    ignored = target == ignore_index
    level.masked_fill_(ignored, 0.0)
    if reduction == "mean":
        count = (~ignored).sum() if weight is None else _counted_weight(weight, target, ignored)
        level = level.sum() / count
    elif reduction == "sum":
        level = level.sum()
    return (1 - smoothing) * hit + level * (smoothing / log_p.shape[1])


def log_softmax(x: Tensor, dim: int, bits: int, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(log_softmax(x), saved)``: torch's, and ``bits``-bit codes of its exponential."""
    return _ops.log_softmax(x, dim, bits, rank_salt(), visible_key(key, x.device))


def cross_entropy_backward(
    saved: Tensor,
    scale: Tensor,
    hit: Tensor | None,
    level: Tensor | None,
    class_weight: Tensor | None,
    target: Tensor | None,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
) -> Tensor:
    """``scale p^ - level class_weight - [class == target] hit`` of shape [outer, classes, ...].

    Coefficients [outer, ...] and class_weight [classes] are float32 (float64 for a float64 result), target is
    int64.
    """
    return _ops.cross_entropy_backward(saved, scale, hit, level, class_weight, target, shape, dtype, bits)


def _log_softmax(
    x: Tensor, dim: int, bits: int, salt: int, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    # In Python, because torch's stable ABI cannot call functions with scalar arguments.
    log_p = torch.log_softmax(x, dim)
    return log_p, _ops.probability_codes(log_p, bits, salt, key)


torch.library.impl("rad_kernels::log_softmax", ("cpu", "cuda"))(_log_softmax)


def _codes_like(x: Tensor, bits: int) -> Tensor:
    return x.new_empty(probability_nbytes(x.numel(), bits), dtype=torch.uint8)


@register_fake("rad_kernels::log_softmax")
def _(x, dim, bits, salt, key=None):
    return torch.log_softmax(x, dim), _codes_like(x, bits)


@register_fake("rad_kernels::probability_codes")
def _(log_p, bits, salt, key=None):
    return _codes_like(log_p, bits)


@register_fake("rad_kernels::cross_entropy_backward")
def _(saved, scale, hit, level, class_weight, target, shape, dtype, bits):
    return saved.new_empty(shape, dtype=dtype)

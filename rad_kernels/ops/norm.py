from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import saved_nbytes
from .key import visible_key
from .salt import rank_salt

_ops = torch.ops.rad_kernels


class NormShape(NamedTuple):
    """How the elements of a tensor, in memory order, form sets that share a mean and a deviation.

    Element e has parameter ``e // inner % params``. Sets are ``set`` consecutive elements, or,
    ``by_channel``, all elements of one parameter.
    """

    set: int
    params: int
    inner: int
    by_channel: bool


def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    bits: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(F.layer_norm(x, shape, weight, bias, eps), saved, rstd [sets])``."""
    return _ops.layer_norm(x, shape, weight, bias, eps, bits, rank_salt(), visible_key(key, x.device))


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float, bits: int, key: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``(F.rms_norm(x, shape, weight, eps), saved, rstd [sets])``."""
    return _ops.rms_norm(x, shape, weight, eps, bits, rank_salt(), visible_key(key, x.device))


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    bits: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(F.group_norm(x, groups, weight, bias, eps), saved, rstd [N * groups])``."""
    return _ops.group_norm(x, groups, weight, bias, eps, bits, rank_salt(), visible_key(key, x.device))


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    inner: int,
    bits: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(y, saved, rstd [C], running_mean, running_var)``: F.batch_norm in training with the new running
    statistics beside it (empty where there are none). Elements are numbered with ``inner`` in a plane, or
    channels last with ``inner`` 1."""
    return _ops.batch_norm(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        momentum,
        eps,
        inner,
        bits,
        rank_salt(),
        visible_key(key, x.device),
    )


def norm_backward(
    dy: Tensor,
    saved: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    shape: NormShape,
    centred: bool,
    bits: int,
    input_grad: bool,
    param_grads: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias)`` from dy in x's memory order; what is not wanted is empty. weight [params] and
    both parameter gradients are float32, or float64 for float64."""
    return _ops.norm_backward(dy, saved, rstd, weight, *shape, centred, bits, input_grad, param_grads)


def norm_saved_nbytes(numel: int, shape: NormShape, bits: int) -> int:
    """Bytes of the codes kept for ``numel`` normalised values; rstd, 4 (8) bytes a set, comes on top."""
    rows, width = (1, numel) if shape.by_channel else (numel // shape.set, shape.set)
    return saved_nbytes(rows, width, torch.bfloat16, (1, 1, 0, 0, bits))


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _kept(x: Tensor, shape: NormShape, bits: int) -> tuple[Tensor, Tensor]:
    n = x.numel()
    saved = x.new_empty(norm_saved_nbytes(n, shape, bits), dtype=torch.uint8)
    return saved, x.new_empty(n // shape.set, dtype=statistics_dtype(x.dtype))


@register_fake("rad_kernels::layer_norm")
def _(x, shape, weight, bias, eps, bits, salt, key=None):
    size = prod(shape)
    return (torch.empty_like(x), *_kept(x, NormShape(size, size, 1, False), bits))


@register_fake("rad_kernels::rms_norm")
def _(x, shape, weight, eps, bits, salt, key=None):
    size = prod(shape)
    return (torch.empty_like(x), *_kept(x, NormShape(size, size, 1, False), bits))


@register_fake("rad_kernels::group_norm")
def _(x, groups, weight, bias, eps, bits, salt, key=None):
    size = x.numel() // (x.shape[0] * groups)
    return (torch.empty_like(x), *_kept(x, NormShape(size, x.shape[1], 1, False), bits))


@register_fake("rad_kernels::batch_norm")
def _(x, weight, bias, running_mean, running_var, momentum, eps, inner, bits, salt, key=None):
    shape = NormShape(x.numel() // x.shape[1], x.shape[1], inner, True)
    running = [
        x.new_empty(0, dtype=statistics_dtype(x.dtype)) if t is None else torch.empty_like(t)
        for t in (running_mean, running_var)
    ]
    return (torch.empty_like(x), *_kept(x, shape, bits), *running)


@register_fake("rad_kernels::norm_backward")
def _(dy, saved, rstd, weight, set, params, inner, by_channel, centred, bits, input_grad, param_grads):
    dx = torch.empty_like(dy) if input_grad else dy.new_empty(0)
    count = params if param_grads else 0
    return dx, rstd.new_empty(count), rstd.new_empty(count)

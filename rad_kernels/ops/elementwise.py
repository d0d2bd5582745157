from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import TRAILER_BYTES
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


def dropout(x: Tensor, threshold: int, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(y, saved)``: x scaled where its 32-bit word is at least ``threshold``, else 0; saved is the key."""
    return _ops.dropout(x, threshold, rank_salt(), key)


def dropout_backward(dy: Tensor, saved: Tensor, threshold: int, stride: Sequence[int]) -> Tensor:
    """dy through the same mask; ``stride`` is that of the forward's output."""
    return _ops.dropout_backward(dy, saved, threshold, stride)


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

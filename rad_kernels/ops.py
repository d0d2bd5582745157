"""The torch ops: thin wrappers, shape rules (fakes), and the rank salt. The only file that names them.

``spec`` is always ``Sketch.spec``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from .sketch import TRAILER_BYTES, saved_nbytes

Spec = tuple[int, ...]

_ops = torch.ops.rad_kernels
_salt: int | None = None


def _resolve_salt() -> int:
    text = os.environ.get("RAD_KERNELS_SALT", "")
    if text:
        if not text.isdecimal() or int(text) >= 2**32:
            raise ValueError(f"RAD_KERNELS_SALT must be an integer in [0, 2^32), got {text!r}")
        return int(text)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", 0))


@torch.compiler.assume_constant_result
def rank_salt() -> int:
    """The process-wide salt of every key: RAD_KERNELS_SALT, or the distributed rank. Resolved once.

    Ranks that share one seed then still draw independent samples; equal samples would add up their noise.
    """
    global _salt
    if _salt is None:
        _salt = _resolve_salt()
    return _salt


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(F.linear(x, weight, bias), saved)`` with x [..., features] packed under ``spec``.

    ``key`` (int64, one element, x's device) fixes the sample; None draws it from torch's generator.
    """
    return _ops.linear(x, weight, bias, spec, rank_salt(), key)


def linear_shared(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    spec: Spec,
    key: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """``([F.linear(x, w, b) for w, b], saved)``: one pack serves all products."""
    return _ops.linear_shared(x, weights, biases, spec, rank_salt(), key)


def linear_wgrad(dy: Tensor, saved: Tensor, features: int, spec: Spec) -> Tensor:
    """The unbiased estimate of ``dy^T @ x``: [outputs, features] in dy's dtype, from dy [..., outputs]."""
    return _ops.linear_wgrad(dy, saved, features, spec)


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


def pack(x: Tensor, spec: Spec, key: Tensor | None = None) -> Tensor:
    """The saved buffer of x [..., features] alone, for tests and benchmarks.

    Not for autograd: a pack apart from its product is re-executed with another key by torch.compile.
    """
    return _ops.pack(x, spec, rank_salt(), key)


def unpack(saved: Tensor, rows: int, features: int, dtype: torch.dtype, spec: Spec) -> Tensor:
    """The dense unbiased estimate [rows, features] of the packed activation."""
    return _ops.unpack(saved, spec, rows, features, dtype)


def draw_key(device: torch.device) -> None:
    """Advance torch's generator exactly as one packing op does."""
    torch.empty(1, dtype=torch.int64, device=device).random_()


def _saved_like(x: Tensor, spec: Sequence[int]) -> Tensor:
    features = x.shape[-1]
    rows = 1
    for size in x.shape[:-1]:
        rows = rows * size
    return x.new_empty(saved_nbytes(rows, features, x.dtype, tuple(spec)), dtype=torch.uint8)


@register_fake("rad_kernels::linear")
def _(x, weight, bias, spec, salt, key=None):
    return x.new_empty(*x.shape[:-1], weight.shape[0]), _saved_like(x, spec)


@register_fake("rad_kernels::linear_shared")
def _(x, weights, biases, spec, salt, key=None):
    return [x.new_empty(*x.shape[:-1], w.shape[0]) for w in weights], _saved_like(x, spec)


@register_fake("rad_kernels::linear_wgrad")
def _(dy, saved, features, spec):
    return dy.new_empty(dy.shape[-1], features)


@register_fake("rad_kernels::pack")
def _(x, spec, salt, key=None):
    return _saved_like(x, spec)


@register_fake("rad_kernels::unpack")
def _(saved, spec, rows, features, dtype):
    return saved.new_empty(rows, features, dtype=dtype)


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

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import saved_nbytes
from .key import visible_key
from .salt import rank_salt

Spec = tuple[int, ...]

_ops = torch.ops.rad_kernels


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(F.linear(x, weight, bias), saved)`` with x [..., features] packed under ``spec``.

    ``key`` (int64, one element, x's device) fixes the sample; None draws it from torch's generator.
    """
    return _ops.linear(x, weight, bias, spec, rank_salt(), visible_key(key, x.device))


def linear_shared(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    spec: Spec,
    key: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """``([F.linear(x, w, b) for w, b], saved)``: one pack serves all products."""
    return _ops.linear_shared(x, weights, biases, spec, rank_salt(), visible_key(key, x.device))


def linear_wgrad(dy: Tensor, saved: Tensor, features: int, spec: Spec) -> Tensor:
    """The unbiased estimate of ``dy^T @ x``: [outputs, features] in dy's dtype, from dy [..., outputs]."""
    return _ops.linear_wgrad(dy, saved, features, spec)


def rows_wgrad(dy: Tensor, saved: Tensor, features: int, spec: Spec, *, fused: bool) -> Tensor:
    """``linear_wgrad`` of ``rows`` or ``tile_rows`` by one of its two paths, for tests and benchmarks.

    ``fused``: one kernel gathers dy on its way to the product (bfloat16 and float16 only; on a CPU a plain
    loop that serves as its reference). Otherwise dy is gathered and the BLAS multiplies.
    """
    return _ops.rows_wgrad(dy, saved, features, spec, fused)


def pack(x: Tensor, spec: Spec, key: Tensor | None = None) -> Tensor:
    """The saved buffer of x [..., features] alone, for tests and benchmarks.

    Not for autograd: a pack apart from its product is re-executed with another key by torch.compile.
    """
    return _ops.pack(x, spec, rank_salt(), visible_key(key, x.device))


def unpack(saved: Tensor, rows: int, features: int, dtype: torch.dtype, spec: Spec) -> Tensor:
    """The dense unbiased estimate [rows, features] of the packed activation."""
    return _ops.unpack(saved, spec, rows, features, dtype)


def draw_key(device: torch.device) -> Tensor:
    """A key, drawn from torch's generator exactly as one packing op does."""
    # The functional form of random_, which the compiler can trace.
    return torch.ops.aten.random(torch.empty(1, dtype=torch.int64, device=device))


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


@register_fake("rad_kernels::rows_wgrad")
def _(dy, saved, features, spec, fused):
    return dy.new_empty(dy.shape[-1], features)


@register_fake("rad_kernels::pack")
def _(x, spec, salt, key=None):
    return _saved_like(x, spec)


@register_fake("rad_kernels::unpack")
def _(saved, spec, rows, features, dtype):
    return saved.new_empty(rows, features, dtype=dtype)

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import saved_nbytes
from .key import visible_key
from .linear import Spec
from .salt import rank_salt

_ops = torch.ops.rad_kernels


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spec: Spec,
    by_channel: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``(aten::convolution(x, ...), saved)`` with x [images, channels, *positions] packed under ``spec``: as
    the matrix [images * positions, channels] or, ``by_channel``, as [images * channels, positions], of the
    positions that are read (``shape_read``)."""
    return _ops.conv(
        x,
        weight,
        bias,
        stride,
        padding,
        dilation,
        transposed,
        output_padding,
        groups,
        spec,
        by_channel,
        rank_salt(),
        visible_key(key, x.device),
    )


def conv_wgrad(
    dy: Tensor,
    saved: Tensor,
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    spec: Spec,
    by_channel: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    """The unbiased estimate of the weight gradient, of ``weight_shape``, in dy's dtype."""
    return _ops.conv_wgrad(
        dy,
        saved,
        x_shape,
        weight_shape,
        stride,
        padding,
        dilation,
        transposed,
        groups,
        spec,
        by_channel,
    )


def shape_read(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
) -> tuple[int, ...]:
    """The shape of x at the positions that a convolution reads: a window of one tap steps over the others."""
    sizes = list(shape)
    for d, (taps, step, pad) in enumerate(zip(weight_shape[2:], stride, padding, strict=True), start=2):
        if not transposed and taps == 1 and pad == 0 and step > 1:
            sizes[d] = (sizes[d] - 1) // step + 1
    return tuple(sizes)


def packed_shape(shape: Sequence[int], by_channel: bool) -> tuple[int, int]:
    """``(rows, columns)`` of the matrix as which x is packed, of whose positions this shape is read."""
    images, channels, *spatial = shape
    positions = 1
    for size in spatial:
        positions = positions * size
    return (images * channels, positions) if by_channel else (images * positions, channels)


@register_fake("rad_kernels::conv")
def _(
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    transposed,
    output_padding,
    groups,
    spec,
    by_channel,
    salt,
    key=None,
):
    y = torch.ops.aten.convolution(
        x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
    )
    read = shape_read(x.shape, weight.shape, stride, padding, transposed)
    nbytes = saved_nbytes(*packed_shape(read, by_channel), x.dtype, tuple(spec))
    return y, x.new_empty(nbytes, dtype=torch.uint8)


@register_fake("rad_kernels::conv_wgrad")
def _(
    dy,
    saved,
    x_shape,
    weight_shape,
    stride,
    padding,
    dilation,
    transposed,
    groups,
    spec,
    by_channel,
):
    return dy.new_empty(weight_shape)

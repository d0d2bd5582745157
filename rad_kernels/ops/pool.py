from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import register_fake

_ops = torch.ops.rad_kernels


def pool_code_words(outputs: int, window: Sequence[int]) -> int:
    """int32 words that tell the places of windows apart: ceil(log2(places)) bits an output, 32 outputs a
    group."""
    places = 1
    for size in window:
        places *= size
    return (outputs + 31) // 32 * (places - 1).bit_length()


def max_pool(x: Tensor, output: Sequence[int], geometry: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``(y, codes)`` of x [planes, three sizes, lanes], contiguous: y has the sizes ``output``.

    ``geometry``: windows, strides, paddings and dilations, three each.
    """
    return _ops.max_pool(x, output, geometry)


def max_pool_backward(dy: Tensor, codes: Tensor, input: Sequence[int], geometry: Sequence[int]) -> Tensor:
    """dx [planes, three sizes ``input``, lanes] from dy, contiguous."""
    return _ops.max_pool_backward(dy, codes, input, geometry)


@register_fake("rad_kernels::max_pool")
def _(x, output, geometry):
    y = x.new_empty(x.shape[0], *output, x.shape[4])
    return y, x.new_empty(pool_code_words(y.numel(), geometry[:3]), dtype=torch.int32)


@register_fake("rad_kernels::max_pool_backward")
def _(dy, codes, input, geometry):
    return dy.new_empty(dy.shape[0], *input, dy.shape[4])

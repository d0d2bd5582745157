"""Pooling: the greatest of a window needs its place in a few bits, the mean only shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import check_tensor

Sizes = int | Sequence[int]


class _MaxPoolBackward(Function):
    @staticmethod
    def forward(dy, codes, sizes, geometry):
        return ops.max_pool_backward(dy.contiguous(), codes, sizes, geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the gradient of max pooling cannot be differentiated again")


class _MaxPool(Function):
    @staticmethod
    def forward(x, output, geometry):
        return ops.max_pool(x, output, geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, _, ctx.geometry = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.sizes = x.shape[1:4]

    @staticmethod
    def backward(ctx, dy, _):
        return _MaxPoolBackward.apply(dy, *ctx.saved_tensors, ctx.sizes, ctx.geometry), None, None


def _numbers(name: str, value: Sizes, count: int, least: int) -> tuple[int, ...]:
    """``value`` once for each dimension."""
    sizes: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * count
    if len(sizes) == 1:
        sizes *= count
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in sizes):
        raise TypeError(f"{name} must be {count} integers, got {value!r}")
    if len(sizes) != count or any(size < least for size in sizes):
        raise ValueError(f"{name} must be one or {count} integers of at least {least}, got {value!r}")
    return sizes


def _outputs(size: int, window: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    room = size + 2 * pad - dilation * (window - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    # The last window starts inside the input or its left padding.
    return count - 1 if ceil_mode and (count - 1) * stride >= size + pad else count


def is_channels_last(x: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() not in formats or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=formats[x.dim()])


def _max_pool(
    x: Tensor,
    kernel_size: Sizes,
    stride: Sizes | None,
    padding: Sizes,
    dilation: Sizes,
    ceil_mode: bool,
    return_indices: bool,
    dims: int,
) -> Any:
    check_tensor("x", x)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"x must have {dims + 1} or {dims + 2} dimensions, got shape {tuple(x.shape)}")
    window = _numbers("kernel_size", kernel_size, dims, 1)
    strides = window if stride is None or stride == [] else _numbers("stride", stride, dims, 1)
    pads, steps = _numbers("padding", padding, dims, 0), _numbers("dilation", dilation, dims, 1)
    sizes = x.shape[-dims:]
    for name, size, w, s, p, d in zip("DHW"[-dims:], sizes, window, strides, pads, steps, strict=True):
        if 2 * p > (w - 1) * d + 1:
            raise ValueError(f"padding must be at most half of the window, got {padding} for {kernel_size}")
        if size > 0 and _outputs(size, w, s, p, d, ceil_mode) < 1:
            raise ValueError(f"kernel_size {kernel_size} is too large for {name} = {size} of x")
    if return_indices or not (x.requires_grad and torch.is_grad_enabled()) or x.numel() == 0:
        function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
        return function(x, window, strides, pads, steps, ceil_mode, return_indices)
    fill = 3 - dims
    geometry = (*(1,) * fill, *window, *(1,) * fill, *strides, *(0,) * fill, *pads, *(1,) * fill, *steps)
    output = [_outputs(*each, ceil_mode) for each in zip(sizes, window, strides, pads, steps, strict=True)]
    ones, lead = (1,) * fill, x.shape[:-dims]
    if is_channels_last(x):
        inner = x.movedim(1, -1).reshape(lead[0], *ones, *sizes, lead[1])
        y = _MaxPool.apply(inner, (*ones, *output), geometry)[0]
        return y.reshape(lead[0], *output, lead[1]).movedim(-1, 1)
    inner = x.contiguous().reshape(lead.numel(), *ones, *sizes, 1)
    return _MaxPool.apply(inner, (*ones, *output), geometry)[0].reshape(*lead, *output)


def max_pool1d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """``F.max_pool1d``: ``max_pool2d`` tells what is kept."""
    return _max_pool(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 1)


def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """``F.max_pool2d`` that keeps ceil(log2(window)) bits an output instead of x and int64 indices: exact.

    Output and dx are torch's, ties and NaN included; channels_last is kept. With ``return_indices``, or
    without gradients, it is torch's own function. A second derivative with respect to dy raises.

    Args:
        x: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16, any strides.
        kernel_size, stride, padding, dilation: one integer or one a dimension.
        ceil_mode, return_indices: as torch's.

    Raises:
        TypeError: x is not a strided floating tensor, or a size is no integer.
        ValueError: sizes that do not fit x or each other.
    """
    return _max_pool(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 2)


def max_pool3d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """``F.max_pool3d``: ``max_pool2d`` tells what is kept."""
    return _max_pool(x, kernel_size, stride, padding, dilation, ceil_mode, return_indices, 3)


class _Mean(Function):
    """A linear function of x of which torch would keep x, for its shape alone."""

    @staticmethod
    def forward(x, forward, backward):
        return forward(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.maps = inputs
        ctx.shape, ctx.dtype, ctx.last = x.shape, x.dtype, is_channels_last(x)

    @staticmethod
    def backward(ctx, dy):
        return _MeanBackward.apply(dy, *ctx.maps, ctx.shape, ctx.last).to(ctx.dtype), None, None


class _MeanBackward(Function):
    @staticmethod
    def forward(dy, forward, backward, shape, last):
        if last:  # torch takes the layout of dx from x, whose values it does not read
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            like = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=formats[len(shape)])
        else:
            like = dy.new_empty(()).expand(shape)
        return backward(dy, like)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.maps, _, _ = inputs

    @staticmethod
    def backward(ctx, ddx):
        return _Mean.apply(ddx, *ctx.maps), None, None, None, None


def _mean(
    x: Tensor, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    if not (x.requires_grad and torch.is_grad_enabled()):
        return forward(x)
    return _Mean.apply(x, forward, backward)


def _avg_pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, dims):
    check_tensor("x", x)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"x must have {dims + 1} or {dims + 2} dimensions, got shape {tuple(x.shape)}")
    window = _numbers("kernel_size", kernel_size, dims, 1)
    strides = window if stride is None or stride == [] else _numbers("stride", stride, dims, 1)
    pads = _numbers("padding", padding, dims, 0)
    if dims == 1:  # as torch: a plane of height 1
        y = _avg_pool(
            x.unsqueeze(-2), (1, *window), (1, *strides), (0, *pads), ceil_mode, count_include_pad, None, 2
        )
        return y.squeeze(-2)
    aten = torch.ops.aten
    forward, backward = (aten.avg_pool2d, aten.avg_pool2d_backward) if dims == 2 else (
        aten.avg_pool3d, aten.avg_pool3d_backward)  # fmt: skip
    rest = (window, strides, pads, ceil_mode, count_include_pad, divisor_override)
    return _mean(x, lambda x: forward(x, *rest), lambda dy, like: backward(dy, like, *rest))


def avg_pool1d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """``F.avg_pool1d``: ``avg_pool2d`` tells what is kept."""
    return _avg_pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad, None, 1)


def avg_pool2d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """``F.avg_pool2d`` that keeps shapes instead of x: exact, differentiable any number of times.

    Args:
        x: [N, C, H, W] or [C, H, W]; float32, float64, bfloat16 or float16.
        the others: as torch's.

    Raises:
        TypeError: x is not a strided floating tensor, or a size is no integer.
        ValueError: x has another number of dimensions, or a size is out of range.
    """
    return _avg_pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 2)


def avg_pool3d(
    x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """``F.avg_pool3d``: ``avg_pool2d`` tells what is kept."""
    return _avg_pool(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override, 3)


def _adaptive_size(x: Tensor, output_size: Any, dims: int) -> list[int]:
    """One number a dimension; None is x's own size."""
    check_tensor("x", x)
    if x.dim() not in (dims + 1, dims + 2):
        raise ValueError(f"x must have {dims + 1} or {dims + 2} dimensions, got shape {tuple(x.shape)}")
    given = (
        (output_size,) * dims if isinstance(output_size, int) or output_size is None else tuple(output_size)
    )
    if len(given) != dims:
        raise ValueError(f"output_size must be one or {dims} integers, got {output_size!r}")
    return [x.shape[i - dims] if n is None else n for i, n in enumerate(given)]


def _adaptive_max_pool(x: Tensor, output_size: Any, return_indices: bool, dims: int) -> Any:
    """Windows are alike, and so a max_pool, where the output's sizes divide x's; else torch's own."""
    size = _adaptive_size(x, output_size, dims)
    windows = [x.shape[i - dims] // n if n > 0 else 0 for i, n in enumerate(size)]
    alike = all(w > 0 and w * n == x.shape[i - dims] for i, (w, n) in enumerate(zip(windows, size)))
    if return_indices or not alike:
        exact: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[dims - 1]
        return exact(x, size[0] if dims == 1 else size, return_indices)
    if dims == 3:  # torch's answers contiguously in three dimensions, whatever x's order
        x = x.contiguous()
    return _max_pool(x, tuple(windows), None, 0, 1, False, False, dims)


def adaptive_max_pool1d(x, output_size, return_indices=False):
    """``F.adaptive_max_pool1d``: ``adaptive_max_pool2d`` tells what is kept."""
    return _adaptive_max_pool(x, output_size, return_indices, 1)


def adaptive_max_pool2d(x, output_size, return_indices=False):
    """``F.adaptive_max_pool2d``, exact; backward keeps what ``max_pool2d`` does where the sizes of the output
    divide those of x. Elsewhere, and with ``return_indices``, it is torch's own function.

    Args:
        x: [N, C, H, W] or [C, H, W], float.
        output_size: one or two integers; None is the size of x.

    Raises:
        TypeError: x is not a tensor.
        ValueError: x has other dimensions, or output_size another length.
    """
    return _adaptive_max_pool(x, output_size, return_indices, 2)


def adaptive_max_pool3d(x, output_size, return_indices=False):
    """``F.adaptive_max_pool3d``: ``adaptive_max_pool2d`` tells what is kept."""
    return _adaptive_max_pool(x, output_size, return_indices, 3)


def _adaptive_avg_pool(x: Tensor, output_size: Any, dims: int) -> Tensor:
    size: Any = _adaptive_size(x, output_size, dims)
    if dims == 1:
        return _adaptive_avg_pool(x.unsqueeze(-2), (1, *size), 2).squeeze(-2)
    if all(n == 1 for n in size):  # a mean over all positions, of which torch keeps nothing
        return (F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dims - 2](x, size)
    aten = torch.ops.aten
    if dims == 2:
        return _mean(x, lambda x: aten._adaptive_avg_pool2d(x, size), aten._adaptive_avg_pool2d_backward)
    return _mean(x, lambda x: aten._adaptive_avg_pool3d(x, size), aten._adaptive_avg_pool3d_backward)


def adaptive_avg_pool1d(x, output_size):
    """``F.adaptive_avg_pool1d``: ``avg_pool2d`` tells what is kept."""
    return _adaptive_avg_pool(x, output_size, 1)


def adaptive_avg_pool2d(x, output_size):
    """``F.adaptive_avg_pool2d``: ``avg_pool2d`` tells what is kept."""
    return _adaptive_avg_pool(x, output_size, 2)


def adaptive_avg_pool3d(x, output_size):
    """``F.adaptive_avg_pool3d``: ``avg_pool2d`` tells what is kept."""
    return _adaptive_avg_pool(x, output_size, 3)

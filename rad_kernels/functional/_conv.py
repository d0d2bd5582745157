from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..sketch import Sketch, saved_nbytes
from ._checks import autocast_dtype
from ._conv_checks import Geometry, Sizes, check_conv_sketch, check_output, check_tensors, padded, sizes
from ._linear import only_draws, packs


class _ConvWgrad(Function):
    """dW from a saved buffer; ``token`` as in _LinearWgrad."""

    @staticmethod
    def forward(dy, saved, token, x_shape, weight_shape, geometry, spec, by_channel):
        how = Geometry(*geometry).sampled
        return ops.conv_wgrad(dy, saved, x_shape, weight_shape, spec, by_channel, *how)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the sampled weight gradient cannot be differentiated again")


def _opposite(dy: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """dx as the opposite convolution of dy: torch's CPU kernels would copy their dense input argument, of
    which they need only the shape."""
    stride, padding, dilation, transposed, _, groups = geometry
    spatial = range(len(stride))
    if transposed:
        beyond = (0,) * len(stride)
    else:  # positions behind the last one that a window reaches
        beyond = tuple(
            (shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) % stride[d]
            for d in spatial
        )
    dx = torch.ops.aten.convolution(
        dy, weight, None, stride, padding, dilation, not transposed, beyond, groups
    )
    for d in spatial:  # an output padding of whole strides makes more positions than there were
        dx = dx.narrow(2 + d, 0, shape[2 + d])
    return dx


def _of_shape(dy: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    """dx by torch's own backward, with one element in the place of the input."""
    x = dy.new_empty(1).expand(shape)
    mask = (True, False, False)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, mask)[0]


def _input_grad(dy: Tensor, weight: Tensor, shape: Sequence[int], geometry: Geometry) -> Tensor:
    return (_opposite if dy.device.type == "cpu" else _of_shape)(dy, weight.to(dy.dtype), shape, geometry)


class _Conv(Function):
    """Parameters arrive as they are and are cast inside, so that only they and the pack are retained."""

    @staticmethod
    def forward(x, weight, bias, geometry, spec, by_channel, dtype):
        bias = None if bias is None else bias.to(dtype)
        y, saved = ops.conv(x.to(dtype), weight.to(dtype), bias, spec, by_channel, *geometry)
        return y, saved, x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.geometry, ctx.spec, ctx.by_channel, _ = inputs
        _, saved, token = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(saved, token, weight if ctx.needs_input_grad[0] else None)
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias)]
        ctx.x_shape, ctx.weight_shape = x.shape, weight.shape

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 7
        saved, token, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        dx = dw = db = None
        if needs_x:
            dx = _input_grad(dy, weight, ctx.x_shape, Geometry(*ctx.geometry)).to(x_dtype)
        if needs_weight:
            how = ctx.geometry, ctx.spec, ctx.by_channel
            dw = _ConvWgrad.apply(dy, saved, token, ctx.x_shape, ctx.weight_shape, *how).to(weight_dtype)
        if needs_bias:
            db = dy.sum((0, *range(2, dy.dim()))).to(bias_dtype)
        return dx, dw, db, None, None, None, None


class _FrozenConv(Function):
    """With a weight that needs no gradient: torch would keep x, of which dx needs only the shape."""

    @staticmethod
    def forward(x, weight, bias, geometry, dtype):
        bias = None if bias is None else bias.to(dtype)
        return torch.ops.aten.convolution(x.to(dtype), weight.to(dtype), bias, *geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.geometry, _ = inputs
        ctx.save_for_backward(weight)
        ctx.x_shape, ctx.dtypes = x.shape, [None if t is None else t.dtype for t in (x, bias)]

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        dx = _input_grad(dy, weight, ctx.x_shape, Geometry(*ctx.geometry)).to(ctx.dtypes[0])
        db = dy.sum((0, *range(2, dy.dim()))).to(ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        return dx, None, db, None, None


def _by_channel(shape: Sequence[int], sketch: Sketch, dtype: torch.dtype) -> bool:
    """Whether x, of this shape where it is read, is packed as [images * channels, positions]. With everything
    kept, where that is smaller."""
    if sketch.spec[0] < sketch.spec[1]:
        return sketch.sampling != "rows"
    by_row, by_channel = (
        saved_nbytes(*ops.packed_shape(shape, side), dtype, sketch) for side in (False, True)
    )
    return bool(by_channel < by_row)


def _convolution(
    plain: Callable[[], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    sketch: Sketch,
) -> Tensor:
    dtype = autocast_dtype(x)
    batched = x.dim() == weight.dim()
    images = x if batched else x.unsqueeze(0)
    if x.numel() == 0:
        return plain()
    if not weight.requires_grad and x.requires_grad and torch.is_grad_enabled() and not sketch.is_exact:
        y = _FrozenConv.apply(images, weight, bias, tuple(geometry), dtype)
        return y if batched else y.squeeze(0)
    read = geometry.shape_read(images.shape, weight.shape)
    by_channel = _by_channel(read, sketch, dtype)
    if not packs((weight,), sketch, dtype, *ops.packed_shape(read, by_channel), caller=5):
        return plain()
    if only_draws():
        ops.draw_key(x.device)
        return plain()
    y = _Conv.apply(images, weight, bias, tuple(geometry), sketch.spec, by_channel, dtype)[0]
    return y if batched else y.squeeze(0)


def _conv(
    spatial: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    sketch: Sketch,
) -> Tensor:
    check_conv_sketch(sketch)
    check_tensors(x, weight, bias, spatial, groups, False)
    stride, dilation = sizes("stride", stride, spatial, 1), sizes("dilation", dilation, spatial, 1)
    if isinstance(padding, str):
        x, padding = padded(x, weight, padding, stride, dilation)
    else:
        padding = sizes("padding", padding, spatial, 0)
    geometry = Geometry(stride, padding, dilation, False, (0,) * spatial, groups)
    check_output(x, weight, geometry)
    torch_conv = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    return _convolution(
        lambda: torch_conv(x, weight, bias, stride, padding, dilation, groups),
        x,
        weight,
        bias,
        geometry,
        sketch,
    )


def _conv_transpose(
    spatial: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
    sketch: Sketch,
) -> Tensor:
    check_conv_sketch(sketch)
    check_tensors(x, weight, bias, spatial, groups, True)
    stride, dilation = sizes("stride", stride, spatial, 1), sizes("dilation", dilation, spatial, 1)
    padding = sizes("padding", padding, spatial, 0)
    output_padding = sizes("output_padding", output_padding, spatial, 0)
    geometry = Geometry(stride, padding, dilation, True, output_padding, groups)
    check_output(x, weight, geometry)
    torch_conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    return _convolution(
        lambda: torch_conv(x, weight, bias, stride, padding, output_padding, groups, dilation),
        x,
        weight,
        bias,
        geometry,
        sketch,
    )


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``conv2d`` in one dimension: x [N, C, L] or [C, L], weight [O, C / groups, K]."""
    return _conv(1, x, weight, bias, stride, padding, dilation, groups, sketch)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``F.conv2d`` that keeps a sketch of x for the weight gradient.

    Pixels that a 1x1 window steps over are never kept.
    Sampling ``rows`` keeps whole pixels, one draw over all images; ``same`` one set of positions for all
    images and channels; ``different`` positions of its own for each image and channel. The output, dx and db
    are torch's; dW is an unbiased estimate (docs/maths.md, convolutions). Torch's own path is taken bit for
    bit where ``linear`` takes it, but for a weight that needs no gradient: then nothing is kept, where torch
    keeps x.

    Args:
        x: [N, C, H, W] or [C, H, W], any strides. float32, float64, bfloat16 or float16.
        weight: [O, C / groups, KH, KW], x's dtype (or an autocast one) and device.
        bias: [O] or None.
        stride, padding, dilation, groups: as F.conv2d. An uneven 'same' packs the padded x.
        sketch: what is kept.

    Returns:
        [N, O, H', W'] or [O, H', W'].

    Raises:
        TypeError: an argument is not a strided floating tensor or an integer, dtypes differ, or sketch is no
            Sketch.
        ValueError: the sketch's sampling or draw is not for convolutions; shapes or devices do not fit
            together.
    """
    return _conv(2, x, weight, bias, stride, padding, dilation, groups, sketch)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``conv2d`` in three dimensions: x [N, C, D, H, W] or [C, D, H, W], weight [O, C / groups, ...]."""
    return _conv(3, x, weight, bias, stride, padding, dilation, groups, sketch)


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``conv_transpose2d`` in one dimension: x [N, C, L] or [C, L], weight [C, O / groups, K]."""
    return _conv_transpose(1, x, weight, bias, stride, padding, output_padding, groups, dilation, sketch)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``F.conv_transpose2d`` that keeps a sketch of x for the weight gradient, as ``conv2d`` does.

    Args:
        x: [N, C, H, W] or [C, H, W].
        weight: [C, O / groups, KH, KW].
        bias: [O] or None.
        stride, padding, output_padding, groups, dilation: as F.conv_transpose2d.
        sketch: what is kept.

    Returns:
        [N, O, H', W'] or [O, H', W'].

    Raises:
        TypeError, ValueError: as ``conv2d``.
    """
    return _conv_transpose(2, x, weight, bias, stride, padding, output_padding, groups, dilation, sketch)


def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    sketch: Sketch,
) -> Tensor:
    """``conv_transpose2d`` in three dimensions: x [N, C, D, H, W] or [C, D, H, W]."""
    return _conv_transpose(3, x, weight, bias, stride, padding, output_padding, groups, dilation, sketch)

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..ops import NormShape
from ..sketch import NORM_BITS, is_worthwhile
from ._checks import SketchWarning, check_bits, check_tensor


class _NormBackward(Function):
    """(dx, dweight, dbias) from codes. Their own derivative would need the dense activation, which is gone;
    ``token``, an empty output of the forward pass, ties them to x in the graph."""

    @staticmethod
    def forward(dy, saved, rstd, token, weight, shape, centred, bits, wanted):
        if weight is not None:
            weight = weight.to(rstd.dtype).reshape(-1)
        return ops.norm_backward(dy, saved, rstd, weight, NormShape(*shape), centred, bits, *wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the gradient of a dithered normalisation cannot be differentiated again")


def _save(ctx, parameters, kept, shape, centred, bits, order):
    _, weight, bias = parameters
    saved, rstd, token = kept
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(saved, rstd, token, weight if ctx.needs_input_grad[0] else None)
    ctx.settings = (tuple(shape), centred, bits)
    ctx.order = order
    ctx.dtypes = [None if t is None else t.dtype for t in parameters]
    ctx.param_shapes = [None if t is None else t.shape for t in (weight, bias)]


def _gradients(ctx, dy):
    """(dx, dweight, dbias), None where not needed."""
    if dy is None:
        return None, None, None
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dy = dy.contiguous(memory_format=ctx.order)
    wanted = (needs_x, needs_weight or needs_bias)
    dx, dw, db = _NormBackward.apply(dy, *ctx.saved_tensors, *ctx.settings, wanted)
    return (
        dx.to(ctx.dtypes[0]) if needs_x else None,
        dw.view(ctx.param_shapes[0]).to(ctx.dtypes[1]) if needs_weight else None,
        db.view(ctx.param_shapes[1]).to(ctx.dtypes[2]) if needs_bias else None,
    )


class _SetNorm(Function):
    """Normalisation of sets of consecutive elements: kind is "layer", "rms" or "group", ``sets`` the
    normalised shape or the number of groups."""

    @staticmethod
    def forward(x, weight, bias, kind, sets, eps, bits):
        if kind == "layer":
            kept = ops.layer_norm(x, sets, weight, bias, eps, bits)
        elif kind == "rms":
            kept = ops.rms_norm(x, sets, weight, eps, bits)
        else:
            kept = ops.group_norm(x, sets, weight, bias, eps, bits)
        return (*kept, x.new_empty(0))

    @staticmethod
    def setup_context(ctx, inputs, output):
        *parameters, kind, sets, _, bits = inputs
        shape = _set_shape(parameters[0], kind, sets)
        ctx.mark_non_differentiable(*output[1:3])
        _save(ctx, parameters, output[1:], shape, kind != "rms", bits, torch.contiguous_format)

    @staticmethod
    def backward(ctx, dy, *_):
        return (*_gradients(ctx, dy), None, None, None, None)


class _BatchNorm(Function):
    @staticmethod
    def forward(x, weight, bias, running_mean, running_var, momentum, eps, bits):
        y, saved, rstd, mean, var = ops.batch_norm(
            x, weight, bias, running_mean, running_var, momentum, eps, _batch_shape(x).inner, bits
        )
        return y, saved, rstd, x.new_empty(0), mean, var

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, bits = inputs[0], inputs[-1]
        ctx.mark_non_differentiable(*output[1:3], *output[4:])
        _save(ctx, inputs[:3], output[1:4], _batch_shape(x), True, bits, _memory_order(x))

    @staticmethod
    def backward(ctx, dy, *_):
        return (*_gradients(ctx, dy), None, None, None, None, None)


def _set_shape(x: Tensor, kind: str, sets: Sequence[int] | int) -> NormShape:
    if not isinstance(sets, int):
        return NormShape(prod(sets), prod(sets), 1, False)
    inner = prod(x.shape[2:])
    return NormShape(x.shape[1] // sets * inner, x.shape[1], inner, False)


def _batch_shape(x: Tensor) -> NormShape:
    inner = prod(x.shape[2:]) if _memory_order(x) == torch.contiguous_format else 1
    return NormShape(x.numel() // x.shape[1], x.shape[1], inner, True)


def _memory_order(x: Tensor) -> torch.memory_format:
    """The order in which a batch's elements are numbered; others are copied into the first."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float, bits: object
) -> None:
    check_bits(bits, NORM_BITS)
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"eps must be a real number, got {eps!r}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps!r}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        check_tensor(name, value)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
        if value.device != x.device:
            raise ValueError(f"x and {name} must be on one device, got {x.device} and {value.device}")
        mixed = value.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)
        if value.dtype != x.dtype and not mixed and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"x and {name} must have one dtype, got {x.dtype} and {value.dtype}")


def _normalized_shape(x: Tensor, normalized_shape: object) -> tuple[int, ...]:
    if isinstance(normalized_shape, numbers.Integral):
        normalized_shape = (normalized_shape,)
    if not isinstance(normalized_shape, Sequence) or not all(
        isinstance(n, numbers.Integral) for n in normalized_shape
    ):
        raise TypeError(
            f"normalized_shape must be an integer or a list of integers, got {normalized_shape!r}"
        )
    shape = tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(
            f"normalized_shape must be the last dimensions of x, got {list(shape)} "
            f"for x of shape {list(x.shape)}"
        )
    return shape


def _in_its_dtype(x: Tensor) -> Tensor:
    """As autocast on CUDA has it: normalisations in float32. On the CPU it leaves them alone."""
    autocast = x.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return x.float() if autocast and x.dtype in (torch.bfloat16, torch.float16) else x


def _dithers(x: Tensor, shape: NormShape, bits: int | None) -> bool:
    """Whether a call in training packs, apart from grad mode and from who needs a gradient: those must not
    change how much of the RNG is used."""
    compiling = torch.compiler.is_compiling()
    if bits is None or x.numel() == 0 or (not compiling and torch.is_inference_mode_enabled()):
        return False
    n, item = x.numel(), x.dtype.itemsize
    statistics = n // shape.set * ops.statistics_dtype(x.dtype).itemsize
    cost = ops.norm_saved_nbytes(n, shape, bits) + statistics
    if is_worthwhile(cost, n * item):
        return True
    if not compiling:
        warnings.warn(
            f"{bits} bits would keep {cost} of the {n * item} bytes of a normalised {list(x.shape)}: "
            "kept exactly",
            SketchWarning,
            stacklevel=3,
        )
    return False


def _only_draws(*tensors: Tensor | None) -> bool:
    """Whether nothing is kept of a call but its draw. Compiled code would drop a draw without a use."""
    if torch.compiler.is_compiling():
        return False
    return not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors)


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    bits: int | None = 4,
) -> Tensor:
    """``F.layer_norm`` that keeps dithered normalised values instead of its input.

    The output is torch's, dx and dweight are unbiased and dbias is exact (docs/maths.md, normalisation).

    Args:
        x: [..., *normalized_shape]; float32, float64, bfloat16 or float16, any strides.
        normalized_shape: the last dimensions, over which mean and variance are taken.
        weight, bias: [*normalized_shape] or None; x's dtype, or float32 with a 16-bit x.
        eps: added to the variance.
        bits: 8, 4, 3, 2 or 1 for each value; None keeps what torch keeps.

    Returns:
        x's shape and dtype.

    Raises:
        TypeError: an argument is not a strided floating tensor, dtypes differ, or bits is no integer.
        ValueError: shapes or devices do not fit together, bits or eps is out of range.
    """
    check_tensor("x", x)
    shape = _normalized_shape(x, normalized_shape)
    _check(x, weight, bias, shape, eps, bits)
    x = _in_its_dtype(x)
    if not _dithers(x, _set_shape(x, "layer", shape), bits):
        return F.layer_norm(x, shape, weight, bias, eps)
    if _only_draws(x, weight, bias):
        ops.draw_key(x.device)
        return F.layer_norm(x, shape, weight, bias, eps)
    return _SetNorm.apply(x, weight, bias, "layer", shape, eps, bits)[0]


def rms_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    bits: int | None = 4,
) -> Tensor:
    """``F.rms_norm`` that keeps dithered normalised values instead of its input; as ``layer_norm``.

    Args:
        x: [..., *normalized_shape].
        normalized_shape: the last dimensions, over which the mean square is taken.
        weight: [*normalized_shape] or None.
        eps: added to the mean square; None is the rounding unit of float32, or of float64 for float64.
        bits: 8, 4, 3, 2, 1 or None.

    Raises:
        TypeError, ValueError: as ``layer_norm``.
    """
    check_tensor("x", x)
    shape = _normalized_shape(x, normalized_shape)
    _check(x, weight, None, shape, 0.0 if eps is None else eps, bits)
    x = _in_its_dtype(x)
    if eps is None:
        eps = torch.finfo(ops.statistics_dtype(x.dtype)).eps
    if not _dithers(x, _set_shape(x, "rms", shape), bits):
        return F.rms_norm(x, shape, weight, eps)
    if _only_draws(x, weight):
        ops.draw_key(x.device)
        return F.rms_norm(x, shape, weight, eps)
    return _SetNorm.apply(x, weight, None, "rms", shape, eps, bits)[0]


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    bits: int | None = 4,
) -> Tensor:
    """``F.group_norm`` that keeps dithered normalised values instead of its input; as ``layer_norm``.

    Args:
        x: [N, C, *]; a channels-last x is copied.
        num_groups: of channels; divides C.
        weight, bias: [C] or None.
        eps: added to the variance.
        bits: 8, 4, 3, 2, 1 or None.

    Raises:
        TypeError, ValueError: as ``layer_norm``.
    """
    check_tensor("x", x)
    if isinstance(num_groups, bool) or not isinstance(num_groups, numbers.Integral):
        raise TypeError(f"num_groups must be an integer, got {num_groups!r}")
    if x.dim() < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(
            f"num_groups must divide the channels of x [N, C, *], got {num_groups} for {list(x.shape)}"
        )
    _check(x, weight, bias, (x.shape[1],), eps, bits)
    x = _in_its_dtype(x)
    if not _dithers(x, _set_shape(x, "group", int(num_groups)), bits):
        return F.group_norm(x, num_groups, weight, bias, eps)
    if _only_draws(x, weight, bias):
        ops.draw_key(x.device)
        return F.group_norm(x, num_groups, weight, bias, eps)
    return _SetNorm.apply(x, weight, bias, "group", int(num_groups), eps, bits)[0]


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    bits: int | None = 4,
) -> Tensor:
    """``F.batch_norm`` that in training keeps dithered normalised values instead of its input.

    Running statistics become what torch makes of them; dx and dweight are unbiased and dbias is exact
    (docs/maths.md, normalisation). Without ``training`` this is ``F.batch_norm``.

    Args:
        x: [N, C, *], contiguous or channels last (others are copied).
        running_mean, running_var: [C] or None; updated in place in training.
        weight, bias: [C] or None.
        training: normalise by the batch's own statistics.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        bits: 8, 4, 3, 2, 1 or None.

    Raises:
        TypeError, ValueError: as ``layer_norm``; also for one value a channel in training.
    """
    check_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must have shape [N, C, *], got {list(x.shape)}")
    _check(x, weight, bias, (x.shape[1],), eps, bits)
    values = x.numel() // max(x.shape[1], 1)
    if training and values == 1:
        raise ValueError(f"x must have more than one value a channel in training, got shape {list(x.shape)}")
    shape = NormShape(max(values, 1), x.shape[1], 1, True)

    def exact() -> Tensor:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)

    if not training or not _dithers(x, shape, bits):
        return exact()
    if _only_draws(x, weight, bias):
        ops.draw_key(x.device)
        return exact()
    y, _, _, _, mean, var = _BatchNorm.apply(x, weight, bias, running_mean, running_var, momentum, eps, bits)
    for running, new in ((running_mean, mean), (running_var, var)):
        if running is not None:
            running.copy_(new)
    return y

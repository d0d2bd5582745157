from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..sketch import Sketch, saved_nbytes
from ._checks import SketchWarning, autocast_dtype, check_parameters, check_sketch, check_x


class _LinearWgrad(Function):
    """dW from a saved buffer. Its own derivative would need the dense activation, which is gone.

    ``token``, an empty output of the forward pass, ties dW to x in the graph: without it a second derivative
    that goes through x alone (dy constant) would be zero instead of an error.
    """

    @staticmethod
    def forward(dy, saved, token, features, spec):
        return ops.linear_wgrad(dy, saved, features, spec)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the sampled weight gradient cannot be differentiated again")


def _input_grad(dy: Tensor, weight: Tensor, dtype: torch.dtype, by_columns: bool) -> Tensor:
    weight = weight.to(dy.dtype)
    return ((weight.t() @ dy.t()).t() if by_columns else dy @ weight).to(dtype)


def _bias_grad(dy: Tensor, dtype: torch.dtype, flat: bool) -> Tensor:
    if flat:
        dy = dy.reshape(-1, dy.shape[-1])
    return (dy.sum(tuple(range(dy.dim() - 1))) if dy.dim() > 1 else dy).to(dtype)


def _layout(x: Tensor) -> tuple[bool, bool]:
    """(column-major matrix, contiguous beyond a matrix): where torch's dx and db take other paths, which give
    other bits, and for dx other strides."""
    return x.dim() == 2 and x.stride() == (1, x.shape[0]), x.dim() > 2 and x.is_contiguous()


class _Linear(Function):
    """Parameters arrive as they are and are cast inside, so that only they and the pack are retained."""

    @staticmethod
    def forward(x, weight, bias, spec, dtype):
        y, saved = ops.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), spec)
        return y, saved, x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, ctx.spec, _ = inputs
        _, saved, token = output
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(saved, token, weight if ctx.needs_input_grad[0] else None)
        ctx.dtypes = [None if t is None else t.dtype for t in (x, weight, bias)]
        ctx.features = x.shape[-1]
        ctx.by_columns, ctx.flat = _layout(x)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return None, None, None, None, None
        saved, token, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        x_dtype, weight_dtype, bias_dtype = ctx.dtypes
        dx = dw = db = None
        if needs_x:
            dx = _input_grad(dy, weight, x_dtype, ctx.by_columns)
        if needs_weight:
            dw = _LinearWgrad.apply(dy, saved, token, ctx.features, ctx.spec).to(weight_dtype)
        if needs_bias:
            db = _bias_grad(dy, bias_dtype, ctx.flat)
        return dx, dw, db, None, None


class _SharedLinear(Function):
    """Several products of one x and the single pack that serves all their weight gradients."""

    @staticmethod
    def forward(x, spec, dtype, count, *parameters):
        weights = [w.to(dtype) for w in parameters[:count]]
        biases = [None if b is None else b.to(dtype) for b in parameters[count:]]
        ys, saved = ops.linear_shared(x.to(dtype), weights, biases, spec)
        return (*ys, saved, x.new_empty(0))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.spec, _, ctx.count, *parameters = inputs
        *ys, saved, token = output
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        constant = [y for i, y in enumerate(ys) if not (needs_x or needs[i] or needs[ctx.count + i])]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved, *constant)
        ctx.save_for_backward(saved, token, *(parameters[: ctx.count] if needs_x else ()))
        ctx.x_dtype, ctx.features = x.dtype, x.shape[-1]
        ctx.dtypes = [None if p is None else p.dtype for p in parameters]
        ctx.by_columns, ctx.flat = _layout(x)

    @staticmethod
    def backward(ctx, *grads):
        saved, token, *weights = ctx.saved_tensors
        needs_x, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[4:]
        dx: Tensor | None = None
        dws: list[Tensor | None] = [None] * ctx.count
        dbs: list[Tensor | None] = [None] * ctx.count
        for i, dy in enumerate(grads[: ctx.count]):
            if dy is None:
                continue
            if needs_x:
                part = _input_grad(dy, weights[i], ctx.x_dtype, ctx.by_columns)
                dx = part if dx is None else dx + part
            if needs[i]:
                dws[i] = _LinearWgrad.apply(dy, saved, token, ctx.features, ctx.spec).to(ctx.dtypes[i])
            if needs[ctx.count + i]:
                dbs[i] = _bias_grad(dy, ctx.dtypes[ctx.count + i], ctx.flat)
        return (dx, None, None, None, *dws, *dbs)


def _samples(x: Tensor, weights: Sequence[Tensor], sketch: Sketch, dtype: torch.dtype) -> bool:
    """Whether a call packs x [..., features]."""
    if x.numel() == 0:
        return False
    return packs(weights, sketch, dtype, x.numel() // x.shape[-1], x.shape[-1], caller=4)


def packs(
    weights: Sequence[Tensor], sketch: Sketch, dtype: torch.dtype, rows: int, features: int, caller: int
) -> bool:
    """Whether a call packs a [rows, features] activation, apart from grad mode: that must not change how much
    of the RNG is used. ``caller``: how far up the stack the user is, for the warning."""
    if sketch.is_exact or not any(w.requires_grad for w in weights):
        return False
    compiling = torch.compiler.is_compiling()  # under which inference mode cannot be asked for
    if not compiling and torch.is_inference_mode_enabled():
        return False
    if sketch.is_worthwhile(rows, features, dtype):
        return True
    if not compiling:
        warnings.warn(
            f"sketch {sketch} would keep {saved_nbytes(rows, features, dtype, sketch)} of the "
            f"{rows * features * dtype.itemsize} bytes of a [{rows}, {features}] activation: kept exactly",
            SketchWarning,
            stacklevel=caller,
        )
    return False


def only_draws() -> bool:
    """Whether nothing is kept of a packing call but its draw. Compiled code would drop a draw whose result is
    not used: there the op packs without need."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, sketch: Sketch) -> Tensor:
    """``F.linear(x, weight, bias)`` that keeps a sketch of x for the weight gradient.

    The output, dx and db are those of torch; dW is an unbiased estimate (docs/maths.md, weight gradient).
    Nothing is sampled, and torch's own path taken bit for bit, when ``sketch.keep`` is 1, when weight needs
    no gradient, in inference mode (compiled code cannot ask for it and treats it as no_grad), for an empty x,
    and where the pack would cost 90 % of the exact bytes or more (a SketchWarning says so).

    Args:
        x: [..., in_features]; all leading dimensions together are the rows. float32, float64, bfloat16 or
            float16, any strides.
        weight: [out_features, in_features], x's dtype (or an autocast one) and device.
        bias: [out_features] or None.
        sketch: what is kept.

    Returns:
        [..., out_features].

    Raises:
        TypeError: an argument is not a strided floating tensor, dtypes differ, or sketch is no Sketch.
        ValueError: shapes or devices do not fit together.
    """
    check_sketch(sketch)
    check_x(x)
    check_parameters(x, weight, bias)
    dtype = autocast_dtype(x)
    if not _samples(x, (weight,), sketch, dtype):
        return F.linear(x, weight, bias)
    if only_draws():
        ops.draw_key(x.device)
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias, sketch.spec, dtype)[0]


def shared_linear(
    x: Tensor, weights: Iterable[Tensor], biases: Iterable[Tensor | None], sketch: Sketch
) -> tuple[Tensor, ...]:
    """``linear`` of one x with several weights, such as query, key and value: one pack serves them all.

    Sharing the sample is harmless because none of the products enters another one's gradient noise
    (docs/maths.md, independence).

    Args:
        x: as in ``linear``.
        weights: at least one [out_features_i, in_features].
        biases: as many as weights, each [out_features_i] or None.
        sketch: what is kept.

    Returns:
        One [..., out_features_i] per weight.

    Raises:
        TypeError, ValueError: as ``linear``; also for no weights or another number of biases.
    """
    check_sketch(sketch)
    check_x(x)
    for name, value in (("weights", weights), ("biases", biases)):
        if isinstance(value, Tensor) or not isinstance(value, Iterable):
            raise TypeError(f"{name} must be a list of tensors, got {type(value).__name__}")
    weights, biases = list(weights), list(biases)
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"weights and biases must be as many, at least one; got {len(weights)} and {len(biases)}"
        )
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        check_parameters(x, weight, bias, f"weights[{i}]", f"biases[{i}]")
    dtype = autocast_dtype(x)
    packs = _samples(x, weights, sketch, dtype)
    if packs and not only_draws():
        return _SharedLinear.apply(x, sketch.spec, dtype, len(weights), *weights, *biases)[:-2]
    if packs:
        ops.draw_key(x.device)
    return tuple(F.linear(x, w, b) for w, b in zip(weights, biases, strict=True))

"""Random matrix injection: a random P with E[P] = I in the chain of Jacobians."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..sketch import Sketch
from ._checks import check_sketch, check_x
from ._smooth import only_draws


class _Injected(Function):
    """The sketched cotangent. Differentiated again, P would meet itself, and E[P P] is not I."""

    @staticmethod
    def forward(dy, key, spec):
        features = dy.shape[-1]
        saved = ops.pack(dy, spec, key)
        return ops.unpack(saved, dy.numel() // features, features, dy.dtype, spec).view(dy.shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("an injected gradient cannot be differentiated again")


class _Inject(Function):
    @staticmethod
    def forward(x, key, spec):
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, key, ctx.spec = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(key)

    @staticmethod
    def backward(ctx, dy):
        return None if dy is None else _Injected.apply(dy, *ctx.saved_tensors, ctx.spec), None, None


def inject(x: Tensor, sketch: Sketch) -> Tensor:
    """x itself, whose gradient is replaced by its unbiased estimate under ``sketch``.

    This is random matrix injection (Oktay et al. 2021, section 3.2) at one vertex of any model: the cotangent
    dy of y = x becomes ``P dy`` with E[P] = I, so every gradient behind x stays unbiased. A key of 8 bytes is
    all that is kept, drawn in the forward pass. Noise of several injections along one path multiplies: with
    relative variances v_i their product has ``prod (1 + v_i) - 1`` (docs/general.md).

    ``sketch.keep = 1`` without bits, inference mode and an empty x leave the gradient alone and draw nothing;
    without gradients only the key is drawn.

    Args:
        x: [..., features]; float32, float64, bfloat16 or float16, any strides. All leading dimensions
            together are the rows of the sketch.
        sketch: any. ``Sketch(1 / n, "different")`` leaves one entry, times n, of each row of n.

    Returns:
        A view of x, which must not be changed in place (torch raises).

    Raises:
        TypeError: x is not a strided floating tensor, or sketch is no Sketch.
        ValueError: x is a scalar tensor. From backward, RuntimeError for a second derivative.
    """
    check_sketch(sketch)
    check_x(x)
    if sketch.is_exact or x.numel() == 0:
        return x
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return x
    key = ops.draw_key(x.device)
    return x if only_draws(x) else _Inject.apply(x, key, sketch.spec)

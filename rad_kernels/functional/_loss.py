"""Cross-entropy from dithered probabilities: the gradient is linear in them, hence unbiased."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import check_tensor
from ._loss_checks import check_loss
from ._smooth import check_bits, codes_nothing, only_draws


def _smoothed(target: Tensor, smoothing: float) -> Tensor:
    return target if smoothing == 0 else target * (1 - smoothing) + smoothing / target.shape[1]


def _loss_of_probabilities(log_p, target, weight, reduction, smoothing):
    terms = log_p * _smoothed(target, smoothing)
    if weight is not None:
        terms = terms * ops.along_classes(weight, terms)
    if reduction == "none":
        return -terms.sum(1)
    return -terms.sum() if reduction == "sum" else -terms.sum() / (log_p.numel() // log_p.shape[1])


class _Gradient(Function):
    """dx from codes, whose own derivative is not kept.

    ``token`` ties dx to x in the graph, so that a second derivative is an error and not zero.
    """

    @staticmethod
    def forward(scale, hit, level, saved, token, class_weight, target, shape, dtype, bits):
        return ops.cross_entropy_backward(saved, scale, hit, level, class_weight, target, shape, dtype, bits)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("coded probabilities cannot be differentiated again; bits=None keeps torch's own")


class _CrossEntropy(Function):
    @staticmethod
    def forward(x, target, weight, reduction, ignore_index, smoothing, bits):
        log_p, saved = ops.log_softmax(x, 1, bits)
        if target.is_floating_point():
            loss = _loss_of_probabilities(log_p, target, weight, reduction, smoothing)
        else:
            loss = ops.class_loss(log_p, target, weight, reduction, ignore_index, smoothing)
        return loss, saved, x.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, target, weight, *ctx.how = inputs
        _, saved, token = output
        ctx.mark_non_differentiable(saved)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(saved, token, target, weight)
        ctx.shape, ctx.dtype = x.shape, x.dtype

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        saved, token, target, weight = ctx.saved_tensors
        reduction, ignore_index, smoothing, bits = ctx.how
        real = torch.float64 if ctx.dtype == torch.float64 else torch.float32
        grad, weight = grad.to(real), None if weight is None else weight.to(real)
        like = (saved, token, weight)
        if target.is_floating_point():
            coefficients = _of_probabilities(grad, target.to(real), weight, reduction, smoothing)
            scale, shares = coefficients
            dx = _Gradient.apply(scale, None, None, *like, None, ctx.shape, ctx.dtype, bits)
            dx = dx - shares.to(ctx.dtype)
        else:
            scale, hit, level = coefficients_of_classes(
                grad, target, weight, reduction, ignore_index, smoothing, ctx.shape[1]
            )
            dx = _Gradient.apply(scale, hit, level, *like, target.long(), ctx.shape, ctx.dtype, bits)
        return dx, *(None,) * 6


def coefficients_of_classes(grad, target, weight, reduction, ignore_index, smoothing, classes):
    """(scale, hit, level): the coefficients of p, of the target and of every class (times its weight)."""
    target = target.long()
    counted = target != ignore_index
    if weight is None:
        own = counted.to(grad.dtype)
    else:
        own = torch.where(counted, weight[torch.where(counted, target, 0)], 0.0)
    if reduction == "mean":
        grad = grad / own.sum()
    # Selected, not multiplied: where everything is ignored, grad is infinite.
    hit = torch.where(counted, grad * own * (1 - smoothing), 0.0)
    if smoothing == 0:
        return hit, hit, None
    level = torch.where(counted, grad * (smoothing / classes), 0.0)
    return hit + level * (classes if weight is None else weight.sum()), hit, level


def _of_probabilities(grad, target, weight, reduction, smoothing):
    """(scale, what is taken off each class)"""
    shares = _smoothed(target, smoothing)
    if weight is not None:
        shares = shares * ops.along_classes(weight, shares)
    total = shares.sum(1)
    if reduction == "mean":
        grad = grad / total.numel()
    return grad * total, shares * (grad.unsqueeze(1) if reduction == "none" else grad)


def _computed(x: Tensor) -> Tensor:
    """x in the dtype of torch's cross_entropy: under autocast, 16-bit numbers become float32."""
    device = x.device.type
    if device == "meta" or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    return x.float() if torch.is_autocast_enabled(device) else x


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    bits: int | None = 8,
) -> Tensor:
    """``F.cross_entropy`` that keeps ``bits`` dithered bits a class instead of log-probabilities.

    The loss is torch's bit for bit. With p the softmax of x, w the class weights, t' the smoothed target
    distribution and g the gradient of a row's loss, ``dx = g (p^ sum_c w_c t'_c - w t')`` is unbiased,
    because p^ is (docs/maths.md, cross-entropy). ``bits=None``, inference mode and an empty x take torch's
    own path; without gradients nothing is kept, but a key is drawn. A second derivative raises.

    Args:
        x: logits [N, C], [N, C, d1, ...] or [C]; float32, float64, bfloat16 or float16.
        target: class indices (int64 or uint8) of x's shape without C, or probabilities of x's shape.
        weight: [C], of x's dtype, or None.
        ignore_index: rows with this class index count nothing.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1].
        bits: 8, 4, 2, 1, or None for torch's exact gradient.

    Returns:
        A scalar; with "none" one loss for each row.

    Raises:
        TypeError: x, target or weight is not a tensor of such a dtype, or bits is no integer.
        ValueError: shapes, devices or values do not fit; target or weight needs a gradient, which codes
            cannot give.
    """
    check_bits(bits)
    check_tensor("x", x)
    check_loss(x, target, weight, ignore_index, reduction, label_smoothing)
    if codes_nothing(x, bits):
        return F.cross_entropy(x, target, weight, None, ignore_index, None, reduction, label_smoothing)
    for name, value in (("target", target), ("weight", weight)):
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} must need no gradient with bits={bits}: bits=None gives one")
    if only_draws(x):
        ops.draw_key(x.device)
        return F.cross_entropy(x, target, weight, None, ignore_index, None, reduction, label_smoothing)
    x, target = _computed(x), _computed(target)
    weight = None if weight is None else _computed(weight)
    if x.dim() > 1:
        return _CrossEntropy.apply(x, target, weight, reduction, ignore_index, label_smoothing, bits)[0]
    loss = _CrossEntropy.apply(x[None], target[None], weight, reduction, ignore_index, label_smoothing, bits)[
        0
    ]
    return loss[0] if reduction == "none" else loss

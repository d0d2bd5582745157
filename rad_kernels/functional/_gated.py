"""Gated units: act(gate) * up from dithered copies of the two factors of its gradient."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import Function

from .. import ops
from ._checks import check_tensor
from ._smooth import check_bits, codes_nothing, only_draws


class _GatedProduct(Function):
    """dy times a coded factor; ``token`` ties it to the inputs, so that a second derivative is an error."""

    @staticmethod
    def forward(dy, saved, token, bits):
        return ops.gated_product(dy.contiguous(), saved, bits)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("a coded gate cannot be differentiated again; bits=None keeps torch's own")


class _Gated(Function):
    @staticmethod
    def forward(gate, up, activation, bits, needs):
        return *ops.gated(gate, up, activation, bits, *needs), gate.new_empty(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.bits = inputs[3]
        ctx.mark_non_differentiable(*output[1:3])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, dy, *_):
        *saved, token = ctx.saved_tensors
        grads = [
            _GatedProduct.apply(dy, kept, token, ctx.bits) if needed and dy is not None else None
            for kept, needed in zip(saved, ctx.needs_input_grad, strict=False)
        ]
        return *grads, None, None, None


def check_gate(activation: object) -> None:
    if activation not in ops.GATES:
        raise ValueError(f"activation must be one of {', '.join(ops.GATES)}; got {activation!r}")


def gated(gate: Tensor, up: Tensor, activation: str = "silu", *, bits: int | None = 4) -> Tensor:
    """``act(gate) * up`` that keeps dithered codes of act(gate) and of up act'(gate) instead of gate, up and
    act(gate): ``d up = dy act(gate)^``, ``d gate = dy (up act'(gate))^``, both unbiased and with a key of
    their own (docs/maths.md, derivatives).

    The output is torch's bit for bit. ``bits=None``, inference mode and an empty gate take torch's own path;
    without gradients nothing is kept, but the keys are drawn. A second derivative raises.

    Args:
        gate, up: one shape, dtype and device; float32, float64, bfloat16 or float16, any strides.
        activation: "silu" (SwiGLU), "gelu" (GEGLU), "gelu_tanh", "relu" (ReGLU), "sigmoid" (GLU), "tanh" or
            "mish".
        bits: 8, 4, 2, 1, or None for torch's exact gradient.

    Raises:
        TypeError: gate or up is not a strided floating tensor, dtypes differ, or bits is no integer.
        ValueError: shapes or devices differ, or activation or bits is none of the values above.
    """
    check_bits(bits)
    check_gate(activation)
    check_tensor("gate", gate)
    check_tensor("up", up)
    if gate.shape != up.shape:
        raise ValueError(f"gate and up must have one shape, got {tuple(gate.shape)} and {tuple(up.shape)}")
    if gate.device != up.device:
        raise ValueError(f"gate and up must be on one device, got {gate.device} and {up.device}")
    if gate.dtype != up.dtype:
        raise TypeError(f"gate and up must have one dtype, got {gate.dtype} and {up.dtype}")
    act = ops.GATES[activation][0]
    if codes_nothing(gate, bits):
        return act(gate) * up
    if only_draws(gate, up):
        ops.draw_key(gate.device)
        ops.draw_key(gate.device)
        return act(gate) * up
    return _Gated.apply(gate, up, activation, bits, (gate.requires_grad, up.requires_grad))[0]

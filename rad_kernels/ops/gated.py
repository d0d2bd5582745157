"""act(gate) * up, with codes of both factors that its gradient needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from ..sketch import saved_nbytes
from .key import visible_key
from .linear import draw_key, unpack
from .salt import rank_salt

_ops = torch.ops.rad_kernels
_aten = torch.ops.aten

# name -> act, and up * act'(gate) from (up, gate, act(gate)): torch's own backward.
GATES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "silu": (F.silu, lambda up, gate, h: _aten.silu_backward(up, gate)),
    "gelu": (F.gelu, lambda up, gate, h: _aten.gelu_backward(up, gate)),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda up, gate, h: _aten.gelu_backward(up, gate, approximate="tanh"),
    ),
    "relu": (F.relu, lambda up, gate, h: _aten.threshold_backward(up, gate, 0)),
    "sigmoid": (torch.sigmoid, lambda up, gate, h: _aten.sigmoid_backward(up, h)),
    "tanh": (torch.tanh, lambda up, gate, h: _aten.tanh_backward(up, h)),
    "mish": (F.mish, lambda up, gate, h: _aten.mish_backward(up, gate)),
}
_NAMES = tuple(GATES)
_GROUP = 64


def whole(bits: int) -> tuple[int, ...]:
    """The spec of all entries as codes."""
    return 1, 1, 0, 0, bits


def matrix_of(x: Tensor) -> tuple[int, int]:
    """Rows and features of the pack: lines are cut into groups, so that short ones are joined."""
    features = x.shape[-1] if x.dim() else 1
    return (x.numel() // features, features) if features >= _GROUP else (1, x.numel())


def gated_nbytes(x: Tensor, bits: int) -> int:
    """Bytes that are kept of one factor of the shape and dtype of x."""
    return saved_nbytes(*matrix_of(x), x.dtype, whole(bits))


def gated(
    gate: Tensor,
    up: Tensor,
    activation: str,
    bits: int,
    keep_gate: bool = True,
    keep_up: bool = True,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(act(gate) * up, codes of up * act'(gate), codes of act(gate))``, contiguous.

    Each pack has a key of its own: ``keys`` (int64, two), or drawn. What is not to be kept is empty, though
    its key is drawn.
    """
    keys = visible_key(keys, gate.device, 2)
    return _ops.gated(gate, up, _NAMES.index(activation), bits, keep_gate, keep_up, rank_salt(), keys)


def gated_product(dy: Tensor, saved: Tensor, bits: int) -> Tensor:
    """dy times the unbiased estimate of a factor, both rounded once."""
    return unpack(saved, *matrix_of(dy), dy.dtype, whole(bits)).view(dy.shape).mul_(dy)


def _gated(
    gate: Tensor,
    up: Tensor,
    activation: int,
    bits: int,
    keep_gate: bool,
    keep_up: bool,
    salt: int,
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    act, slope = GATES[_NAMES[activation]]
    h = act(gate)

    def packed(factor: Tensor, number: int) -> Tensor:
        key = None if keys is None else keys[number : number + 1]
        return _ops.pack(factor.reshape(matrix_of(factor)), whole(bits), salt, key)

    def not_packed() -> Tensor:
        if keys is None:
            draw_key(gate.device)
        return gate.new_empty(0, dtype=torch.uint8)

    saved_gate = packed(slope(up, gate, h), 0) if keep_gate else not_packed()
    saved_up = packed(h, 1) if keep_up else not_packed()
    return (h * up).contiguous(), saved_gate, saved_up


torch.library.impl("rad_kernels::gated", ("cpu", "cuda"))(_gated)


@register_fake("rad_kernels::gated")
def _(gate, up, activation, bits, keep_gate, keep_up, salt, keys=None):
    sizes = [gated_nbytes(gate, bits) if kept else 0 for kept in (keep_gate, keep_up)]
    return gate.new_empty(gate.shape), *(gate.new_empty(size, dtype=torch.uint8) for size in sizes)

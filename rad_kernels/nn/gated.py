from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


class SwiGLU(torch.nn.Module):
    """``silu(gate) * up`` that keeps ``bits`` dithered bits of each factor of its gradient
    (``functional.gated``).

    ``activation="gelu"`` makes it GEGLU, "relu" ReGLU, "sigmoid" GLU. ``eval()`` is exact and keeps what
    torch keeps. It has no parameters.

    Raises:
        TypeError, ValueError: as ``functional.gated``.
    """

    def __init__(self, activation: str = "silu", *, bits: int | None = 4) -> None:
        functional.check_gate(activation)
        functional.check_bits(bits)
        super().__init__()
        self.activation, self.bits = activation, bits

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.gated(gate, up, self.activation, bits=self.bits if self.training else None)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, bits={self.bits}"

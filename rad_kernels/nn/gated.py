from __future__ import annotations

from torch import Tensor

from .. import functional
from .activation import _Coded


class SwiGLU(_Coded):
    """``silu(gate) * up`` that keeps ``bits`` dithered bits of each factor of its gradient
    (``functional.gated``).

    ``activation="gelu"`` makes it GEGLU, "relu" ReGLU, "sigmoid" GLU. ``eval()`` is exact and keeps what
    torch keeps. It has no parameters.

    Args:
        activation: of the gate, as ``functional.gated``'s.
        bits: 8, 4, 2, 1, or None for torch's exact gradient; may be changed at any time.

    Raises:
        TypeError, ValueError: as ``functional.gated``.
    """

    def __init__(self, activation: str = "silu", *, bits: int | None = 4) -> None:
        functional.check_gate(activation)
        super().__init__()
        self.activation, self.bits = activation, bits

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.gated(gate, up, self.activation, bits=self.bits if self.training else None)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, {super().extra_repr()}"

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` that keeps one bit an element instead of its output; the gradient is exact.

    ``eval()`` is torch's own layer, so that an exported model needs nothing but torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.relu(x, self.inplace)


class ReLU6(torch.nn.ReLU6):
    """``torch.nn.ReLU6`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu6(x, self.inplace) if self.training else super().forward(x)


class LeakyReLU(torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.leaky_relu(x, self.negative_slope, self.inplace)


class Hardtanh(torch.nn.Hardtanh):
    """``torch.nn.Hardtanh`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.hardtanh(x, self.min_val, self.max_val, self.inplace)


class Threshold(torch.nn.Threshold):
    """``torch.nn.Threshold`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.threshold(x, self.threshold, self.value, self.inplace)


class Hardsigmoid(torch.nn.Hardsigmoid):
    """``torch.nn.Hardsigmoid`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardsigmoid(x, self.inplace) if self.training else super().forward(x)


class Softshrink(torch.nn.Softshrink):
    """``torch.nn.Softshrink`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.softshrink(x, self.lambd) if self.training else super().forward(x)


class Hardshrink(torch.nn.Hardshrink):
    """``torch.nn.Hardshrink`` that keeps one bit an element; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardshrink(x, self.lambd) if self.training else super().forward(x)


class _Coded(torch.nn.Module):
    """What layers with a coded derivative share: ``bits`` (8, 4, 2, 1; None: torch's exact gradient), which
    may be changed at any time. The output is exact, the gradient unbiased; ``eval()`` is torch's own layer.
    """

    _bits: int | None

    @property
    def bits(self) -> int | None:
        return self._bits

    @bits.setter
    def bits(self, value: int | None) -> None:
        functional.check_bits(value)
        self._bits = value

    def extra_repr(self) -> str:
        inherited = super().extra_repr()
        return f"{inherited}, bits={self.bits}" if inherited else f"bits={self.bits}"


class GELU(_Coded, torch.nn.GELU):
    """``torch.nn.GELU`` that keeps ``bits`` dithered bits an element (``functional.gelu``)."""

    def __init__(self, approximate: str = "none", *, bits: int | None = 4) -> None:
        super().__init__(approximate)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.gelu(x, self.approximate, bits=self.bits)


class SiLU(_Coded, torch.nn.SiLU):
    """``torch.nn.SiLU`` that keeps ``bits`` dithered bits an element (``functional.silu``)."""

    def __init__(self, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x, self.inplace, bits=self.bits) if self.training else super().forward(x)


class Mish(_Coded, torch.nn.Mish):
    """``torch.nn.Mish`` that keeps ``bits`` dithered bits an element (``functional.mish``)."""

    def __init__(self, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.mish(x, self.inplace, bits=self.bits) if self.training else super().forward(x)


class Hardswish(_Coded, torch.nn.Hardswish):
    """``torch.nn.Hardswish`` that keeps ``bits`` dithered bits an element (``functional.hardswish``)."""

    def __init__(self, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.hardswish(x, self.inplace, bits=self.bits) if self.training else super().forward(x)


class Tanh(_Coded, torch.nn.Tanh):
    """``torch.nn.Tanh`` that keeps ``bits`` dithered bits an element (``functional.tanh``)."""

    def __init__(self, *, bits: int | None = 4) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.tanh(x, bits=self.bits) if self.training else super().forward(x)


class Sigmoid(_Coded, torch.nn.Sigmoid):
    """``torch.nn.Sigmoid`` that keeps ``bits`` dithered bits an element (``functional.sigmoid``)."""

    def __init__(self, *, bits: int | None = 4) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.sigmoid(x, bits=self.bits) if self.training else super().forward(x)


class LogSigmoid(_Coded, torch.nn.LogSigmoid):
    """``torch.nn.LogSigmoid`` that keeps ``bits`` dithered bits an element (``functional.logsigmoid``)."""

    def __init__(self, *, bits: int | None = 4) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.logsigmoid(x, bits=self.bits) if self.training else super().forward(x)


class Softplus(_Coded, torch.nn.Softplus):
    """``torch.nn.Softplus`` that keeps ``bits`` dithered bits an element (``functional.softplus``)."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0, *, bits: int | None = 4) -> None:
        super().__init__(beta, threshold)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.softplus(x, self.beta, self.threshold, bits=self.bits)


class ELU(_Coded, torch.nn.ELU):
    """``torch.nn.ELU`` that keeps ``bits`` dithered bits an element (``functional.elu``)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(alpha, inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.elu(x, self.alpha, self.inplace, bits=self.bits)


class CELU(_Coded, torch.nn.CELU):
    """``torch.nn.CELU`` that keeps ``bits`` dithered bits an element (``functional.celu``)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(alpha, inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.celu(x, self.alpha, self.inplace, bits=self.bits)


class SELU(_Coded, torch.nn.SELU):
    """``torch.nn.SELU`` that keeps ``bits`` dithered bits an element (``functional.selu``)."""

    def __init__(self, inplace: bool = False, *, bits: int | None = 4) -> None:
        super().__init__(inplace)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.selu(x, self.inplace, bits=self.bits) if self.training else super().forward(x)


class PReLU(_Coded, torch.nn.PReLU):
    """``torch.nn.PReLU`` that keeps one bit an element and, for the gradient of its weight, ``bits`` more
    (``functional.prelu``). dx is exact.

    Args:
        num_parameters, init, device, dtype: as torch.nn.PReLU.
        bits: 8, 4, 2, 1, or None for torch's exact gradient; may be changed at any time.
    """

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int | None = 4,
    ) -> None:
        super().__init__(num_parameters, init, device, dtype)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.prelu(x, self.weight, bits=self.bits)

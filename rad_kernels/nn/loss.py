from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from .activation import _Coded


class CrossEntropyLoss(_Coded, torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` that keeps ``bits`` dithered bits a class (``functional.cross_entropy``).

    Args:
        weight, size_average, ignore_index, reduce, reduction, label_smoothing: as torch.nn.CrossEntropyLoss.
        bits: 8, 4, 2, 1, or None for torch's exact gradient; may be changed at any time.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        bits: int | None = 8,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.bits = bits

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x, target)
        return functional.cross_entropy(
            x, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing, bits=self.bits
        )

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


class LinearCrossEntropy(torch.nn.Linear):
    """``torch.nn.Linear`` and the cross-entropy of its output, whose logits are never held all at once.

    ``forward(x, target)`` is the loss (``functional.linear_cross_entropy``), exact in training and in
    evaluation. Parameters, state_dict keys and initialisation are those of torch.nn.Linear, so that weights
    can be tied to an embedding and loaded from a plain output layer.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        class_weight, ignore_index, reduction, label_smoothing, chunk: as the function's.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        class_weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.label_smoothing, self.chunk = label_smoothing, chunk

    def forward(self, x: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return functional.linear_cross_entropy(
            x,
            self.weight,
            target,
            self.bias,
            self.class_weight,
            self.ignore_index,
            self.reduction,
            self.label_smoothing,
            chunk=self.chunk,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduction={self.reduction}, chunk={self.chunk}"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..sketch import NORM_BITS
from ._signature import LikeTorch


class _Dithered(LikeTorch):
    """``bits`` of the normalised values that a layer keeps in training; None keeps what torch keeps."""

    def __init__(self, *args: Any, bits: int | None = 4, **kwargs: Any) -> None:
        functional.check_bits(bits, NORM_BITS)
        super().__init__(*args, **kwargs)
        self.bits = bits

    @property
    def bits(self) -> int | None:
        return self._bits

    @bits.setter
    def bits(self, value: int | None) -> None:
        functional.check_bits(value, NORM_BITS)
        self._bits = value

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}"


class LayerNorm(_Dithered, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` that keeps dithered normalised values (``functional.layer_norm``).

    Args: as torch.nn.LayerNorm, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps, self.bits)


class RMSNorm(_Dithered, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` that keeps dithered normalised values (``functional.rms_norm``).

    Args: as torch.nn.RMSNorm, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.rms_norm(x, self.normalized_shape, self.weight, self.eps, self.bits)


class GroupNorm(_Dithered, torch.nn.GroupNorm):
    """``torch.nn.GroupNorm`` that keeps dithered normalised values (``functional.group_norm``).

    Args: as torch.nn.GroupNorm, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.bits)


class _BatchNorm(_Dithered, torch.nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.bits is None:
            return super().forward(x)
        functional.check_tensor("x", x)
        self._check_input_dim(x)
        tracked = self.track_running_stats
        momentum = self.momentum
        if tracked and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the cumulative mean
                momentum = 1.0 / float(self.num_batches_tracked)
        return functional.batch_norm(
            x,
            self.running_mean if tracked else None,
            self.running_var if tracked else None,
            self.weight,
            self.bias,
            True,
            0.0 if momentum is None else momentum,
            self.eps,
            self.bits,
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` that keeps dithered normalised values (``functional.batch_norm``).

    Args: as torch.nn.BatchNorm1d, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` that keeps dithered normalised values (``functional.batch_norm``).

    Args: as torch.nn.BatchNorm2d, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` that keeps dithered normalised values (``functional.batch_norm``).

    Args: as torch.nn.BatchNorm3d, and ``bits``: 8, 4, 3, 2, 1, or None for torch's own.
    """

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


class MaxPool1d(torch.nn.MaxPool1d):
    """``torch.nn.MaxPool1d`` that keeps each window's place in the fewest bits; exact.

    With ``return_indices``, and in ``eval()``, it is torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.max_pool1d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool2d(torch.nn.MaxPool2d):
    """``torch.nn.MaxPool2d`` that keeps each window's place in the fewest bits; exact.

    With ``return_indices``, and in ``eval()``, it is torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class MaxPool3d(torch.nn.MaxPool3d):
    """``torch.nn.MaxPool3d`` that keeps each window's place in the fewest bits; exact.

    With ``return_indices``, and in ``eval()``, it is torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.max_pool3d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


class AvgPool1d(torch.nn.AvgPool1d):
    """``torch.nn.AvgPool1d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.avg_pool1d(
            x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad
        )


class AvgPool2d(torch.nn.AvgPool2d):
    """``torch.nn.AvgPool2d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AvgPool3d(torch.nn.AvgPool3d):
    """``torch.nn.AvgPool3d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.avg_pool3d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """``torch.nn.AdaptiveAvgPool1d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool1d(x, self.output_size) if self.training else super().forward(x)


class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """``torch.nn.AdaptiveAvgPool2d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, self.output_size) if self.training else super().forward(x)


class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """``torch.nn.AdaptiveAvgPool3d`` that keeps shapes alone; exact. ``eval()`` is torch's own layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool3d(x, self.output_size) if self.training else super().forward(x)


class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """``torch.nn.AdaptiveMaxPool1d`` that keeps each window's place in the fewest bits; exact.

    Where its sizes do not divide the input's, with ``return_indices``, and in ``eval()``, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.adaptive_max_pool1d(x, self.output_size, self.return_indices)


class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """``torch.nn.AdaptiveMaxPool2d`` that keeps each window's place in the fewest bits; exact.

    Where its sizes do not divide the input's, with ``return_indices``, and in ``eval()``, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.adaptive_max_pool2d(x, self.output_size, self.return_indices)


class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """``torch.nn.AdaptiveMaxPool3d`` that keeps each window's place in the fewest bits; exact.

    Where its sizes do not divide the input's, with ``return_indices``, and in ``eval()``, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.adaptive_max_pool3d(x, self.output_size, self.return_indices)

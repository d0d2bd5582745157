from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..sketch import Sketch
from ._signature import LikeTorch


class _Sketched(LikeTorch):
    """The sketch of a convolution layer: checked, shown, and free to change at any time."""

    def __init__(self, *args: Any, sketch: Sketch, **kwargs: Any) -> None:
        functional.check_conv_sketch(sketch)
        super().__init__(*args, **kwargs)
        self.sketch = sketch

    @property
    def sketch(self) -> Sketch:
        return self._sketch

    @sketch.setter
    def sketch(self, value: Sketch) -> None:
        functional.check_conv_sketch(value)
        self._sketch = value

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, sketch={self.sketch}"


class _Conv(_Sketched, torch.nn.modules.conv._ConvNd):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.training:
            return super()._conv_forward(input, weight, bias)
        padding: int | str | tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        conv = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.dim() - 3]
        return conv(input, weight, bias, self.stride, padding, self.dilation, self.groups, sketch=self.sketch)


class _ConvTranspose(_Sketched, torch.nn.modules.conv._ConvTransposeNd):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.training:
            return super().forward(input, output_size)
        spatial = len(self.kernel_size)
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            spatial,
            self.dilation,  # type: ignore[arg-type]
        )
        conv = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[
            spatial - 1
        ]
        return conv(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
            sketch=self.sketch,
        )


class Conv1d(_Conv, torch.nn.Conv1d):
    """``torch.nn.Conv1d`` with a ``sketch``; see Conv2d."""


class Conv2d(_Conv, torch.nn.Conv2d):
    """``torch.nn.Conv2d`` that keeps a sketch of its input for the weight gradient.

    Output, dx and db are exact, dW is unbiased (``functional.conv2d``). ``eval()`` is exact. Parameters,
    state_dict keys and initialisation are those of torch.nn.Conv2d. With a ``padding_mode`` other than zeros
    the padded input is what is sketched.

    Args:
        as torch.nn.Conv2d, and
        sketch: what is kept in training; may be changed at any time.

    Raises:
        TypeError: sketch is not a Sketch, at construction or when it is changed.
        ValueError: its sampling or draw is not for convolutions.
    """


class Conv3d(_Conv, torch.nn.Conv3d):
    """``torch.nn.Conv3d`` with a ``sketch``; see Conv2d."""


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d`` with a ``sketch``; see Conv2d."""


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d`` with a ``sketch``; see Conv2d."""


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with a ``sketch``; see Conv2d."""

"""Convolutions for tests: geometries of both directions, and their gradients by torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rad_kernels import Sketch, ops
from rad_kernels.sketch import VALID_CONV_DRAWS

COMBINATIONS = [(sampling, draw) for sampling, draws in VALID_CONV_DRAWS.items() for draw in draws]


@dataclass(frozen=True)
class ConvCase:
    """x [images, channels, *size] through a window [*window] to ``outputs`` channels."""

    images: int
    channels: int
    size: tuple[int, ...]
    outputs: int
    window: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    output_padding: int = 0

    def __str__(self) -> str:
        kind = "transposed-" if self.transposed else ""
        size, window = ("x".join(map(str, sides)) for sides in (self.size, self.window))
        return (
            f"{kind}{self.images}x{self.channels}x{size}-to-{self.outputs}-k{window}-s{self.stride}"
            f"-p{self.padding}-d{self.dilation}-g{self.groups}"
        )

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.images, self.channels, *self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        first, second = (self.channels, self.outputs) if self.transposed else (self.outputs, self.channels)
        return first, second // self.groups, *self.window

    @property
    def geometry(self) -> tuple:
        """What aten::convolution takes beside its tensors."""
        stride, padding, dilation, more = (
            [value] * len(self.size)
            for value in (self.stride, self.padding, self.dilation, self.output_padding)
        )
        return stride, padding, dilation, self.transposed, more, self.groups

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *self.geometry)

    def data(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """x, weight and dy, the same at every call."""
        generator = torch.Generator().manual_seed(11)
        x, weight = (
            torch.randn(shape, dtype=torch.float64, generator=generator)
            for shape in (self.x_shape, self.weight_shape)
        )
        dy = torch.randn(self.forward(x, weight).shape, dtype=torch.float64, generator=generator)
        return x.to(dtype), weight.to(dtype), dy.to(dtype)

    def wgrad(self, x: Tensor, dy: Tensor) -> Tensor:
        """The exact weight gradient."""
        weight = x.new_empty(self.weight_shape)
        mask = (False, True, False)
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *self.geometry, mask)[1]

    def matrix(self, by_channel: bool) -> tuple[int, int]:
        return ops.packed_shape(self.x_shape, by_channel)

    def activation(self, matrix: Tensor, by_channel: bool) -> Tensor:
        """The inverse of packing: [rows, cols] as [images, channels, *size]."""
        if not by_channel:
            matrix = matrix.view(self.images, -1, self.channels).transpose(1, 2)
        return matrix.reshape(self.x_shape)

    def pack(self, x: Tensor, weight: Tensor, sketch: Sketch, by_channel: bool, key: int) -> Tensor:
        return ops.conv(x, weight, None, sketch.spec, by_channel, *self.geometry, torch.tensor(key))[1]

    def sampled(self, dy: Tensor, saved: Tensor, sketch: Sketch, by_channel: bool) -> Tensor:
        stride, padding, dilation, transposed, _, groups = self.geometry
        how = sketch.spec, by_channel, stride, padding, dilation, transposed, groups
        return ops.conv_wgrad(dy, saved, self.x_shape, self.weight_shape, *how)

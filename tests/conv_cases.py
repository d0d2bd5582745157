"""Convolutions for tests: geometries of both directions, and their gradients by torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from checks import ROUNDING
from torch import Tensor

from rad_kernels import Sketch, ops
from rad_kernels.sketch import VALID_CONV_DRAWS

COMBINATIONS = [(sampling, draw) for sampling, draws in VALID_CONV_DRAWS.items() for draw in draws]

KEY = 2**40 + 77


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
        return ops.conv(
            x, weight, None, sketch.spec, by_channel, *self.geometry, torch.tensor(key, device=x.device)
        )[1]

    def sampled(self, dy: Tensor, saved: Tensor, sketch: Sketch, by_channel: bool) -> Tensor:
        stride, padding, dilation, transposed, _, groups = self.geometry
        how = sketch.spec, by_channel, stride, padding, dilation, transposed, groups
        return ops.conv_wgrad(dy, saved, self.x_shape, self.weight_shape, *how)


def estimate(case, saved, sketch, by_channel, dtype):
    matrix = ops.unpack(saved, *case.matrix(by_channel), dtype, sketch.spec)
    return case.activation(matrix, by_channel)


def check(case, sketch, dtype=torch.float64, device="cpu"):
    """dW within rounding of torch's in float64, from the dense estimate that was packed."""
    x, weight, dy = (t.to(device) for t in case.data(dtype))
    by_channel = sketch.sampling != "rows"
    saved = case.pack(x, weight, sketch, by_channel, KEY)
    dw = case.sampled(dy, saved, sketch, by_channel)
    assert dw.dtype == dtype and dw.shape == weight.shape and dw.is_contiguous()
    # Codes are decoded in the accumulator's type, and unpack would round them: tests/cpp has these.
    if dtype.itemsize == 2 and sketch.bits:
        return
    dense = estimate(case, saved, sketch, by_channel, dtype).double()
    if dtype.itemsize == 2:  # weights were rounded into the dense estimate: take them from ones
        ones = case.pack(torch.ones_like(x.double()), weight.double(), sketch, by_channel, KEY)
        dense = estimate(case, ones, sketch, by_channel, torch.float64) * x.double()
    exact, magnitude = case.wgrad(dense, dy.double()), case.wgrad(dense.abs(), dy.double().abs())
    terms = dy[:, 0].numel() + 4
    accumulator = ROUNDING[torch.float64 if dtype == torch.float64 else torch.float32]
    # The reference sums in float64 as well, hence twice.
    bound = 2 * terms * accumulator * magnitude + ROUNDING[dtype] * exact.abs()
    assert ((dw.double() - exact).abs() <= bound).all(), f"{(dw.double() - exact).abs().max()}"

"""What is measured: the shapes of layers and elementwise operators, for benchmarks and tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..sketch import DTYPE_NAMES

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class LinearCase:
    """A Linear on an input [rows, features]."""

    rows: int
    features: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}->{self.outputs}"


@dataclass(frozen=True)
class MatrixCase:
    """An elementwise operator on [rows, features]."""

    rows: int
    features: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}"


@dataclass(frozen=True)
class ConvCase:
    """A Conv2d of stride 1 that keeps the size of [images, channels, size, size]; the window is odd."""

    images: int
    channels: int
    size: int
    outputs: int
    window: int

    @property
    def padding(self) -> int:
        return self.window // 2

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.images, self.channels, self.size, self.size

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.images, self.outputs, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.outputs, self.channels, self.window, self.window

    @property
    def positions(self) -> int:
        return self.images * self.size**2

    def __str__(self) -> str:
        return f"{self.images}x{self.channels}x{self.size}^2->{self.outputs} k{self.window}"


@dataclass(frozen=True)
class BlockCase:
    """A transformer block on [batch, length, width]."""

    batch: int
    length: int
    width: int


# Small enough that the products cost nothing: what is left is the price of a call.
OVERHEAD = (LinearCase(64, 64, 64),)

# The first is a layer of the paper's network; the others are a wide, a narrowing and a widening layer.
CPU_LINEARS = (
    LinearCase(150, 784, 300),
    LinearCase(256, 1024, 1024),
    LinearCase(1024, 4096, 1024),
    LinearCase(4096, 768, 3072),
)
CUDA_LINEARS = (
    LinearCase(512, 1024, 1024),
    LinearCase(8192, 1024, 1024),
    LinearCase(32768, 1024, 1024),
    LinearCase(8192, 4096, 4096),
    LinearCase(32768, 4096, 4096),
    LinearCase(8192, 8192, 8192),
)
CPU_MATRICES = (MatrixCase(256, 1024), MatrixCase(4096, 1024))
CUDA_MATRICES = (MatrixCase(8192, 4096), MatrixCase(32768, 8192))

# A layer of the paper's network, and one of a residual network.
CPU_CONVS = (ConvCase(150, 16, 32, 32, 5), ConvCase(32, 64, 32, 64, 3))
CUDA_CONVS = (ConvCase(256, 256, 28, 256, 3), ConvCase(256, 64, 56, 64, 3), ConvCase(150, 16, 32, 32, 5))
CPU_BLOCKS = (BlockCase(16, 128, 256),)
CUDA_BLOCKS = (BlockCase(16, 1024, 1024), BlockCase(8, 1024, 2048))

QUICK_LINEARS = (LinearCase(256, 1024, 1024),)
QUICK_MATRICES = (MatrixCase(256, 1024),)
QUICK_CONVS = (ConvCase(16, 16, 32, 32, 5),)
QUICK_BLOCKS = (BlockCase(4, 64, 128),)


def linear_cases(device: torch.device, quick: bool) -> tuple[LinearCase, ...]:
    if quick:
        return QUICK_LINEARS
    return CUDA_LINEARS if device.type == "cuda" else CPU_LINEARS


def matrix_cases(device: torch.device, quick: bool) -> tuple[MatrixCase, ...]:
    if quick:
        return QUICK_MATRICES
    return CUDA_MATRICES if device.type == "cuda" else CPU_MATRICES


def conv_cases(device: torch.device, quick: bool) -> tuple[ConvCase, ...]:
    if quick:
        return QUICK_CONVS
    return CUDA_CONVS if device.type == "cuda" else CPU_CONVS


def block_cases(device: torch.device, quick: bool) -> tuple[BlockCase, ...]:
    if quick:
        return QUICK_BLOCKS
    return CUDA_BLOCKS if device.type == "cuda" else CPU_BLOCKS

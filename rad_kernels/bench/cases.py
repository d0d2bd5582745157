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

QUICK_LINEARS = (LinearCase(256, 1024, 1024),)
QUICK_MATRICES = (MatrixCase(256, 1024),)


def linear_cases(device: torch.device, quick: bool) -> tuple[LinearCase, ...]:
    if quick:
        return QUICK_LINEARS
    return CUDA_LINEARS if device.type == "cuda" else CPU_LINEARS


def matrix_cases(device: torch.device, quick: bool) -> tuple[MatrixCase, ...]:
    if quick:
        return QUICK_MATRICES
    return CUDA_MATRICES if device.type == "cuda" else CPU_MATRICES

"""The one table of dtypes, devices, sketches, shapes and memory layouts, for tests and benchmarks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rad_kernels import Sketch
from rad_kernels.sketch import BITS, DTYPE_NAMES, VALID_DRAWS, WITHOUT_BITS

DTYPES = tuple(DTYPE_NAMES)
EVERY_BITS = (None, *BITS)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

# Every valid (sampling, draw). What is added to the package's table is tested from then on.
COMBINATIONS = [(sampling, draw) for sampling, draws in VALID_DRAWS.items() for draw in draws]
# Estimates that are entry times factor; and those whose factors follow from the key alone.
ENTRYWISE = [names for names in COMBINATIONS if names[0] != "project"]
BY_KEY = [names for names in ENTRYWISE if names[1] != "norm"]

KEEPS = (1e-6, 0.07, 0.1, 1 / 3, 0.5, 0.97, 1.0)


def sketches(keeps=KEEPS, bits=(None,), combinations=COMBINATIONS) -> list[Sketch]:
    """Every one of these that is valid."""
    return [
        Sketch(keep, *names, width)
        for names in combinations
        for keep in keeps
        for width in bits
        if not width or names[0] not in WITHOUT_BITS
    ]


# Lengths of an axis: nothing, one, every remainder of small vectors, around strips, blocks and tiles.
SIZES = (*range(36), 63, 64, 65, 97, 127, 128, 129, 255, 256, 257)
MATRICES = tuple(itertools.product(SIZES, SIZES))  # (rows, features)


@dataclass(frozen=True)
class LinearCase:
    rows: int
    features: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}->{self.outputs}"


# The layers whose time and memory are reported.
REPORTED_LINEARS = (
    LinearCase(64, 64, 64),
    LinearCase(150, 784, 300),
    LinearCase(256, 1024, 1024),
    LinearCase(1024, 4096, 1024),
    LinearCase(4096, 768, 3072),
)

# Small layers that reach every loop's tail: outputs around a strip of 64, more kept features than one chunk
# of 256 indices, more features than one tile of 2048.
LINEARS = (
    LinearCase(1, 1, 1),
    LinearCase(5, 3, 2),
    LinearCase(13, 31, 63),
    LinearCase(33, 65, 65),
    LinearCase(7, 2100, 3),
    LinearCase(3, 4099, 66),
    LinearCase(513, 9, 5),
)


def _spread(matrix: Tensor, row_step: int, col_step: int, offset: int) -> Tensor:
    rows, cols = matrix.shape
    big = matrix.new_zeros(rows * row_step + 1, cols * col_step + offset)
    view = big[1::row_step, offset::col_step]
    view.copy_(matrix)
    return view


def _permuted(matrix: Tensor, leading: tuple[int, ...], order: tuple[int, ...]) -> Tensor:
    """[*leading, cols] whose memory has the dimensions in ``order``; rows are repeated or cut to fit."""
    index = torch.arange(torch.Size(leading).numel(), device=matrix.device) % max(len(matrix), 1)
    values = matrix[index].reshape(*leading, matrix.shape[1])
    back = sorted(range(len(order)), key=order.__getitem__)
    return values.permute(order).contiguous().permute(back)


# name -> a tensor [..., features] built from values [rows >= 1, features >= 1]; its own values say what is
# expected of it, its strides what is difficult about it.
LAYOUTS = {
    "contiguous": lambda m: m,
    "one row, 1-D": lambda m: m[0],
    "3-D": lambda m: m.expand(2, *m.shape).contiguous(),
    "5-D": lambda m: m.expand(2, 1, 3, *m.shape).contiguous(),
    "transposed": lambda m: m.t().contiguous().t(),
    "every third row": lambda m: _spread(m, 3, 1, 0),
    "every other column": lambda m: _spread(m, 1, 2, 0),
    "odd offset and pitch": lambda m: _spread(m, 1, 1, 3),
    "expanded rows": lambda m: m[:1].expand(m.shape),
    "expanded columns": lambda m: m[:, :1].expand(m.shape),
    "expanded batch": lambda m: m.expand(3, *m.shape),
    "time first": lambda m: _permuted(m, (3, 4), (1, 0, 2)),
    "channels first": lambda m: _permuted(m, (2, 3, 2), (0, 3, 1, 2)),
    "four strides": lambda m: _permuted(m, (2, 3, 2, 2), (3, 1, 2, 0, 4)),
    "overlapping windows": lambda m: m.reshape(-1).unfold(0, m.shape[1], 1),
}

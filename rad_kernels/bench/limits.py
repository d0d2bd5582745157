"""How fast it could be: bytes that must move and multiplications that must happen, against measured rates.

A limit is ``max(flops / rate, bytes / bandwidth)`` with the rate of a large product and the bandwidth of a
large copy, both measured in the same run. Nothing is assumed to stay in a cache between operators.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..ops.conv import packed_shape
from ..sketch import Sketch, saved_nbytes
from .cases import ConvCase, LinearCase, MatrixCase
from .timing import Clock, Rounds, Step, interleaved

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
PRODUCT_SIZE = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True)
class Work:
    """The least that an operator has to do."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Limits:
    """flops_per_s: of a square product in the dtype measured; bytes_per_s: read plus written by a copy."""

    flops_per_s: float
    bytes_per_s: float

    def seconds(self, work: Work) -> float:
        return max(work.flops / self.flops_per_s, work.bytes / self.bytes_per_s)


def measured_limits(device: torch.device, dtype: torch.dtype, clock: Clock, quick: bool = False) -> Limits:
    shrink = 4 if quick else 1
    size, length = PRODUCT_SIZE[device.type] // shrink, COPY_BYTES[device.type] // shrink
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.ones(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    out = torch.empty_like(a)
    steps = {
        "product": Step(nothing, lambda: torch.mm(a, b, out=out)),
        "copy": Step(nothing, lambda: target.copy_(source)),
    }
    times = interleaved(steps, clock, Rounds(seconds=1.0, least=5, most=30))
    return Limits(2 * size**3 / min(times["product"]), 2 * length / min(times["copy"]))


def nothing() -> None:
    pass


def exact_linear(case: LinearCase, dtype: torch.dtype) -> Work:
    """Three products; x, dy and the weight are read by two of them each."""
    n, d, m = case.rows, case.features, case.outputs
    return Work(6.0 * n * d * m, dtype.itemsize * float(3 * n * d + 3 * n * m + 3 * d * m))


def projecting(features: int, sketch: Sketch) -> float:
    """Flops for a row of x or of dW: a product with signs, or a fast transform."""
    if sketch.sampling != "project" or sketch.spec[0] == sketch.spec[1]:
        return 0.0
    if sketch.draw != "hadamard":
        return 2.0 * features * sketch.kept(features)
    bits = (features - 1).bit_length()
    return float(bits << bits)


def sketched_linear(case: LinearCase, dtype: torch.dtype, sketch: Sketch) -> Work:
    """Two full products and a share of the third: ``(4 + 2 keep) / 6`` of the flops.

    ``project`` multiplies by its signs twice more, or transforms the rows of both. The pack is
    written and read once instead of x.
    """
    n, d, m = case.rows, case.features, case.outputs
    rows = sketch.sampling in ("rows", "tile_rows")
    share = (sketch.kept(n) / n) if rows else (sketch.kept(d) / d)
    flops = (4 + 2 * share) * n * d * m
    flops += (n + m) * projecting(d, sketch)
    dy_again = share if rows else 1.0
    values = 2 * n * d + (2 + dy_again) * n * m + 3 * d * m
    return Work(flops, dtype.itemsize * values + 2.0 * saved_nbytes(n, d, dtype, sketch))


def packing(case: LinearCase, dtype: torch.dtype, sketch: Sketch) -> Work:
    """What is kept is read and the pack written; dither and projections read everything once at least."""
    n, d = case.rows, case.features
    whole = sketch.sampling == "project" or sketch.draw == "norm"
    share = 1.0 if whole else (sketch.kept(n) / n if "rows" in sketch.sampling else sketch.kept(d) / d)
    return Work(n * projecting(d, sketch), share * n * d * dtype.itemsize + saved_nbytes(n, d, dtype, sketch))


def weight_gradient(case: LinearCase, dtype: torch.dtype, sketch: Sketch | None) -> Work:
    """One product of which a sketch keeps a share."""
    n, d, m = case.rows, case.features, case.outputs
    if sketch is None:
        return Work(2.0 * n * d * m, dtype.itemsize * float(n * d + n * m + d * m))
    rows = "rows" in sketch.sampling
    share = (sketch.kept(n) / n) if rows else (sketch.kept(d) / d)
    flops = 2 * share * n * d * m
    flops += m * projecting(d, sketch)
    values = (share if rows else 1.0) * n * m + d * m
    return Work(flops, dtype.itemsize * values + saved_nbytes(n, d, dtype, sketch))


def conv(case: ConvCase, dtype: torch.dtype, sketch: Sketch | None) -> Work:
    """As a Linear's: three products, of which a sketch keeps a share of one. Zeros of the padding count."""
    product = _conv_product(case)
    x, y = (case.positions * channels for channels in (case.channels, case.outputs))
    weights = case.outputs * case.channels * case.window**2
    share = 1.0 if sketch is None else _conv_share(case, sketch)
    again = 3 if sketch is None else 2  # x is read by the forward product, and dx is written
    kept = 0.0 if sketch is None else 2.0 * _conv_nbytes(case, dtype, sketch)
    return Work((2 + share) * product, dtype.itemsize * float(again * x + 3 * y + 3 * weights) + kept)


def conv_weight_gradient(case: ConvCase, dtype: torch.dtype, sketch: Sketch | None) -> Work:
    """One product of which a sketch keeps a share; dy is read where it meets what is kept."""
    x, y = (case.positions * channels for channels in (case.channels, case.outputs))
    share = 1.0 if sketch is None else _conv_share(case, sketch)
    kept = x * dtype.itemsize if sketch is None else _conv_nbytes(case, dtype, sketch)
    read = y + case.outputs * case.channels * case.window**2
    return Work(share * _conv_product(case), float(dtype.itemsize * read + kept))


def _conv_product(case: ConvCase) -> float:
    return 2.0 * case.positions * case.outputs * case.channels * case.window**2


def _conv_matrix(case: ConvCase, sketch: Sketch) -> tuple[int, int]:
    return packed_shape(case.x_shape, sketch.sampling != "rows")


def _conv_share(case: ConvCase, sketch: Sketch) -> float:
    rows, columns = _conv_matrix(case, sketch)
    return sketch.kept(rows) / rows if sketch.sampling == "rows" else sketch.kept(columns) / columns


def _conv_nbytes(case: ConvCase, dtype: torch.dtype, sketch: Sketch) -> int:
    return saved_nbytes(*_conv_matrix(case, sketch), dtype, sketch)


def elementwise(case: MatrixCase, dtype: torch.dtype, kept: float) -> Work:
    """Forward reads x and writes y, backward reads dy and writes dx; ``kept`` bytes a value both ways.

    torch's ReLU keeps its output: written anyway, it only has to be read again, so half its bytes count.
    """
    return Work(0.0, case.rows * case.features * (4.0 * dtype.itemsize + 2 * kept))

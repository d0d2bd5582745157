"""The sampled layers of the paper's authors, to be measured beside ours.

This is a re-implementation from a description of their published PyTorch layers (RandLinear and RandConv2d of
Oktay et al., 2021), not their code. What was kept because it decides time and memory:

* the input is a matrix of rows: of a Linear its own, of a convolution one for each image and channel, whose
  features are the pixels. Indices are drawn uniformly with replacement, ``ceil(keep * features)`` of them,
  one set for all rows (``different=False``) or one a row; the values are stored scaled by features / k;
* a seed is kept instead of indices: forward and backward both fork the generator, seed it and draw;
* backward rebuilds the dense input with zeros and an accumulating index_put_, clones weight and bias, runs
  the forward product once more under grad and differentiates it: four products where torch has three;
* a Linear's rows are two-dimensional, values float32, and there is always a bias.

Their RandReLU keeps the whole float32 activation, as torch's does, and pooling is torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def _indices(seed: int, rows: int, features: int, kept: int, different: bool) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.randint(features, (rows, kept) if different else (kept,))


class _Official(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        features: int,
        kept: int,
        different: bool,
        product: Product,
    ) -> Tensor:
        matrix = x.reshape(-1, features)
        seed = int(torch.randint(2**31, (1,)))
        index = _indices(seed, len(matrix), features, kept, different).to(x.device)
        sample = matrix.gather(1, index) if different else matrix[:, index]
        ctx.save_for_backward(sample * (features / kept), weight, bias)
        ctx.seed, ctx.shape, ctx.features, ctx.different, ctx.product = (
            seed,
            x.shape,
            features,
            different,
            product,
        )
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        sample, weight, bias = ctx.saved_tensors
        rows, kept = sample.shape
        index = _indices(ctx.seed, rows, ctx.features, kept, ctx.different).to(sample.device)
        row = torch.arange(rows, device=sample.device)[:, None].expand(rows, kept)
        column = index if ctx.different else index.expand(rows, kept)
        dense = torch.zeros(rows, ctx.features, device=sample.device)
        dense.index_put_((row, column), sample, accumulate=True)
        with torch.enable_grad():
            tensors = (dense.view(ctx.shape), weight, bias)
            inputs = [tensor.detach().clone().requires_grad_() for tensor in tensors]
            y = ctx.product(*inputs)
        return (*torch.autograd.grad(y, inputs, dy), None, None, None, None)


class OfficialLinear(torch.nn.Linear):
    """Linear [rows, in_features] -> [rows, out_features] in float32 with the authors' cost (see above).

    Args:
        keep: share of the features that is drawn.
        different: every row draws its own features.
    """

    def __init__(self, in_features: int, out_features: int, keep: float, different: bool) -> None:
        super().__init__(in_features, out_features)
        self.kept, self.different = math.ceil(keep * in_features), different

    def forward(self, x: Tensor) -> Tensor:
        arguments = self.in_features, self.kept, self.different, F.linear
        return _Official.apply(x, self.weight, self.bias, *arguments)


class OfficialConv2d(torch.nn.Conv2d):
    """Convolution [N, C, H, W] with zero padding in float32 with the authors' cost (see above).

    Args:
        keep: share of the pixels that is drawn.
        different: every image and channel draws its own pixels.
    """

    def __init__(
        self, channels: int, outputs: int, kernel_size: int, keep: float, different: bool, padding: int = 0
    ) -> None:
        super().__init__(channels, outputs, kernel_size, padding=padding)
        self.keep, self.different = keep, different

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        product = partial(F.conv2d, padding=self.padding)
        arguments = pixels, math.ceil(self.keep * pixels), self.different, product
        return _Official.apply(x, self.weight, self.bias, *arguments)

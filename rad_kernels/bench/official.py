"""The sampled Linear of the paper's authors, to be timed beside ours.

This is a re-implementation from a description of their published PyTorch layer (RandLinear of Oktay et al.,
2021), not their code. What was kept because it decides time and memory:

* indices are drawn uniformly with replacement, ``ceil(keep * features)`` of them, one set for all rows
  (``different=False``) or one a row; the values are stored scaled by features / k;
* a seed is kept instead of indices: forward and backward both fork the generator, seed it and draw;
* backward rebuilds the dense input with zeros and an accumulating index_put_, clones weight and bias, runs
  the forward product once more under grad and differentiates it: four products where torch has three;
* rows are two-dimensional, values float32, and there is always a bias.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def _indices(seed: int, rows: int, features: int, kept: int, different: bool) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.randint(features, (rows, kept) if different else (kept,))


class _OfficialLinear(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, kept, different):
        rows, features = x.shape
        seed = int(torch.randint(2**31, (1,)))
        index = _indices(seed, rows, features, kept, different).to(x.device)
        sample = x.gather(1, index) if different else x[:, index]
        ctx.save_for_backward(sample * (features / kept), weight, bias)
        ctx.seed, ctx.features, ctx.different = seed, features, different
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        sample, weight, bias = ctx.saved_tensors
        rows, kept = sample.shape
        index = _indices(ctx.seed, rows, ctx.features, kept, ctx.different).to(sample.device)
        row = torch.arange(rows, device=sample.device)[:, None].expand(rows, kept)
        column = index if ctx.different else index.expand(rows, kept)
        dense = torch.zeros(rows, ctx.features, device=sample.device)
        dense.index_put_((row, column), sample, accumulate=True)
        with torch.enable_grad():
            inputs = [tensor.detach().clone().requires_grad_() for tensor in (dense, weight, bias)]
            y = F.linear(*inputs)
        return (*torch.autograd.grad(y, inputs, dy), None, None)


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
        return _OfficialLinear.apply(x, self.weight, self.bias, self.kept, self.different)

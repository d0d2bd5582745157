from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


class ReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` that keeps one bit an element instead of its output; the gradient is exact.

    ``eval()`` is torch's own layer, so that an exported model needs nothing but torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return functional.relu(x, self.inplace)

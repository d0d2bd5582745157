from __future__ import annotations

import torch
from torch import Tensor

from .. import functional


class Dropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` that keeps a 64-byte key instead of a mask (``functional.dropout``).

    The mask is not torch's for the same seed. Under torch.compile it is torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, self.training, self.inplace)


class AlphaDropout(torch.nn.AlphaDropout):
    """``torch.nn.AlphaDropout`` that keeps a 64-byte key instead of a mask (``functional.alpha_dropout``).

    The mask is not torch's for the same seed. Under torch.compile it is torch's own layer. Dropout1d to
    Dropout3d need no counterpart: torch keeps one number a channel of them.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.alpha_dropout(x, self.p, self.training, self.inplace)

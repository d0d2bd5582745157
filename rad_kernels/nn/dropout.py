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

    The mask is not torch's for the same seed. Under torch.compile it is torch's own layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        return functional.alpha_dropout(x, self.p, self.training, self.inplace)


class Dropout1d(torch.nn.Dropout1d):
    """``torch.nn.Dropout1d`` itself, whose one number a channel is all that it keeps."""


class Dropout2d(torch.nn.Dropout2d):
    """``torch.nn.Dropout2d`` itself, whose one number a channel is all that it keeps."""


class Dropout3d(torch.nn.Dropout3d):
    """``torch.nn.Dropout3d`` itself, whose one number a channel is all that it keeps."""


class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """``torch.nn.FeatureAlphaDropout`` itself, whose one number a channel is all that it keeps."""

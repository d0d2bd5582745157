"""PReLU: torch's output, a bit for each element's slope, and codes of the part that the slope multiplies."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

from .gated import gated_nbytes, matrix_of, whole
from .key import visible_key
from .salt import rank_salt

_ops = torch.ops.rad_kernels
_ABOVE = 0


def _real(dtype: torch.dtype) -> torch.dtype:
    """Of the codes: 16-bit numbers are decoded in float32, so that nothing rounds them before the sum."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def prelu(x: Tensor, weight: Tensor, bits: int, key: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """``(F.prelu(x, weight), mask of x > 0 as relu's, codes of min(x, 0))``; bits = 0 keeps no codes."""
    key = visible_key(key, x.device) if bits else None
    return _ops.prelu(x, weight, bits, rank_salt(), key)


def _prelu(
    x: Tensor, weight: Tensor, bits: int, salt: int, key: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    y, mask = F.prelu(x, weight), _ops.kink(x, _ABOVE, 0.0, 0.0)
    if bits == 0:
        return y, mask, x.new_empty(0, dtype=torch.uint8)
    below = x.to(_real(x.dtype)).clamp(max=0)
    return y, mask, _ops.pack(below.reshape(matrix_of(below)), whole(bits), salt, key)


torch.library.impl("rad_kernels::prelu", ("cpu", "cuda"))(_prelu)


@register_fake("rad_kernels::prelu")
def _(x, weight, bits, salt, key=None):
    mask = x.new_empty((x.numel() + 31) // 32, dtype=torch.int32)
    nbytes = gated_nbytes(x.to(_real(x.dtype)), bits) if bits else 0
    return torch.empty_like(x), mask, x.new_empty(nbytes, dtype=torch.uint8)

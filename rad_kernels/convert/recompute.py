"""Attention computed again in backward: of its branch (norm, projections, attention) only the input is kept.

A block says what its branch is by a method ``attention_branch(x, ...)``, which its forward calls in training;
``torch.nn.TransformerEncoderLayer`` with ``norm_first=True`` is known by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from . import swap

BRANCH = "attention_branch"


def _again(branch: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(branch, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


class Recomputed:
    """Takes the place of a block's ``attention_branch``."""

    def __init__(self, owner: Module) -> None:
        self.owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        branch = getattr(type(owner), BRANCH).__get__(owner)
        if owner.training and torch.is_grad_enabled():
            return _again(branch, *args, **kwargs)
        return branch(*args, **kwargs)


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """torch's pre-norm layer, whose branch norm1 - self_attn is computed again in backward."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        padding = F._canonical_mask(
            src_key_padding_mask, "src_key_padding_mask", F._none_or_dtype(src_mask), "src_mask", src.dtype
        )
        mask = F._canonical_mask(src_mask, "src_mask", None, "", src.dtype, False)
        x = src + _again(self.attention_branch, src, mask, padding, is_causal)
        return x + self._ff_block(self.norm2(x))

    def attention_branch(
        self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool
    ) -> Tensor:
        return self._sa_block(self.norm1(x), mask, padding, is_causal=is_causal)


def recomputable(module: Module) -> bool:
    if type(module) is torch.nn.TransformerEncoderLayer:
        return module.norm_first
    return callable(getattr(type(module), BRANCH, None)) and not isinstance(module, TransformerEncoderLayer)


def install(module: Module) -> None:
    if type(module) is torch.nn.TransformerEncoderLayer:
        swap.change_class(module, torch.nn.TransformerEncoderLayer, TransformerEncoderLayer, {})
    else:
        swap.add_attributes(module, **{BRANCH: Recomputed(module)})

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..sketch import Sketch
from ._signature import LikeTorch


class MultiheadAttention(LikeTorch, torch.nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` that keeps sketches of the inputs of its projections.

    Output and attention weights are torch's, the gradients of the projections' weights unbiased
    (``functional.linear``). Projected queries, keys and values are kept as torch keeps them. ``eval()`` is
    torch's own layer.

    Args:
        embed_dim, num_heads, ...: as torch.nn.MultiheadAttention; neither add_bias_kv nor add_zero_attn.
        sketch: what is kept in training; may be changed at any time.

    Raises:
        TypeError: sketch is not a Sketch, at construction or when it is changed.
        ValueError: add_bias_kv or add_zero_attn is True.
    """

    def __init__(self, *args: Any, sketch: Sketch, **kwargs: Any) -> None:
        functional.check_sketch(sketch)
        super().__init__(*args, **kwargs)
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn must be False, got True")
        self.sketch = sketch

    @property
    def sketch(self) -> Sketch:
        return self._sketch

    @sketch.setter
    def sketch(self, value: Sketch) -> None:
        functional.check_sketch(value)
        self._sketch = value

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if not self.training:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        for name, part in (("query", query), ("key", key), ("value", value)):
            functional.check_tensor(name, part)
        batched = F._mha_shape_check(  # type: ignore[attr-defined]
            query, key, value, key_padding_mask, attn_mask, self.num_heads
        )
        mask, is_causal = self._mask(query, key_padding_mask, need_weights, attn_mask, is_causal, batched)
        q, k, v = (self._heads(part, batched) for part in self._projections(query, key, value, batched))
        if need_weights:
            y, weights = self._explicit(q, k, v, mask)
            weights = weights.unflatten(0, (len(q) // self.num_heads, self.num_heads))
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y, weights = self._fused(q, k, v, mask, is_causal), None
        y = functional.linear(y, self.out_proj.weight, self.out_proj.bias, self.sketch)
        y = y.view(q.shape[1], len(q) // self.num_heads, self.embed_dim)
        if not batched:
            return y.squeeze(1), None if weights is None else weights.squeeze(0)
        return y.transpose(0, 1) if self.batch_first else y, weights

    def _mask(
        self,
        query: Tensor,
        padding: Tensor | None,
        need_weights: bool,
        mask: Tensor | None,
        is_causal: bool,
        batched: bool,
    ) -> tuple[Tensor | None, bool]:
        """The additive mask [1 or N * heads, L, S] of both masks, and whether it is left out as causal."""
        if is_causal and mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        padding = F._canonical_mask(
            padding, "key_padding_mask", F._none_or_dtype(mask), "attn_mask", query.dtype
        )
        if is_causal and padding is None and not need_weights:
            return None, True
        mask = F._canonical_mask(mask, "attn_mask", None, "", query.dtype, False)
        if mask is not None and mask.dim() == 2:
            mask = mask.unsqueeze(0)
        if padding is None:
            return mask, is_causal and mask is None
        padding = padding if batched else padding.unsqueeze(0)
        n, s = padding.shape
        padding = (
            padding.view(n, 1, 1, s).expand(-1, self.num_heads, -1, -1).reshape(n * self.num_heads, 1, s)
        )
        return padding if mask is None else mask + padding, False

    def _projections(self, query: Tensor, key: Tensor, value: Tensor, batched: bool) -> list[Tensor]:
        """q, k and v, [L or S, N, E] (unbatched: N = 1), with one pack for each different input tensor."""
        if self._qkv_same_embed_dim:
            weights: tuple[Tensor, ...] = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        if query is key is value:
            sizes = [3] if self._qkv_same_embed_dim else [1, 1, 1]
        elif key is value and self._qkv_same_embed_dim:
            sizes = [1, 2]
        else:
            sizes = [1, 1, 1]
        if sizes != [1, 1, 1]:  # one product where torch makes one
            weights = self.in_proj_weight.split([n * self.embed_dim for n in sizes])
            if self.in_proj_bias is not None:
                biases = self.in_proj_bias.split([n * self.embed_dim for n in sizes])
        projected: list[Tensor] = []
        for x, weight, bias, size in zip((query, key, value), weights, biases, sizes):
            x = self._time_first(x, batched)
            y = functional.linear(x, weight, bias, self.sketch)
            projected += y.unflatten(-1, (size, self.embed_dim)).movedim(-2, 0).contiguous().unbind()
        return projected

    def _time_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def _heads(self, x: Tensor, batched: bool) -> Tensor:
        """[L, N, E] -> [N * heads, L, E / heads]"""
        return x.contiguous().view(x.shape[0], x.shape[1] * self.num_heads, self.head_dim).transpose(0, 1)

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """y [L * N, E] and weights [N * heads, L, S]; the weights have to be computed for the caller."""
        q = q * math.sqrt(1.0 / self.head_dim)
        scores = (
            torch.bmm(q, k.transpose(1, 2)) if mask is None else torch.baddbmm(mask, q, k.transpose(1, 2))
        )
        weights = scores.softmax(-1)
        if self.dropout > 0:
            weights = functional.dropout(weights, self.dropout)
        return torch.bmm(weights, v).transpose(0, 1).reshape(-1, self.embed_dim), weights

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """y [L * N, E]"""
        if mask is not None:
            mask = mask.unsqueeze(0) if len(mask) == 1 else mask.view(-1, self.num_heads, *mask.shape[1:])
        q, k, v = (x.unflatten(0, (len(q) // self.num_heads, self.num_heads)) for x in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, is_causal)
        return y.permute(2, 0, 1, 3).reshape(-1, self.embed_dim)

    def extra_repr(self) -> str:
        return f"sketch={self.sketch}"

"""A GPT on characters: pre-norm blocks, GELU, scaled dot product attention, no dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import Loss, arguments, run, text
from torch import Tensor, nn

LENGTH = 64


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.projection(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attention_branch(self, x: Tensor) -> Tensor:
        """What convert(..., recompute="attention") computes again in backward."""
        return self.attention(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention_branch(x)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(
        self, vocabulary: int = 65, width: int = 64, depth: int = 2, heads: int = 4, length: int = LENGTH
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def features(self, tokens: Tensor) -> Tensor:
        """[batch, length, width], which the head makes logits of."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.blocks(self.tokens(tokens) + self.positions(positions)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.features(tokens))


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def step(batch: int) -> tuple[nn.Module, tuple[Tensor, Tensor], Loss]:
    """A training step, for ``python -m rad_kernels profile examples/gpt.py:step --batch N``."""
    tokens = torch.randint(65, (batch, LENGTH + 1))
    return GPT(width=128), (tokens[:, :-1], tokens[:, 1:]), loss


def main(argv: list[str] | None = None) -> list[float]:
    args = arguments(__doc__, "a text file", argv)
    torch.manual_seed(args.seed)
    batches, vocabulary = text(args, LENGTH)
    return run(GPT(vocabulary, args.width, args.depth), batches, loss, args)


if __name__ == "__main__":
    main()

"""A vision transformer for images of 32x32 in patches of 4x4 (Dosovitskiy et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import arguments, images, run
from torch import Tensor, nn

SIZE, PATCH = 32, 4


class ViT(nn.Module):
    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, width) * 0.02)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def main(argv: list[str] | None = None) -> list[float]:
    args = arguments(__doc__, ".npz with images [N, 32, 32, 3] of bytes and labels [N]", argv)
    torch.manual_seed(args.seed)
    return run(ViT(args.width, args.depth), images(args), loss, args)


if __name__ == "__main__":
    main()

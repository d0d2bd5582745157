"""A ResNet-18 for images of 32x32 (He et al., 2016: a 3x3 stem, four stages of two basic blocks)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from common import Loss, arguments, images, run
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, width: int = 64, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, inputs = [], width
        for stage in range(4):
            for number in range(depth):
                outputs = width << stage
                blocks.append(BasicBlock(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def step(batch: int) -> tuple[nn.Module, tuple[Tensor, Tensor], Loss]:
    """A training step, for ``python -m rad_kernels profile examples/resnet.py:step --batch N``."""
    return ResNet(32), (torch.rand(batch, 3, 32, 32), torch.zeros(batch, dtype=torch.int64)), loss


def main(argv: list[str] | None = None) -> list[float]:
    args = arguments(__doc__, ".npz with images [N, 32, 32, 3] of bytes and labels [N]", argv, width=16)
    torch.manual_seed(args.seed)
    return run(ResNet(args.width, args.depth), images(args), loss, args)


if __name__ == "__main__":
    main()

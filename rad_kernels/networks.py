"""The paper's three networks (Oktay et al. 2021, section 4), built from torch's layers, and the bytes that
they have to keep for backward under a sketch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from . import ops
from .ops.rnn import Layer
from .sketch import Sketch, saved_nbytes

FLOAT = torch.float32
WORD = 32


@dataclass(frozen=True)
class Network:
    """make: the network. example: its input for a batch. kept: a sketch and a batch -> bytes for backward."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[int], Tensor]
    kept: Callable[[Sketch, int], int]

    def formula(self, sketch: Sketch, batch: int) -> int:
        """Bytes of the weights and of all that is kept: packs of the inputs and one bit for each ReLU."""
        return weight_bytes(self.make()) + self.kept(sketch, batch)


def weight_bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())


def mask_bytes(elements: int) -> int:
    """One bit an element, in whole words."""
    return -(-elements // WORD) * WORD // 8


LAYERS = (784, 300, 300, 300, 10)


def fully_connected(sizes: Sequence[int] = LAYERS) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _fully_connected_kept(sketch: Sketch, batch: int) -> int:
    packs = sum(saved_nbytes(batch, features, FLOAT, sketch) for features in LAYERS[:-1])
    return packs + sum(mask_bytes(batch * features) for features in LAYERS[1:-1])


# Channels and image size of each convolution's input; the masks are as large as what comes out.
CONVOLUTIONS = ((3, 32), (16, 32), (32, 16), (32, 16))
OUTPUTS = (16, 32, 32, 32)


def conv_net() -> nn.Module:
    layers: list[nn.Module] = []
    for number, ((inputs, _), outputs) in enumerate(zip(CONVOLUTIONS, OUTPUTS)):
        layers += [nn.Conv2d(inputs, outputs, 5, padding=2), nn.ReLU()]
        layers += [nn.AvgPool2d(2)] * (number % 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 10))


def _conv_net_kept(sketch: Sketch, batch: int) -> int:
    """``rows`` keeps whole pixels; the other samplings positions of each image and channel."""
    total = saved_nbytes(batch, 2048, FLOAT, sketch)
    for (channels, size), outputs in zip(CONVOLUTIONS, OUTPUTS):
        by_pixel = saved_nbytes(batch * size * size, channels, FLOAT, sketch)
        by_channel = saved_nbytes(batch * channels, size * size, FLOAT, sketch)
        drawn = by_pixel if sketch.sampling == "rows" else by_channel
        total += min(by_pixel, by_channel) if sketch.spec[0] == sketch.spec[1] else drawn
        total += mask_bytes(batch * outputs * size * size)
    return total


STEPS, HIDDEN = 784, 100


class IRNN(nn.Module):
    """One pixel a step through 100 rectified units, the last of whose states gives the class."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(1, HIDDEN, nonlinearity="relu"), nn.Linear(HIDDEN, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.rnn(pixels)[1][0])


def _irnn_kept(sketch: Sketch, batch: int) -> int:
    """A sample of one feature is the feature: only rows of the pixels can be left out."""
    sampled = sketch.is_worthwhile(STEPS * batch, 1, FLOAT)
    layer = Layer("relu", STEPS, batch, 1, HIDDEN, 1, (), 8, sketch.spec if sampled else (), sketch.spec)
    pixels = 0 if sampled else STEPS * batch * FLOAT.itemsize
    return ops.rnn_saved_nbytes(layer, FLOAT) + pixels + saved_nbytes(batch, HIDDEN, FLOAT, sketch)


NETWORKS = {
    network.name: network
    for network in (
        Network("ConvNet", conv_net, lambda batch: torch.rand(batch, 3, 32, 32), _conv_net_kept),
        Network("FC", fully_connected, lambda batch: torch.rand(batch, 784), _fully_connected_kept),
        Network("RNN", IRNN, lambda batch: torch.rand(STEPS, batch, 1), _irnn_kept),
    )
}

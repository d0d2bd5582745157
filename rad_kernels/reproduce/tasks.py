"""What is trained: the paper's networks, their data, and the settings of each preset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cifar10 import load_cifar10
from ..data import Digits, load_digits_8x8, load_mnist
from ..networks import HIDDEN, IRNN, LAYERS, conv_net, fully_connected

PRESETS = ("ci", "desk", "paper")


@dataclass(frozen=True)
class Preset:
    """iterations: updates of a run. pilot: those of a run that chooses a learning rate. seeds: runs a method.

    pixels: images are averaged down to this side first (RNN: a step a pixel). evaluated: images of each part
    that an evaluation looks at. real: whether it trains on the paper's data or on the embedded digits.
    """

    iterations: int
    pilot: int
    seeds: int
    batch: int = 150
    pixels: int | None = None
    evaluated: int = 5000
    real: bool = True


@dataclass(frozen=True)
class Task:
    """A network of the paper with its data, flat images, which ``feed`` brings into the network's form.

    dithered: the sampling that codes are composed with; for a convolution not rows, which are pixels of few
    channels there: each would be a group of codes with its own origin and step.
    """

    name: str
    title: str
    data_name: str
    make: Callable[[int], nn.Module]
    feed: Callable[[Tensor], Tensor]
    presets: dict[str, Preset]
    clip: float | None = None
    dithered: str = "rows"


def _pixels_in_turn(images: Tensor) -> Tensor:
    """[n, pixels] as a sequence [pixels, n, 1]."""
    return images.t().unsqueeze(-1)


def _fully_connected(inputs: int) -> nn.Module:
    return fully_connected((inputs, *LAYERS[1:]))


def _irnn(_inputs: int) -> nn.Module:
    """Le, Jaitly and Hinton (2015): the recurrence begins as the identity, without biases, and input weights
    of deviation 0.001."""
    network = IRNN()
    with torch.no_grad():
        for name, parameter in network.rnn.named_parameters():
            if name == "weight_hh_l0":
                parameter.copy_(torch.eye(HIDDEN))
            elif name == "weight_ih_l0":
                parameter.normal_(0, 0.001)
            else:
                parameter.zero_()
    return network


TASKS = {
    task.name: task
    for task in (
        Task(
            "fc",
            "784-300-300-300-10",
            "MNIST",
            _fully_connected,
            lambda images: images,
            {
                "ci": Preset(40, 10, 1, real=False, evaluated=300),
                "desk": Preset(1500, 200, 3),
                "paper": Preset(20_000, 1000, 5, evaluated=10_000),
            },
        ),
        Task(
            "cnn",
            "ConvNet",
            "CIFAR-10",
            lambda _inputs: conv_net(),
            lambda images: images.view(-1, 3, 32, 32),
            {
                "ci": Preset(4, 2, 1, batch=24, real=False, evaluated=60),
                "desk": Preset(100, 10, 2, evaluated=500),
                "paper": Preset(20_000, 1000, 5, evaluated=10_000),
            },
            dithered="same",
        ),
        Task(
            "rnn",
            "IRNN",
            "sequential MNIST",
            _irnn,
            _pixels_in_turn,
            {
                "ci": Preset(4, 2, 1, batch=64, real=False, evaluated=100),
                "desk": Preset(300, 40, 2, pixels=14, evaluated=1000),
                "paper": Preset(200_000, 2000, 3, evaluated=10_000),
            },
            clip=1.0,
        ),
    )
}


def samples(task: Task, preset: Preset, data: Path | None) -> Digits:
    """Flat standardised images [n, values] of the task's set, or of the embedded digits.

    Raises:
        ValueError: the preset needs real data and ``data`` is None.
        FileNotFoundError: ``data`` lacks the files; see the loaders.
    """
    if not preset.real:
        found = load_digits_8x8()
    elif data is None:
        raise ValueError(f"--data must name a folder that holds {task.data_name}")
    elif task.name == "cnn":
        return _colours(data)
    else:
        found = load_mnist(data / "mnist" if (data / "mnist").is_dir() else data)
    train, test = found.train_images, found.test_images
    if task.name == "cnn":  # grey, and as large as the network wants them
        train, test = (_coloured(images) for images in (train, test))
    elif preset.pixels is not None:
        train, test = (F.adaptive_avg_pool2d(images, preset.pixels) for images in (train, test))
    return _standardised(found._replace(train_images=train, test_images=test))


def _colours(data: Path) -> Digits:
    """Each colour with its own mean and deviation."""
    found = load_cifar10(data)
    train, test = (images.float() / 255 for images in (found.train_images, found.test_images))
    deviation, mean = torch.std_mean(train, dim=(0, 2, 3), keepdim=True)
    train, test = ((images - mean) / deviation for images in (train, test))
    return Digits(train.flatten(1), found.train_labels, test.flatten(1), found.test_labels)


def _coloured(images: Tensor) -> Tensor:
    return F.interpolate(images.unsqueeze(1), size=32).expand(-1, 3, -1, -1)


def _standardised(digits: Digits) -> Digits:
    deviation, mean = torch.std_mean(digits.train_images)
    train, test = (
        ((images - mean) / deviation).flatten(1) for images in (digits.train_images, digits.test_images)
    )
    return digits._replace(train_images=train, test_images=test)

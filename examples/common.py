"""What the examples share: arguments, conversion, and a short training loop."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rad_kernels import Sketch, convert, memory

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def arguments(description: str, data: str, argv: list[str] | None, **defaults: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--data", type=Path, metavar="FILE", help=f"{data} (default: synthetic)")
    add("--convert", type=Sketch.parse, metavar="SKETCH", help="such as rows:0.1 or rows:0.1:4bit")
    add("--norm-bits", type=int, default=4, help="of normalisations (%(default)s)")
    add("--act-bits", type=int, default=4, help="of activations (%(default)s)")
    add("--recompute", choices=["attention"], help="compute the attention branches again in backward")
    add("--steps", type=int, default=20, metavar="N", help="updates (%(default)s)")
    add("--batch", type=int, default=16, metavar="N", help="examples of an update (%(default)s)")
    add("--lr", type=float, default=1e-3, help="of AdamW (%(default)s)")
    add("--width", type=int, default=64, help="of the network (%(default)s)")
    add("--depth", type=int, default=2, help="blocks, of a ResNet blocks a stage (%(default)s)")
    add("--seed", type=int, default=0)
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    if args.recompute and not args.convert:
        parser.error("--recompute goes with --convert")
    return args


def images(args: argparse.Namespace, size: int = 32, classes: int = 10) -> Iterator[Batch]:
    """Minibatches [batch, 3, size, size] and labels, from a .npz with ``images`` [N, H, W, 3] of bytes and
    ``labels`` [N], or else noise that is brighter in a stripe that tells the class."""
    batch, random = args.batch, torch.Generator().manual_seed(args.seed)
    if args.data is None:
        while True:
            labels = torch.randint(classes, (batch,), generator=random)
            x = torch.randn(batch, 3, size, size, generator=random)
            for image, label in zip(x, labels):
                image[:, label * size // classes] += 2
            yield x, labels
    with np.load(args.data) as file:
        all_images, all_labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()
    while True:
        chosen = torch.randint(len(all_images), (batch,), generator=random)
        yield all_images[chosen].permute(0, 3, 1, 2).float().div(127.5).sub(1), all_labels[chosen]


def text(args: argparse.Namespace, length: int, vocabulary: int = 65) -> tuple[Iterator[Batch], int]:
    """Minibatches of characters [batch, length] with the next ones as targets, and how many characters there
    are. Without a file: counting up, from a random start in random steps."""
    path, random = args.data, torch.Generator().manual_seed(args.seed)

    def drawn(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (args.batch, *shape), generator=random)

    if path is None:

        def counting() -> Iterator[Batch]:
            while True:
                start, step = drawn(0, vocabulary, 1), drawn(1, 4, 1)
                tokens = (start + step * torch.arange(length + 1)) % vocabulary
                yield tokens[:, :-1], tokens[:, 1:]

        return counting(), vocabulary
    content = path.read_text(encoding="utf-8")
    characters = {c: i for i, c in enumerate(sorted(set(content)))}
    tokens = torch.tensor([characters[c] for c in content])
    if len(tokens) <= length:
        raise ValueError(f"{path} must have more than {length} characters, got {len(tokens)}")

    def reading() -> Iterator[Batch]:
        while True:
            starts = drawn(0, len(tokens) - length)
            windows = torch.stack([tokens[s : s + length + 1] for s in starts.tolist()])
            yield windows[:, :-1], windows[:, 1:]

    return reading(), len(characters)


def run(model: nn.Module, batches: Iterator[Batch], loss: Loss, args: argparse.Namespace) -> list[float]:
    """Convert if asked to, train, and print what happens; the losses."""
    x, y = next(batches)
    before = memory.saved_bytes(lambda: loss(model, x, y)).total
    if args.convert:
        convert(
            model,
            args.convert,
            norm_bits=args.norm_bits,
            act_bits=args.act_bits,
            example_inputs=x,
            recompute=args.recompute,
        )
        print(model.rad_report)
    after = memory.saved_bytes(lambda: loss(model, x, y)).total
    print(f"retained for backward: {before:,} bytes, now {after:,} ({before / after:.1f} times less)")
    optimizer = torch.optim.AdamW(model.parameters(), args.lr)
    losses = []
    start = time.perf_counter()
    for number in range(args.steps):
        x, y = next(batches)
        optimizer.zero_grad()
        value = loss(model, x, y)
        value.backward()
        optimizer.step()
        losses.append(value.item())
        if number % max(args.steps // 10, 1) == 0 or number == args.steps - 1:
            print(f"step {number:5}  loss {losses[-1]:.4f}")
    print(f"{(time.perf_counter() - start) / max(args.steps, 1) * 1e3:.1f} ms a step")
    return losses

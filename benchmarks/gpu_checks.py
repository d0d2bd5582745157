"""Small programs for a GPU that `gpu_report.py` runs in processes of their own.

gpu_checks.py facts      versions, device, compiled architectures
gpu_checks.py kernels    every kernel once on odd shapes of at most 64 KiB, to be run under compute-sanitizer
gpu_checks.py memory     what the allocator holds between forward and backward, against the formula (JSON)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import rad_kernels
from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.memory import step_peak
from rad_kernels.sketch import BITS, DTYPE_NAMES, VALID_DRAWS, WITHOUT_BITS, saved_nbytes

MOST_BYTES = 64 * 1024  # of one matrix: the sanitizers slow kernels down up to a hundredfold
# (rows, features, outputs): ones, tails of vectors, tiles, groups and strata.
SHAPES = ((1, 1, 1), (2, 67, 3), (33, 65, 31), (129, 7, 5), (5, 300, 130), (61, 127, 66))
BLOCK = 512  # torch's allocator rounds sizes up to this
MEMORY_SHAPE = (8192, 4096, 4096)


def sketches(keep: float) -> Iterator[Sketch]:
    for sampling, draws in VALID_DRAWS.items():
        for draw in draws:
            for bits in (None, *BITS) if sampling not in WITHOUT_BITS else (None,):
                yield Sketch(keep, sampling, draw, bits)


def run_kernels() -> int:
    """Returns how many packs were made and used. Dtypes rotate over shapes and sketches."""
    device, count = torch.device("cuda"), 0
    all_sketches = [*sketches(0.3), *(Sketch(1, bits=bits) for bits in BITS)]
    for i, (rows, features, outputs) in enumerate(SHAPES):
        for j, sketch in enumerate(all_sketches):
            dtype = list(DTYPE_NAMES)[(i + j) % len(DTYPE_NAMES)]
            assert rows * max(features, outputs) * dtype.itemsize <= MOST_BYTES
            x = torch.ones(rows, features, device=device, dtype=dtype)
            dy = torch.ones(rows, outputs, device=device, dtype=dtype)
            saved = ops.pack(x, sketch.spec)
            ops.linear_wgrad(dy, saved, features, sketch.spec)
            ops.unpack(saved, rows, features, dtype, sketch.spec)
            count += 1
        for dtype in DTYPE_NAMES:
            x = torch.ones(rows, features, device=device, dtype=dtype)
            _, mask = ops.relu(x)
            ops.masked(x, mask, x.stride())
            _, saved = ops.dropout(x, 2**30)
            ops.dropout_backward(x, saved, 2**30, x.stride())
            # Strided input: every other row and column, from an odd offset.
            wide = torch.ones(2 * rows, 2 * features + 1, device=device, dtype=dtype)[::2, 1::2]
            ops.pack(wide, Sketch(0.3).spec)
            ops.pack(wide, Sketch(0.3, "different", bits=4).spec)
    count += run_layers(device)
    torch.cuda.synchronize()
    return count


def layers() -> Iterator[tuple[torch.nn.Module, tuple[int, ...]]]:
    """Every family of layers with an odd shape of its input, large enough that the pack is worth it."""
    for sketch in (Sketch(0.3), Sketch(0.3, "same"), Sketch(0.3, "different", bits=4), Sketch(1, bits=2)):
        yield nn.Conv2d(6, 10, 3, padding=1, groups=2, sketch=sketch), (3, 6, 9, 11)
        yield nn.ConvTranspose1d(5, 7, 3, stride=2, sketch=sketch), (5, 5, 33)
        for recurrent in (nn.RNN, nn.LSTM, nn.GRU):
            yield recurrent(65, 13, sketch=sketch), (7, 11, 65)
    for bits in BITS:
        for smooth in (nn.GELU(bits=bits), nn.Softplus(bits=bits), nn.ELU(bits=bits)):
            yield smooth, (17, 67)
        yield nn.PReLU(67, bits=bits), (17, 67)
        yield nn.LayerNorm(67, bits=bits), (17, 67)
        yield nn.GroupNorm(3, 9, bits=bits), (3, 9, 5, 7)
        yield nn.BatchNorm2d(9, bits=bits), (3, 9, 5, 7)
    yield nn.ReLU6(), (17, 67)
    yield nn.Hardshrink(), (17, 67)
    yield nn.MaxPool2d(3, 2, 1), (3, 5, 13, 14)
    yield nn.AvgPool2d(3, 2, 1), (3, 5, 13, 14)


def run_layers(device: torch.device) -> int:
    """A step of each in every dtype, and of the loss; the number of steps."""
    count = 0
    for layer, shape in layers():
        for dtype in DTYPE_NAMES:
            layer.to(device, dtype)
            x = torch.rand(shape, device=device).to(dtype).requires_grad_()
            y = layer(x)
            (y[0] if isinstance(y, tuple) else y).sum().backward()
            count += 1
    for dtype in (torch.float32, torch.float64):
        fields = (torch.rand(shape, device=device, dtype=dtype) for shape in ((2, 9, 10), (2, 2, 9, 10)))
        u, source = (field.requires_grad_() for field in fields)
        target, clock = torch.rand(2, 9, 10).to(u), torch.rand(5, 2).to(u)
        how = {"steps": 7, "dt": 0.05, "diffusion": 0.1, "spacing": 0.5, "sketch": Sketch(0.3, "different")}
        functional.reaction_diffusion(u, source, target, clock, **how)[1].sum().backward()
        count += 1
    for dtype in (torch.bfloat16, torch.float16):
        for sketch in (Sketch(0.3), Sketch(0.3, "tile_rows", bits=4), Sketch(0.3, "rows", "norm")):
            x, dy = (torch.ones(77, n, device=device, dtype=dtype) for n in (135, 67))
            ops.rows_wgrad(dy, ops.pack(x, sketch.spec), 135, sketch.spec, fused=True)
            count += 1
        for channels, outputs in ((16, 24), (7, 9), (72, 32)):  # as dy lies, laid out anew, by wgmma
            x, weight = (torch.ones(n, channels, 3, 3, device=device, dtype=dtype) for n in (30, outputs))
            dy = torch.ones(30, 3, 3, outputs, device=device, dtype=dtype).movedim(-1, 1)
            how = [1, 1], [1, 1], [1, 1], False
            for spec, by_channel in ((Sketch(0.3).spec, False), (Sketch(0.3, "same", bits=4).spec, True)):
                _, saved = ops.conv(x, weight, None, spec, by_channel, *how, [0, 0], 1)
                ops.conv_wgrad(dy, saved, x.shape, weight.shape, spec, by_channel, *how, 1)
                count += 1
    for dtype in DTYPE_NAMES:
        logits = torch.rand(13, 67, device=device).to(dtype).requires_grad_()
        nn.CrossEntropyLoss()(logits, torch.arange(13, device=device)).backward()
        count += 1
    return count


def memory_rows() -> Iterator[dict[str, object]]:
    """Bytes held after forward, without the output, beside the formula; peak of a step beside torch's."""
    rows, features, outputs = MEMORY_SHAPE
    device, dtype = torch.device("cuda"), torch.bfloat16
    x = torch.randn(rows, features, device=device).to(dtype).requires_grad_()
    dy = torch.randn(rows, outputs, device=device).to(dtype)

    def costs(layer: torch.nn.Module) -> tuple[int, int]:
        def forget() -> None:
            layer.zero_grad()
            x.grad = None

        layer(x).backward(dy)
        forget()
        before = torch.cuda.memory_allocated()
        y = layer(x)
        held = torch.cuda.memory_allocated() - before - y.nbytes
        del y
        peak = step_peak(lambda: layer(x).backward(dy), device)
        forget()
        return held, peak

    held, exact_peak = costs(torch.nn.Linear(features, outputs, device=device, dtype=dtype))
    # torch's layer holds x itself, which is counted here as its cost.
    yield {"sketch": "torch", "held": held + x.nbytes, "formula": x.nbytes, "peak": exact_peak}
    for sketch in (*sketches(0.1), *(Sketch(1, bits=bits) for bits in BITS)):
        formula = -(-saved_nbytes(rows, features, dtype, sketch) // BLOCK) * BLOCK
        held, peak = costs(nn.Linear(features, outputs, device=device, dtype=dtype, sketch=sketch))
        yield {"sketch": str(sketch), "held": held, "formula": formula, "peak": peak}


def main(arguments: list[str]) -> int:
    if arguments == ["facts"]:
        print(rad_kernels.show_config())
        return 0
    if arguments == ["kernels"]:
        print(f"{run_kernels()} packs made and used on {len(SHAPES)} shapes")
        return 0
    if arguments == ["memory"]:
        rows = list(memory_rows())
        print(json.dumps(rows, indent=1))
        wrong = [row["sketch"] for row in rows if row["held"] != row["formula"]]
        print(f"{len(rows) - len(wrong)} of {len(rows)} as the formula says", file=sys.stderr)
        return 1 if wrong else 0
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

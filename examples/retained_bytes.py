"""What a training step of the example models retains for backward, exact and converted; writes a JSON file
from which the tables of the documentation are made."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpt
import llama
import resnet
import torch
import torch.nn.functional as F
import vit
from torch import Tensor, nn

from rad_kernels import Sketch, convert, functional, memory
from rad_kernels.demo.result import environment

BATCH = 8


@dataclass(frozen=True)
class Model:
    """make: the network; example: input and target."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, Tensor]]


def _images() -> tuple[Tensor, Tensor]:
    return torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH)


def _texts(vocabulary: int) -> Callable[[], tuple[Tensor, Tensor]]:
    def example() -> tuple[Tensor, Tensor]:
        tokens = torch.randint(vocabulary, (BATCH, gpt.LENGTH + 1))
        return tokens[:, :-1], tokens[:, 1:]

    return example


MANY_WORDS = 50_257
RESNET = Model("ResNet-18, 32x32", lambda: resnet.ResNet(32), _images)
VIT = Model("ViT, 6 blocks of 128", lambda: vit.ViT(128, 6), _images)
GPT = Model("GPT, 6 blocks of 128", lambda: gpt.GPT(65, 128, 6), _texts(65))
LLAMA = Model("Llama, 6 blocks of 128", lambda: llama.Llama(65, 128, 6), _texts(65))
LARGE_GPT = Model(
    "GPT, 6 blocks of 128, 50,257 words", lambda: gpt.GPT(MANY_WORDS, 128, 6), _texts(MANY_WORDS)
)


@dataclass(frozen=True)
class Setting:
    """``loss``: torch's, "codes" for 8 dithered bits a class, or "chunked", which holds no logits; with any
    but torch's the head is converted too."""

    sketch: Sketch
    norm_bits: int = 4
    recompute: str | None = None
    loss: str = "torch"


SAMPLE, CODED = Sketch(0.1), Sketch(0.1, bits=4)
SETTINGS = {
    "keep 0.1": Setting(SAMPLE),
    "keep 0.1 in 4 bits": Setting(CODED),
    "keep 0.1, norms in 3 bits": Setting(SAMPLE, norm_bits=3),
    "keep 0.1 in 4 bits, norms in 3": Setting(CODED, norm_bits=3),
    "keep 0.1, norms in 2 bits": Setting(SAMPLE, norm_bits=2),
    "keep 0.1 in 4 bits, norms in 2": Setting(CODED, norm_bits=2),
    "keep 0.1, attention again": Setting(SAMPLE, recompute="attention"),
    "keep 0.1, head and loss too": Setting(SAMPLE, loss="codes"),
    "keep 0.1 in 4 bits, head and loss too": Setting(CODED, loss="codes"),
    "keep 0.1, head and loss in chunks": Setting(SAMPLE, loss="chunked"),
}
# Of each network, the settings that it is shown with.
SHOWN = {
    RESNET: list(SETTINGS)[:6],
    VIT: [*list(SETTINGS)[:2], "keep 0.1, attention again"],
    GPT: [*list(SETTINGS)[:2], *list(SETTINGS)[6:9]],
    LLAMA: [*list(SETTINGS)[:2], *list(SETTINGS)[6:9]],
    LARGE_GPT: ["keep 0.1", "keep 0.1, head and loss too", "keep 0.1, head and loss in chunks"],
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def loss(model: nn.Module, x: Tensor, y: Tensor, kind: str) -> Tensor:
    if kind == "chunked":
        return functional.linear_cross_entropy(model.features(x), model.head.weight, y)
    logits = model(x).flatten(0, -2)
    return (F if kind == "torch" else functional).cross_entropy(logits, y.flatten())


def measure(model: Model, dtype: torch.dtype, setting: Setting | None) -> tuple[int, nn.Module]:
    """Bytes of one step, and the model after its conversion."""
    torch.manual_seed(0)
    net, (x, y) = model.make().to(dtype), model.example()
    x = x.to(dtype) if x.is_floating_point() else x
    kind = "torch"
    if setting is not None:
        kind, sketch = setting.loss, setting.sketch
        sketches = sketch if kind != "codes" else {nn.Linear: sketch, "head": sketch}
        convert(net, sketches, setting.norm_bits, recompute=setting.recompute, example_inputs=x)
    return memory.saved_bytes(lambda: loss(net, x, y, kind)).total, net


def rows() -> list[dict[str, Any]]:
    found = []
    for model, shown in SHOWN.items():
        for name, dtype in DTYPES.items():
            exact, _ = measure(model, dtype, None)
            found.append(_row(model, name, "exact", exact, exact))
            for label in shown:
                kept, _ = measure(model, dtype, SETTINGS[label])
                found.append(_row(model, name, label, kept, exact))
    return found


def _row(model: Model, dtype: str, setting: str, kept: int, exact: int) -> dict[str, Any]:
    return {
        "model": model.name,
        "dtype": dtype,
        "setting": setting,
        "bytes": kept,
        "times_less": exact / kept,
    }


def layers(model: Model, prefix: str) -> list[dict[str, Any]]:
    """Each layer below a prefix, before and after keep 0.1, in every dtype."""
    nets = {name: measure(model, dtype, SETTINGS["keep 0.1"])[1] for name, dtype in DTYPES.items()}
    reports = {name: net.rad_report.rows for name, net in nets.items()}
    return [
        {
            "layer": rows[0].name,
            "was": rows[0].layer,
            "is": rows[0].became or rows[0].reason,
            **{name: [row.before, row.after] for name, row in zip(reports, rows, strict=True)},
        }
        for rows in zip(*reports.values(), strict=True)
        if rows[0].name.startswith(prefix)
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    content = {
        "environment": environment(),
        "batch": BATCH,
        "rows": rows(),
        "layers": {m.name: layers(m, prefix) for m, prefix in ((RESNET, "blocks.2."), (GPT, "blocks.1."))},
    }
    for row in content["rows"]:
        label = f"{row['model']:34} {row['dtype']:9} {row['setting']:37}"
        print(f"{label} {row['bytes']:>12,} {row['times_less']:6.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


if __name__ == "__main__":
    main()

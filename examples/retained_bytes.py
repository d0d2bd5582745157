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
import vit
from torch import Tensor, nn

from rad_kernels import Sketch, convert, memory
from rad_kernels.demo.result import environment

BATCH = 8


@dataclass(frozen=True)
class Model:
    """make: the network; example: input and target; loss: as in its training."""

    name: str
    make: Callable[[], nn.Module]
    example: Callable[[], tuple[Tensor, Tensor]]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]


def _images() -> tuple[Tensor, Tensor]:
    return torch.rand(BATCH, 3, 32, 32), torch.arange(BATCH)


def _tokens() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(65, (BATCH, gpt.LENGTH + 1))
    return tokens[:, :-1], tokens[:, 1:]


MODELS = (
    Model("ResNet-18, 32x32", lambda: resnet.ResNet(32), _images, resnet.loss),
    Model("ViT, 6 blocks of 128", lambda: vit.ViT(128, 6), _images, vit.loss),
    Model("GPT, 6 blocks of 128", lambda: gpt.GPT(65, 128, 6), _tokens, gpt.loss),
    Model("Llama, 6 blocks of 128", lambda: llama.Llama(65, 128, 6), _tokens, llama.loss),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "keep 0.1": {"sketch": Sketch(0.1)},
    "keep 0.1 in 4 bits": {"sketch": Sketch(0.1, bits=4)},
    "keep 0.1, attention again": {"sketch": Sketch(0.1), "recompute": "attention"},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(model: Model, dtype: torch.dtype, setting: dict[str, Any] | None) -> tuple[int, nn.Module]:
    """Bytes of one step, and the model after its conversion. With a head, all of it is in the model."""
    torch.manual_seed(0)
    net, (x, y) = model.make().to(dtype), model.example()
    x = x.to(dtype) if x.is_floating_point() else x
    if setting is not None:
        convert(net, **setting, example_inputs=x)
    return memory.saved_bytes(lambda: model.loss(net, x, y)).total, net


def rows() -> list[dict[str, Any]]:
    found = []
    for model in MODELS:
        for name, dtype in DTYPES.items():
            exact, _ = measure(model, dtype, None)
            found.append(_row(model, name, "exact", exact, exact))
            for label, setting in SETTINGS.items():
                if "recompute" in setting and model.loss is resnet.loss:
                    continue
                kept, _ = measure(model, dtype, setting)
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
    """Each layer below a prefix, before and after keep 0.1."""
    _, net = measure(model, torch.float32, SETTINGS["keep 0.1"])
    return [
        {
            "layer": row.name,
            "was": row.layer,
            "is": row.became or row.reason,
            "before": row.before,
            "after": row.after,
        }
        for row in net.rad_report.rows
        if row.name.startswith(prefix)
    ]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    args = parser.parse_args(argv)
    content = {
        "environment": environment(),
        "batch": BATCH,
        "rows": rows(),
        "layers": {
            m.name: layers(m, prefix) for m, prefix in ((MODELS[0], "blocks.0."), (MODELS[2], "blocks.1."))
        },
    }
    for row in content["rows"]:
        label = f"{row['model']:24} {row['dtype']:9} {row['setting']:26}"
        print(f"{label} {row['bytes']:>12,} {row['times_less']:6.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


if __name__ == "__main__":
    main()

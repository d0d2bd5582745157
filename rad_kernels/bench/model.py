"""The suite of whole models: a training step of each, converted, beside torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..convert import convert
from ..networks import conv_net
from ..sketch import Sketch, saved_nbytes
from .cases import BlockCase, block_cases
from .conv import conv_sketches
from .providers import Checkpointed
from .trial import BASELINE, COMPILED, Setting, Subject, Trial, compiled, forget_compiled, training

HEAD_WIDTH = 64
MLP_BITS = 2  # of GELU's derivative where bytes shall be those of a checkpoint


class Block(nn.Module):
    """Pre-norm attention and a GELU network, without dropout, on [batch, length, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (part.unflatten(-1, (-1, HEAD_WIDTH)) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k, v = (part.transpose(1, 2) for part in heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


@dataclass(frozen=True)
class ModelCase:
    """make: the model; inputs: shape of its input; checkpointed: compare with checkpointing the whole."""

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    checkpointed: bool = False

    def __str__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.inputs))}"


def model_cases(device: torch.device, quick: bool) -> list[ModelCase]:
    return [
        ModelCase("convnet", conv_net, (8 if quick else 150, 3, 32, 32)),
        *(model_case for case in block_cases(device, quick) for model_case in transformer_cases(case)),
    ]


def transformer_cases(case: BlockCase) -> list[ModelCase]:
    """A block, and its GELU network alone: what checkpointing is compared on."""
    shape = (case.batch, case.length, case.width)
    return [
        ModelCase("block", lambda: Block(case.width), shape),
        ModelCase("mlp", lambda: mlp(case.width), shape, checkpointed=True),
    ]


def model(setting: Setting, cases: Sequence[ModelCase] | None = None) -> Iterator[Trial]:
    """Forward and backward of a model, of which convert has swapped every layer that it can."""
    for case in cases or model_cases(setting.device, setting.quick):
        yield Trial("model", str(case), _subjects(case, setting))


def _subjects(case: ModelCase, setting: Setting) -> dict[str, Subject]:
    exact = case.make().to(setting.device, setting.dtype)
    x = setting.randn(*case.inputs)
    if case.name != "convnet":
        x.requires_grad_()
    dy = torch.randn_like(exact(x))
    subjects: dict[str, Subject] = {}

    def add(name: str, module: nn.Module, compiling: bool = False) -> None:
        run = compiled(module) if compiling else module
        subjects[name] = training(run, x, dy, list(module.parameters()), None)

    add(BASELINE, exact)
    chosen = setting.sketches if case.name != "convnet" else conv_sketches(setting.sketches)
    converted = {str(sketch): _converted(exact, sketch) for sketch in chosen}
    if case.checkpointed and (fitting := fitting_mlp(case.inputs, setting.dtype)):
        converted[fitting_name(case.inputs, setting.dtype)] = _converted(exact, fitting, MLP_BITS)
    for name, module in converted.items():
        add(name, module)
    if case.checkpointed:
        add("checkpoint", Checkpointed(exact))
    if setting.peers:
        forget_compiled()
        first = str(chosen[0])
        add(COMPILED, exact, compiling=True)
        add(f"{first} {COMPILED}", converted[first], compiling=True)
    return subjects


def _converted(exact: nn.Module, sketch: Sketch, act_bits: int = 4) -> nn.Module:
    """A copy. Layers go by name, so that the last Linear, here no head before a loss, is converted too."""
    copy = deepcopy(exact)
    layers = {name for name, layer in copy.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    convert(copy, dict.fromkeys(layers, sketch), act_bits=act_bits)
    return copy


def fitting_mlp(inputs: Sequence[int], dtype: torch.dtype) -> Sketch | None:
    """``rows`` with the largest keep, in hundredths, at which both packs and GELU's codes of MLP_BITS take no
    more than the input that a checkpoint keeps; None if there is none."""
    *rows, width = inputs
    count = torch.Size(rows).numel()
    allowed = count * width * dtype.itemsize
    codes = ops.derivative_nbytes(4 * count * width, MLP_BITS)
    for percent in range(99, 0, -1):
        sketch = Sketch(percent / 100)
        packs = sum(saved_nbytes(count, features, dtype, sketch) for features in (width, 4 * width))
        if packs + codes <= allowed:
            return sketch
    return None


def fitting_name(inputs: Sequence[int], dtype: torch.dtype) -> str:
    return f"{fitting_mlp(inputs, dtype)}, GELU {MLP_BITS}bit"

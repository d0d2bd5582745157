"""Real sentences that are on every machine that can run the tests: what numpy and torch say of themselves."""

from __future__ import annotations

import inspect
from types import ModuleType

import numpy as np
import torch


def sentences(module: ModuleType) -> list[str]:
    """The first paragraphs of the docstrings of a module's names, without equal ones."""
    first = (inspect.getdoc(getattr(module, name, None)) or "" for name in sorted(dir(module)))
    found = (" ".join(text.split("\n\n")[0].split()) for text in first)
    return list(dict.fromkeys(text for text in found if len(text.split()) >= 8))


def labelled(count: int) -> tuple[list[str], torch.Tensor]:
    """``count`` sentences in a seeded order, and of each whether it is torch's."""
    numpys, torchs = sentences(np), sentences(torch)
    half = count // 2
    order = torch.randperm(2 * half, generator=torch.Generator().manual_seed(0))
    texts = [*numpys[-half:], *torchs[-half:]]
    assert len(texts) == 2 * half
    return [texts[i] for i in order], (order >= half).long()

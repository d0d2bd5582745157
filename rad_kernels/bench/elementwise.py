"""The suite of what only moves memory: activations, dropout, normalisation and the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional, nn
from . import limits
from .cases import MatrixCase, matrix_cases
from .trial import BASELINE, COMPILED, Setting, Trial, compiled, forget_compiled, training

Operator = Callable[[Tensor], Tensor]

BYTES_OF_4_BITS = 4 / 8


def operators(case: MatrixCase, dtype: torch.dtype) -> dict[str, dict[str, tuple[Operator, float]]]:
    """Operator -> provider -> (call, bytes that it keeps for each value).

    torch's ReLU keeps its output and the others their input: written or there anyway, it only has to be read
    again, so half its bytes count.
    """
    again, shape = dtype.itemsize / 2, (case.features,)
    normalised = BYTES_OF_4_BITS + 4 / 64  # a group's origin and step
    return {
        "relu": {BASELINE: (F.relu, again), "1 bit": (functional.relu, 1 / 8)},
        "dropout": {BASELINE: (torch.nn.Dropout(0.1), 1), "seed only": (nn.Dropout(0.1), 0)},
        "gelu": {BASELINE: (F.gelu, again), "4 bit": (functional.gelu, BYTES_OF_4_BITS)},
        "silu": {BASELINE: (F.silu, again), "4 bit": (functional.silu, BYTES_OF_4_BITS)},
        "layer_norm": {
            BASELINE: (lambda x: F.layer_norm(x, shape), again),
            "4 bit": (lambda x: functional.layer_norm(x, shape, bits=4), normalised),
        },
    }


def elementwise(setting: Setting, cases: Sequence[MatrixCase] | None = None) -> Iterator[Trial]:
    """Forward and backward, against torch's."""
    for case in cases or matrix_cases(setting.device, setting.quick):
        x = setting.randn(case.rows, case.features).requires_grad_()
        dy = setting.randn(case.rows, case.features)
        for name, providers in operators(case, setting.dtype).items():
            subjects = {
                provider: training(run, x, dy, (), limits.elementwise(case, setting.dtype, kept))
                for provider, (run, kept) in providers.items()
            }
            if setting.peers:
                forget_compiled()
                run, kept = providers[BASELINE]
                work = limits.elementwise(case, setting.dtype, kept)
                subjects[COMPILED] = training(compiled(run), x, dy, (), work)
            yield Trial("elementwise", f"{name} {case}", subjects)

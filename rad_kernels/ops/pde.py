from __future__ import annotations

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import saved_nbytes
from .key import visible_key
from .salt import rank_salt

Spec = tuple[int, ...]

_ops = torch.ops.rad_kernels


def states_nbytes(batch: int, height: int, width: int, steps: int, dtype: torch.dtype, spec: Spec) -> int:
    """Bytes that are kept of the states of ``steps`` steps; an empty spec keeps nothing."""
    return saved_nbytes(batch * steps, (height - 2) * (width - 2), dtype, spec) if spec else 0


def reaction_diffusion(
    u: Tensor,
    source: Tensor,
    target: Tensor,
    clock: Tensor,
    steps: int,
    rate: float,
    dt: float,
    spec: Spec,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(last, misfit, saved)`` of the steps in csrc/contract/pde.h.

    u [batch, height, width], source [batch, modes, height, width], target [modes, height, width] and clock
    [period, modes], float32 or float64; last and misfit [batch, height, width]. ``spec`` is that of a
    ``different``, stratified sketch or of one that keeps everything; ``()`` keeps nothing.
    """
    return _ops.reaction_diffusion(
        u, source, target, clock, steps, rate, dt, spec, rank_salt(), visible_key(key, u.device)
    )


def reaction_diffusion_backward(
    dlast: Tensor,
    dmisfit: Tensor,
    u: Tensor,
    source: Tensor,
    target: Tensor,
    clock: Tensor,
    saved: Tensor,
    steps: int,
    rate: float,
    dt: float,
    spec: Spec,
) -> tuple[Tensor, Tensor]:
    """``(du, dsource)``, with u's and source's shapes, from the gradients of last and misfit."""
    return _ops.reaction_diffusion_backward(
        dlast, dmisfit, u, source, target, clock, saved, steps, rate, dt, spec
    )


@register_fake("rad_kernels::reaction_diffusion")
def _(u, source, target, clock, steps, rate, dt, spec, salt, key=None):
    batch, height, width = u.shape
    nbytes = states_nbytes(batch, height, width, steps, u.dtype, tuple(spec))
    return u.new_empty(u.shape), u.new_empty(u.shape), u.new_empty(nbytes, dtype=torch.uint8)


@register_fake("rad_kernels::reaction_diffusion_backward")
def _(dlast, dmisfit, u, source, target, clock, saved, steps, rate, dt, spec):
    return u.new_empty(u.shape), source.new_empty(source.shape)

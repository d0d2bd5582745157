from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import register_fake

from ..sketch import PLANE_ALIGN, SAMPLINGS, TRAILER_BYTES, saved_nbytes
from .key import visible_key
from .salt import rank_salt

# In the order of RnnCell in csrc/contract/rnn.h: (gates, streams of factors, of these without a known range).
CELLS = {"relu": (1, 1, 0), "tanh": (1, 1, 0), "lstm": (4, 6, 1), "gru": (3, 5, 2)}
CHUNK_ELEMENTS = 1 << 18
GROUP = 64

NEEDS_X, NEEDS_WEIGHT_IH, NEEDS_WEIGHT_HH, NEEDS_BIAS = 1, 2, 4, 8

Spec = tuple[int, ...]

_ops = torch.ops.rad_kernels


class Layer(NamedTuple):
    """What forward and backward of one recurrent layer share. Integers may be symbolic.

    ``batch_sizes`` [steps] of a packed sequence, else empty. A spec ``()`` keeps nothing of that input.
    """

    cell: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    directions: int
    batch_sizes: tuple[int, ...]
    bits: int
    spec_x: Spec
    spec_h: Spec

    @property
    def sizes(self) -> list[int]:
        return [self.steps, self.batch, self.inputs, self.hidden, self.directions]

    @property
    def chunk_steps(self) -> int:
        """Steps whose inputs are packed together; one where a pack draws features once for all its rows."""
        for spec in (self.spec_x, self.spec_h):
            if spec and spec[0] < spec[1] and SAMPLINGS[spec[2]] in ("same", "project"):
                return 1
        length = CHUNK_ELEMENTS // (self.batch * self.hidden * CELLS[self.cell][0])
        return max(1, min(self.steps, length))

    def chunk_rows(self) -> Iterator[tuple[int, int]]:
        """(how many chunks, rows of each) for the kinds of chunks that occur."""
        length = self.chunk_steps
        if self.batch_sizes:
            for begin in range(0, self.steps, length):
                yield 1, sum(self.batch_sizes[begin : begin + length])
        else:
            whole, rest = self.steps // length, self.steps % length
            yield whole, length * self.batch
            if rest > 0:
                yield 1, rest * self.batch

    @property
    def keys(self) -> int:
        """How many keys one call draws: for its factors and for each pack."""
        chunks = -(-self.steps // self.chunk_steps)
        return 1 + chunks * ((1 if self.spec_x else 0) + (self.directions if self.spec_h else 0))


def rnn_packs_nbytes(layer: Layer, features: int, dtype: torch.dtype, spec: Spec) -> int:
    """Bytes of the packs of one [steps, batch, features] input under ``spec``."""
    return sum(count * saved_nbytes(rows, features, dtype, spec) for count, rows in layer.chunk_rows())


def rnn_saved_nbytes(layer: Layer, dtype: torch.dtype) -> int:
    """Bytes of the one buffer that is kept of a layer: csrc/ops/rnn_plan.h for traced shapes."""

    def aligned(plane: int) -> int:
        return (plane + PLANE_ALIGN - 1) // PLANE_ALIGN * PLANE_ALIGN

    _, streams, ranged = CELLS[layer.cell]
    real = 8 if dtype == torch.float64 else 4
    bits = 1 if layer.cell == "relu" else layer.bits or 8 * dtype.itemsize
    if layer.batch_sizes:
        elements = [n * layer.hidden for n in layer.batch_sizes]
        codes = sum((n * bits + 63) // 64 * 8 for n in elements)
        groups = sum((n + GROUP - 1) // GROUP for n in elements)
    else:
        n = layer.batch * layer.hidden
        codes, groups = layer.steps * ((n * bits + 63) // 64 * 8), layer.steps * ((n + GROUP - 1) // GROUP)
    factors = streams * aligned(codes)
    if layer.bits:
        factors += ranged * (aligned(groups * real) + aligned(groups * 2))
    total = layer.directions * factors + TRAILER_BYTES
    if layer.spec_x:
        total += rnn_packs_nbytes(layer, layer.inputs, dtype, layer.spec_x)
    if layer.spec_h:
        total += layer.directions * rnn_packs_nbytes(layer, layer.hidden, dtype, layer.spec_h)
    return total


def rnn(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights_ih: Sequence[Tensor],
    weights_hh: Sequence[Tensor],
    biases: Sequence[Tensor],
    layer: Layer,
    sequence: bool,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer, all steps and directions: ``(y, h_n, c_n, saved)``.

    x [steps, batch, inputs], or [rows, inputs] with ``layer.batch_sizes``; h and c [directions, batch,
    hidden]; of each direction weight_ih [gates * hidden, inputs], weight_hh [gates * hidden, hidden] and, in
    ``biases``, both or no biases. y [..., directions * hidden], empty without ``sequence``; c_n is empty but
    for an lstm. ``key`` (int64 [layer.keys], x's device) fixes what is drawn.
    """
    return _ops.rnn(
        x,
        h,
        c,
        weights_ih,
        weights_hh,
        biases,
        layer.batch_sizes,
        list(CELLS).index(layer.cell),
        layer.spec_x,
        layer.spec_h,
        layer.bits,
        sequence,
        rank_salt(),
        visible_key(key, x.device, layer.keys),
    )


def rnn_backward(
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    saved: Tensor,
    x: Tensor | None,
    weights_ih: Sequence[Tensor],
    weights_hh: Sequence[Tensor],
    layer: Layer,
    needs: int,
) -> list[Tensor]:
    """``[dx, dh_0, dc_0, *(dW_ih, dW_hh, db_ih, db_hh of each direction)]``; empty where not needed.

    x where ``layer.spec_x`` is empty and dW_ih is needed; weights_ih only for dx.
    """
    return _ops.rnn_backward(
        dy,
        dh,
        dc,
        saved,
        x,
        weights_ih,
        weights_hh,
        layer.sizes,
        layer.batch_sizes,
        list(CELLS).index(layer.cell),
        layer.spec_x,
        layer.spec_h,
        layer.bits,
        needs,
    )


def draw_keys(device: torch.device, count: int) -> None:
    """Advance torch's generator exactly as an op with ``count`` keys does."""
    torch.empty(count, dtype=torch.int64, device=device).random_()


@register_fake("rad_kernels::rnn")
def _(
    x, h, c, weights_ih, weights_hh, biases, batch_sizes, cell, spec_x, spec_h, bits, sequence, salt, key=None
):
    directions, batch, hidden = h.shape
    steps = x.shape[0] if x.dim() == 3 else len(batch_sizes)
    layer = Layer(
        list(CELLS)[cell],
        steps,
        batch,
        x.shape[-1],
        hidden,
        directions,
        tuple(batch_sizes),
        bits,
        tuple(spec_x),
        tuple(spec_h),
    )
    y = x.new_empty(*x.shape[:-1], directions * hidden) if sequence else x.new_empty(0)
    c_n = x.new_empty(0) if c is None else torch.empty_like(c, memory_format=torch.contiguous_format)
    saved = x.new_empty(rnn_saved_nbytes(layer, x.dtype), dtype=torch.uint8)
    return y, torch.empty_like(h, memory_format=torch.contiguous_format), c_n, saved


@register_fake("rad_kernels::rnn_backward")
def _(dy, dh, dc, saved, x, weights_ih, weights_hh, sizes, batch_sizes, cell, spec_x, spec_h, bits, needs):
    steps, batch, inputs, hidden, directions = sizes
    like = weights_hh[0]
    gates = CELLS[list(CELLS)[cell]][0] * hidden

    def made(needed: int, *shape: int) -> Tensor:
        return like.new_empty(shape if needs & needed else (0,))

    dx = made(NEEDS_X, sum(batch_sizes), inputs) if batch_sizes else made(NEEDS_X, steps, batch, inputs)
    state = directions, batch, hidden
    result = [dx, like.new_empty(state), like.new_empty(state if list(CELLS)[cell] == "lstm" else (0,))]
    for _ in range(directions):
        result += [made(NEEDS_WEIGHT_IH, gates, inputs), made(NEEDS_WEIGHT_HH, gates, hidden)]
        result += [made(NEEDS_BIAS, gates), made(NEEDS_BIAS, gates)]
    return result

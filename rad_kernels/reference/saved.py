"""The saved buffer byte by byte, and the dense estimate behind it (docs/maths.md, the saved buffer).

Activations are float arrays, or integer arrays of bit patterns with the name of their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import dither
from .samples import (
    DRAWS,
    ROLES,
    SAMPLINGS,
    TILE,
    Spec,
    drawn,
    fixed_norms,
    kept,
    norm_drawn,
    norm_weight,
    project_scale,
    projection,
    sample,
    sampled_length,
    weights,
)
from .words import Float64s, Int64s, UInt32s, random_words

FORMAT_VERSION = 1
PLANE_ALIGN = 128
TRAILER_BYTES = 64


class Layout(NamedTuple):
    """Shape of the stored values, and byte offsets of the planes."""

    lines: int
    stored: int  # values of a line, over all tiles
    tile: int  # values of a line in one tile; the last tile may be narrower
    lo: int
    step: int
    indices: int
    weights: int
    trailer: int
    nbytes: int


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def line_bytes(values: int, itemsize: int, bits: int) -> int:
    """Of one stored line: codes fill whole 32-bit words."""
    return _up(values * bits, 32) // 8 if bits else values * itemsize


def saved_layout(spec: Spec, itemsize: int, rows: int, features: int) -> Layout:
    """Where things lie in the buffer that keeps a [rows, features] activation."""
    sampling, draw, bits = SAMPLINGS[spec[2]], DRAWS[spec[3]], spec[4]
    lines, stored = rows, features
    if sampling in ("rows", "tile_rows"):
        lines = kept(rows, spec)
    else:
        stored = kept(features, spec)
    tile = TILE if sampling == "tile_rows" else max(stored, 1)
    full, rest = divmod(stored, tile)
    values = lines * (full * line_bytes(tile, itemsize, bits) + line_bytes(rest, itemsize, bits))
    groups = lines * (full * -(-tile // dither.GROUP) + -(-rest // dither.GROUP)) if bits else 0
    listed = lines if draw == "norm" else 0
    offsets = [0]
    for plane in (values, groups * itemsize, groups * 2, listed * 8, listed * 4):
        offsets.append(offsets[-1] + _up(plane, PLANE_ALIGN))
    return Layout._make((lines, stored, tile, *offsets[1:], offsets[-1] + TRAILER_BYTES))


def real_values(x: NDArray, dtype: str | None = None) -> NDArray[Any]:
    """x as the numbers that kernels compute with: float64 for fp64, float32 for all others."""
    if x.dtype.kind == "f":
        return x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    pattern = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")
    if dtype == "bfloat16":
        return (pattern.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"bit patterns need the name of their dtype, got {dtype!r}")
    return real_values(pattern.view(dtype))


def _narrowed(values: NDArray[Any], x: NDArray, dtype: str | None) -> NDArray[Any]:
    """Numbers that x's dtype holds exactly, as its bit patterns."""
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(x.dtype if x.dtype.kind == "f" else dtype)


class Places(NamedTuple):
    """Of each stored value [lines, stored]: where it came from and its weight; all broadcast."""

    row: Int64s
    column: Int64s
    weight: NDArray[Any]


def _places(x: NDArray, spec: Spec, key: int, salt: int, dtype: str | None) -> Places:
    sampling, draw = SAMPLINGS[spec[2]], DRAWS[spec[3]]
    rows, features = np.arange(x.shape[0])[:, None], np.arange(x.shape[1])[None]
    n = sampled_length(spec, *x.shape)
    k = kept(n, spec)
    if draw == "norm":
        fixed = fixed_norms(real_values(x, dtype))
        index = norm_drawn(fixed, k, key, salt)
        return Places(index[:, None], features, norm_weight(fixed, k)[index][:, None].astype(np.float64))
    weight = weights(draw, n, k)
    if sampling == "rows":
        return Places(drawn(spec, n, key, salt)[:, None], features, weight[:, None])
    if sampling == "tile_rows":
        tiles = drawn(spec, n, key, salt, np.arange(-(-x.shape[1] // TILE)))  # [tiles, k]
        return Places(tiles.T[:, features[0] // TILE], features, weight[:, None])
    line = rows[:, 0] if sampling == "different" else 0
    return Places(rows, np.atleast_2d(sample(spec, n, key, salt, line)), weight[None])


def stored_values(x: NDArray, spec: Spec, key: int, salt: int = 0, dtype: str | None = None) -> NDArray:
    """[lines, stored]: what is stored of x, before it is coded. Projections in float64, of float arrays."""
    if SAMPLINGS[spec[2]] == "project":
        k = kept(x.shape[1], spec)
        return x.astype(np.float64) @ projection(x.shape[1], spec, key, salt) * project_scale(k)
    row, column, _ = _places(x, spec, key, salt, dtype)
    return x[row, column]


class Codes(NamedTuple):
    """One group of every line of one tile."""

    columns: slice  # of the stored values
    codes: Int64s  # [lines, width]
    lo: NDArray[Any]  # [lines]
    step: NDArray[np.float32]
    noise: UInt32s


def _coded(values: NDArray[Any], spec: Spec, key: int, salt: int, bf16_lo: bool = False) -> Iterator[Codes]:
    """Groups in the order of the planes lo and step, of stored numbers [lines, stored]."""
    lines, stored = values.shape
    tile = TILE if SAMPLINGS[spec[2]] == "tile_rows" else max(stored, 1)
    for number, begin in enumerate(range(0, stored, tile)):
        width = min(tile, stored - begin)
        noise = dither.dither_noise(key, salt, number * lines + np.arange(lines), width)
        for at in range(0, width, dither.GROUP):
            inside = slice(at, min(at + dither.GROUP, width))
            columns = slice(begin + inside.start, begin + inside.stop)
            lo, hi = dither.group_range(values[:, columns])
            if bf16_lo:
                lo = dither.bf16_below(lo)
            step = dither.step_for(lo, hi, spec[4])
            codes = dither.encode(values[:, columns], lo, step, noise[:, inside], spec[4])
            yield Codes(columns, codes, lo, step, noise[:, inside])


def decoded_values(
    x: NDArray, spec: Spec, key: int, salt: int = 0, dtype: str | None = None, bf16_lo: bool = False
) -> NDArray[Any]:
    """[lines, stored]: the stored values as backward sees them."""
    values = real_values(stored_values(x, spec, key, salt, dtype), dtype)
    if not spec[4]:
        return values
    out = np.empty_like(values)
    for group in _coded(values, spec, key, salt, bf16_lo):
        out[:, group.columns] = dither.decode(group.codes, group.lo, group.step, group.noise)
    return out


def estimate(
    x: NDArray, spec: Spec, key: int, salt: int = 0, dtype: str | None = None, magnitude: bool = False
) -> Float64s:
    """The dense unbiased estimate [rows, features] of x, in float64.

    ``magnitude``: the same sums of absolute values, which rounding errors are relative to.
    """
    values = decoded_values(x, spec, key, salt, dtype).astype(np.float64)
    if magnitude:
        values = abs(values)
    if SAMPLINGS[spec[2]] == "project":
        k = values.shape[1]
        back = np.ones((k, x.shape[1])) if magnitude else projection(x.shape[1], spec, key, salt).T
        return values @ back / max(k, 1) / project_scale(k)
    row, column, weight = _places(x, spec, key, salt, dtype)
    out = np.zeros(x.shape)
    np.add.at(out, (row, column), values * weight)
    return out


def _code_bytes(codes: Int64s, bits: int) -> NDArray[np.uint8]:
    """[lines, bytes]: codes [lines, width] from the low end of each byte on, filled up to 32-bit words."""
    ones = (codes[..., None] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(codes), -1)
    padded = np.pad(ones, ((0, 0), (0, -ones.shape[1] % 32)))
    return np.packbits(padded, axis=-1, bitorder="little")


def _tiles(stored: NDArray, layout: Layout) -> list[NDArray]:
    return [stored[:, at : at + layout.tile] for at in range(0, layout.stored, layout.tile)]


def pack(
    x: NDArray, spec: Spec, key: int, salt: int = 0, dtype: str | None = None, bf16_lo: bool = False
) -> NDArray[np.uint8]:
    """The saved buffer of x [rows, features]; bytes between planes are zero here and undefined elsewhere.
    ``bf16_lo``: the least values are kept in bf16, as those of normalised values are."""
    layout = saved_layout(spec, 2 if bf16_lo else x.dtype.itemsize, *x.shape)
    out = np.zeros(layout.nbytes, np.uint8)

    def write(offset: int, plane: NDArray) -> None:
        flat = np.ascontiguousarray(plane).reshape(-1).view(np.uint8)
        out[offset : offset + flat.size] = flat

    stored = stored_values(x, spec, key, salt, dtype).astype(x.dtype)
    tiles = _tiles(stored, layout)
    if spec[4] and stored.size:
        groups = list(_coded(real_values(stored, dtype), spec, key, salt, bf16_lo))
        lo = np.concatenate([np.where(np.isnan(g.step), 0, g.lo).astype(g.lo.dtype) for g in groups])
        write(
            layout.lo, _narrowed(lo.astype(np.float32), x, "bfloat16") if bf16_lo else _narrowed(lo, x, dtype)
        )
        steps = np.concatenate([g.step for g in groups])
        write(layout.step, (steps.view(np.uint32) >> np.uint32(16)).astype(np.uint16))
        codes = np.concatenate([g.codes for g in groups], axis=1)
        tiles = [
            _code_bytes(codes[:, at : at + layout.tile], spec[4])
            for at in range(0, layout.stored, layout.tile)
        ]
    if tiles:
        write(0, np.concatenate([tile.reshape(-1) for tile in tiles]))
    if DRAWS[spec[3]] == "norm" and layout.lines:
        places = _places(x, spec, key, salt, dtype)
        write(layout.indices, places.row[:, 0].astype("<i8"))
        write(layout.weights, places.weight[:, 0].astype("<f4"))
    write(layout.trailer, np.array([key, salt, FORMAT_VERSION, 0, 0, 0, 0, 0], "<u8"))
    return out


def dropout_words(n: int, key: int, salt: int = 0) -> UInt32s:
    """[n]: an element, in memory order, is dropped when its word is below the threshold."""
    return random_words(key, salt, ROLES["dropout"], 0, np.arange(-(-n // 4))).reshape(-1)[:n]

"""The sampler, the saved buffer and the dense estimate once more, in numpy: the twin that tests compare with.

Written from docs/maths.md, not from csrc/, and vectorised over keys, so that tests can search millions of
them. Nothing in the package imports it. ``spec`` is ``Sketch.spec``: ``(num, den, sampling, draw)``. Random
words, keys and salts are unsigned integers; indices are int64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Spec = tuple[int, ...]
UInt32s = NDArray[np.uint32]
UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

SAMPLINGS = ("rows", "same", "different")
DRAWS = ("stratified", "with_replacement")
ROLES = {"rows": 1, "same": 2, "different": 2}  # the stream from which each sampling draws

FORMAT_VERSION = 1
PLANE_ALIGN = 128
TRAILER_BYTES = 64

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_BLOCK = 8192  # Philox calls whose intermediate words stay in the cache


def _philox(x: list[UInt32s], key: list[UInt32s]) -> list[UInt32s]:
    for step in range(_ROUNDS):
        k0, k1 = (k + np.uint32(step * w & 0xFFFFFFFF) for k, w in zip(key, _KEY_STEPS))
        left = np.multiply(x[0], _MULTIPLIERS[0], dtype=np.uint64)
        right = np.multiply(x[2], _MULTIPLIERS[1], dtype=np.uint64)
        x = [_upper(right) ^ x[1] ^ k0, _lower(right), _upper(left) ^ x[3] ^ k1, _lower(left)]
    return x


def _lower(word: UInt64s) -> UInt32s:
    return word.astype(np.uint32)


def _upper(word: UInt64s) -> UInt32s:
    return (word >> _HALF).astype(np.uint32)


def philox4x32(counter: ArrayLike, key: ArrayLike) -> UInt32s:
    """Philox4x32-10 (Salmon et al., SC 2011, section 3.3) of ``counter`` [..., 4] under ``key`` [..., 2]."""
    counter, key = np.asarray(counter, np.uint32), np.asarray(key, np.uint32)
    x = _philox([counter[..., i] for i in range(4)], [key[..., i] for i in range(2)])
    return np.stack(x, axis=-1)


def random_words(key: ArrayLike, salt: ArrayLike, role: int, outer: ArrayLike, inner: ArrayLike) -> UInt32s:
    """The four words [..., 4] of Philox call ``inner`` of line ``outer``; all arguments broadcast."""
    wide = [np.asarray(v, np.uint64) for v in (key, salt, outer, inner)]
    shape = np.broadcast_shapes(*(v.shape for v in wide))
    flat = [np.broadcast_to(v, shape).reshape(-1) for v in wide]
    out = np.empty((flat[0].size, 4), np.uint32)
    for start in range(0, out.shape[0], _BLOCK):
        k, s, o, i = (v[start : start + _BLOCK] for v in flat)
        tops = np.uint32(role << 24) + (_upper(o) << np.uint32(12)) + _upper(i)
        words = _philox([_lower(i), _lower(o), tops, _lower(s)], [_lower(k), _upper(k)])
        for column, word in enumerate(words):
            out[start : start + _BLOCK, column] = word
    return out.reshape(*shape, 4)


def mulhi64(word: ArrayLike, n: ArrayLike) -> Int64s:
    """``floor(word * n / 2^64)``, exactly, for any 64-bit word and n below 2^63."""
    word, n = np.asarray(word, np.uint64), np.asarray(n, np.uint64)
    high, low = word >> _HALF, word & _LOW
    if n.max(initial=0) <= _LOW:  # floor(floor(x / 2^32) / 2^32) = floor(x / 2^64)
        return (high * n + (low * n >> _HALF) >> _HALF).astype(np.int64)
    n_high, n_low = n >> _HALF, n & _LOW
    middle = high * n_low + (low * n_low >> _HALF)
    carry = low * n_high + (middle & _LOW) >> _HALF
    return (high * n_high + (middle >> _HALF) + carry).astype(np.int64)


def kept(n: int, spec: Spec) -> int:
    """``ceil(n * keep)`` for the rational ``keep = num / den``."""
    num, den = spec[:2]
    return -(-n * num // den)


def strata(n: int, k: int) -> tuple[Int64s, Int64s]:
    """``(begin, length)`` [k] of k consecutive strata of [0, n), the longer ones first."""
    size, longer = divmod(n, max(k, 1))
    length = size + (np.arange(k) < longer)
    return np.cumsum(length) - length, length


def index_ranges(draw: str, n: int, k: int) -> tuple[Int64s, Int64s]:
    """``(first, count)`` [k]: number i of a sample is uniform on [first_i, first_i + count_i)."""
    if draw == "stratified":
        return strata(n, k)
    if draw == "with_replacement":
        return np.zeros(k, np.int64), np.full(k, n, np.int64)
    raise NotImplementedError(f"no twin of draw {draw!r}")


def weights(draw: str, n: int, k: int) -> Float64s:
    """[k]: what each kept entry is multiplied by."""
    if draw == "with_replacement":
        return np.full(k, n / max(k, 1))
    return index_ranges(draw, n, k)[1].astype(np.float64)


def drawn(spec: Spec, n: int, key: ArrayLike, salt: ArrayLike = 0, line: ArrayLike = 0) -> Int64s:
    """The sample [..., k] of k = kept(n) out of n in the order of drawing; key, salt and line broadcast.

    ``line`` is the row number under ``different`` and 0 otherwise.
    """
    sampling, draw = SAMPLINGS[spec[2]], DRAWS[spec[3]]
    k = kept(n, spec)
    calls = np.arange((k + 1) // 2)
    key, salt, line = (np.asarray(v, np.uint64)[..., None] for v in (key, salt, line))
    words = random_words(key, salt, ROLES[sampling], line, calls).astype(np.uint64)
    numbers = words[..., 0::2] + (words[..., 1::2] << _HALF)  # [..., calls, 2]
    in_order = numbers.reshape(*numbers.shape[:-2], 2 * calls.size)[..., :k]
    first, count = index_ranges(draw, n, k)
    return first + mulhi64(in_order, count)


def sample(spec: Spec, n: int, key: ArrayLike, salt: ArrayLike = 0, line: ArrayLike = 0) -> Int64s:
    """``drawn`` in the order of the saved planes: ascending under ``same``."""
    index = drawn(spec, n, key, salt, line)
    return np.sort(index, axis=-1) if SAMPLINGS[spec[2]] == "same" else index


def sampled_length(spec: Spec, rows: int, features: int) -> int:
    """What indices count: rows under ``rows``, features otherwise."""
    return rows if SAMPLINGS[spec[2]] == "rows" else features


def multipliers(index: Int64s, weight: Float64s, n: int) -> Float64s:
    """z [..., n] of samples ``index`` [..., k]: each entry's summed ``weight`` [k], 0 where it is not kept.

    The estimate of anything that is a sum over entries is that sum with each term times its z; E z = 1.
    """
    z = np.zeros((*index.shape[:-1], n))
    lines = z.reshape(-1, n)
    for w, column in zip(weight, index.reshape(-1, index.shape[-1]).T):
        lines[np.arange(lines.shape[0]), column] += w
    return z


def estimate(x: ArrayLike, spec: Spec, key: int, salt: int = 0) -> Float64s:
    """The dense unbiased estimate [rows, features] of x, in float64."""
    x = np.asarray(x, np.float64)
    sampling, n = SAMPLINGS[spec[2]], sampled_length(spec, *x.shape)
    line = np.arange(x.shape[0]) if sampling == "different" else 0
    weight = weights(DRAWS[spec[3]], n, kept(n, spec))
    z = multipliers(drawn(spec, n, key, salt, line), weight, n)
    return x * (z[:, None] if sampling == "rows" else z)


class Layout(NamedTuple):
    """Shape of the stored values, and byte offsets."""

    stored_rows: int
    stored_cols: int
    trailer: int
    nbytes: int


def saved_layout(spec: Spec, itemsize: int, rows: int, features: int) -> Layout:
    """Where things lie in the buffer that keeps a [rows, features] activation."""
    if SAMPLINGS[spec[2]] == "rows":
        rows = kept(rows, spec)
    else:
        features = kept(features, spec)
    trailer = -(-rows * features * itemsize // PLANE_ALIGN) * PLANE_ALIGN
    return Layout(rows, features, trailer, trailer + TRAILER_BYTES)


def stored_values(x: NDArray, spec: Spec, key: int, salt: int = 0) -> NDArray:
    """The values plane: the kept entries of x [rows, features], of whatever dtype."""
    sampling = SAMPLINGS[spec[2]]
    n = sampled_length(spec, *x.shape)
    if sampling == "different":
        return np.take_along_axis(x, sample(spec, n, key, salt, np.arange(x.shape[0])), axis=1)
    return np.take(x, sample(spec, n, key, salt), axis=0 if sampling == "rows" else 1)


def pack(x: NDArray, spec: Spec, key: int, salt: int = 0) -> NDArray[np.uint8]:
    """The saved buffer of x [rows, features], padding zero."""
    layout = saved_layout(spec, x.dtype.itemsize, *x.shape)
    out = np.zeros(layout.nbytes, np.uint8)
    values = np.ascontiguousarray(stored_values(x, spec, key, salt)).view(np.uint8).reshape(-1)
    out[: values.size] = values
    trailer = np.array([key, salt, FORMAT_VERSION, 0, 0, 0, 0, 0], "<u8")
    out[layout.trailer :] = trailer.view(np.uint8)
    return out

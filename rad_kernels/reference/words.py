"""Random words and the map from a word to an index (docs/maths.md, index map and random words)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

UInt32s = NDArray[np.uint32]
UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

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


def word64(words: UInt32s, half: int) -> UInt64s:
    """The 64-bit number ``half`` (0 or 1) of each call in ``words`` [..., 4]."""
    return words[..., 2 * half] + (words[..., 2 * half + 1].astype(np.uint64) << _HALF)

"""Which entries are kept and their weights (docs/maths.md: strata, rotation, norm draw, projection)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .words import Float64s, Int64s, UInt32s, UInt64s, mulhi64, random_words, word64

Spec = tuple[int, ...]

SAMPLINGS = ("rows", "same", "different", "tile_rows", "project")
DRAWS = ("stratified", "with_replacement", "without_replacement", "norm", "hadamard")
# The streams. A sampling draws from its own; with permutations all draw from that of permutations.
ROLES = {"rows": 1, "tile_rows": 1, "same": 2, "different": 2,
         "dither": 3, "signs": 4, "permutation": 5, "dropout": 6, "derivative": 7,
         "probability": 16}  # fmt: skip

TILE = 128  # features of one tile of `tile_rows`
NORM_UNITS = 1 << 30  # of the largest norm
UNIFORM_SHARE = 10  # one draw in ten ignores the norms
FEISTEL_ROUNDS = 12


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
    """``(first, count)`` [k]: number i is uniform on [first_i, first_i + count_i) whatever the others are."""
    if draw == "stratified":
        return strata(n, k)
    if draw == "with_replacement":
        return np.zeros(k, np.int64), np.full(k, n, np.int64)
    raise ValueError(f"numbers of draw {draw!r} are not independent and uniform")


def weights(draw: str, n: int, k: int) -> Float64s:
    """[k]: what each kept entry is multiplied by; not for the norm draw, whose weights depend on norms."""
    if draw == "stratified":
        return strata(n, k)[1].astype(np.float64)
    return np.full(k, n / max(k, 1))


def _mix(x: UInt32s) -> UInt32s:
    for multiplier, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):
        x = x * np.uint32(multiplier)
        x ^= x >> np.uint32(shift)
    return x


def _feistel(position: UInt64s, round_keys: UInt32s, half_bits: int) -> UInt64s:
    """One pass over [0, 4^half_bits): position [..., m], round keys [..., 1, 12]."""
    mask, shift = np.uint32((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = (position >> shift).astype(np.uint32), position.astype(np.uint32) & mask
    for number in range(FEISTEL_ROUNDS):
        left, right = right, left ^ (_mix(right + round_keys[..., number]) & mask)
    return left.astype(np.uint64) << shift | right


def permuted(
    position: ArrayLike, n: int, key: ArrayLike, salt: ArrayLike = 0, line: ArrayLike = 0, rotate: bool = True
) -> Int64s:
    """Where the keyed permutation of [0, n) takes ``position`` [m]: [..., m]; key, salt and line broadcast.

    ``rotate=False`` leaves out the last step, the rotation.
    """
    key, salt, line = (np.asarray(v, np.uint64)[..., None] for v in (key, salt, line))
    words = random_words(key, salt, ROLES["permutation"], line, np.arange(4))  # [..., calls, words]
    round_keys = words[..., :3, :].reshape(*words.shape[:-2], 1, FEISTEL_ROUNDS)
    rotation = mulhi64(word64(words[..., 3, :], 0), n)[..., None]
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    start = np.asarray(position, np.uint64)
    at = np.broadcast_to(start, (*words.shape[:-2], start.size)).copy()
    outside = np.ones(at.shape, bool)  # no matter where they are, all take a first pass
    spread = np.broadcast_to(round_keys, (*at.shape, FEISTEL_ROUNDS))
    while outside.any():
        at[outside] = _feistel(at[outside], spread[outside], half_bits)
        outside = at >= np.uint64(n)
    return (at.astype(np.int64) + rotation * rotate) % max(n, 1)


def drawn(spec: Spec, n: int, key: ArrayLike, salt: ArrayLike = 0, line: ArrayLike = 0) -> Int64s:
    """The sample [..., k] of k = kept(n) out of n in the order of drawing; key, salt and line broadcast.

    ``line`` is the row number under ``different``, the tile under ``tile_rows`` and 0 otherwise. Not for the
    norm draw (``norm_drawn``).
    """
    sampling, draw = SAMPLINGS[spec[2]], DRAWS[spec[3]]
    k = kept(n, spec)
    if draw == "without_replacement":
        return permuted(np.arange(k), n, key, salt, line)
    key, salt, line = (np.asarray(v, np.uint64)[..., None] for v in (key, salt, line))
    words = random_words(key, salt, ROLES[sampling], line, np.arange((k + 1) // 2))
    numbers = np.stack([word64(words, 0), word64(words, 1)], -1)  # [..., calls, 2]
    in_order = numbers.reshape(*numbers.shape[:-2], 2 * numbers.shape[-2])[..., :k]
    first, count = index_ranges(draw, n, k)
    return first + mulhi64(in_order, count)


def sample(spec: Spec, n: int, key: ArrayLike, salt: ArrayLike = 0, line: ArrayLike = 0) -> Int64s:
    """``drawn`` in the order of the saved planes: ascending under ``same``."""
    index = drawn(spec, n, key, salt, line)
    return np.sort(index, axis=-1) if SAMPLINGS[spec[2]] == "same" else index


def sampled_length(spec: Spec, rows: int, features: int) -> int:
    """What indices count: rows under ``rows`` and ``tile_rows``, features otherwise."""
    return rows if SAMPLINGS[spec[2]] in ("rows", "tile_rows") else features


def multipliers(index: Int64s, weight: Float64s, n: int) -> Float64s:
    """z [..., n] of samples ``index`` [..., k]: each entry's summed ``weight`` [k], 0 where it is not kept.

    The estimate of anything that is a sum over entries is that sum with each term times its z; E z = 1.
    """
    z = np.zeros((*index.shape[:-1], n))
    lines = z.reshape(-1, n)
    for w, column in zip(weight, index.reshape(-1, index.shape[-1]).T):
        lines[np.arange(lines.shape[0]), column] += w
    return z


# ---- norm draw ----


def fixed_norms(x: ArrayLike) -> UInt64s:
    """[rows]: norms of x's rows relative to the largest one, in fixed point; all 0 where they say nothing."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(np.asarray(x, np.float64))
        sums = np.add.accumulate(squares, axis=1)[:, -1] if squares.shape[1] else np.zeros(len(squares))
        norms = np.sqrt(sums).astype(np.float32)
    largest = norms.max(initial=0)
    if not (largest > 0 and np.isfinite(largest)):
        return np.zeros(len(norms), np.uint64)
    return np.floor(norms.astype(np.float64) / np.float64(largest) * NORM_UNITS).astype(np.uint64)


def norm_drawn(fixed: UInt64s, k: int, key: ArrayLike, salt: ArrayLike = 0) -> Int64s:
    """[..., k] rows drawn with replacement by their fixed-point norms."""
    key, salt = (np.asarray(v, np.uint64)[..., None] for v in (key, salt))
    words = random_words(key, salt, ROLES["rows"], 0, np.arange(k))
    choice, place = word64(words, 0), word64(words, 1)
    prefix = np.cumsum(fixed)
    uniform = mulhi64(place, len(fixed))
    if not len(fixed) or prefix[-1] == 0:
        return uniform
    target = mulhi64(place, prefix[-1]).astype(np.uint64)
    by_norm = np.searchsorted(prefix, target, side="right")
    return np.where(mulhi64(choice, UNIFORM_SHARE) == 0, uniform, by_norm)


def norm_probability(fixed: UInt64s) -> Float64s:
    """[rows]: with which probability one draw takes each row."""
    rows, total = len(fixed), fixed.sum()
    uniform = np.full(rows, 1 / max(rows, 1))
    return uniform if total == 0 else 0.9 * (fixed / np.float64(total)) + 0.1 * uniform


def norm_weight(fixed: UInt64s, k: int) -> NDArray[np.float32]:
    """[rows]: 1 / (k p), as the buffer keeps it."""
    return (1 / (max(k, 1) * norm_probability(fixed))).astype(np.float32)


# ---- projection ----


def signs(features: int, k: int, key: ArrayLike, salt: ArrayLike = 0) -> NDArray[np.int8]:
    """R [..., features, k] of +1 and -1."""
    key, salt = (np.asarray(v, np.uint64)[..., None, None] for v in (key, salt))
    calls = np.arange(-(-k // 128))
    words = random_words(key, salt, ROLES["signs"], np.arange(features)[:, None], calls)  # [..., f, calls, 4]
    as_bytes = words.reshape(*words.shape[:-2], 4 * calls.size).astype("<u4").view(np.uint8)
    bits = np.unpackbits(as_bytes, axis=-1, bitorder="little")[..., :k]
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


def hadamard_order(features: int) -> int:
    """The least power of two that is at least ``features``."""
    return 1 << (max(features, 1) - 1).bit_length()


def hadamard_drawn(features: int, k: int, key: ArrayLike, salt: ArrayLike = 0) -> tuple[Int64s, Int64s]:
    """(signs [..., features] of +1 and -1, columns [..., k] of the Hadamard matrix, in stored order)."""
    key = np.asarray(key, np.uint64)
    first_line = signs(1, features, key, salt)[..., 0, :].astype(np.int64)
    return first_line, permuted(np.arange(k), hadamard_order(features), key, salt)


def hadamard_signs(first_line: Int64s, columns: Int64s) -> NDArray[np.int8]:
    """R [..., features, k]: row f, column c of a Hadamard matrix is -1 to the number of ones in f & c."""
    both = np.arange(first_line.shape[-1])[:, None] & columns[..., None, :]
    odd = np.bitwise_count(both) % 2
    return (first_line[..., None] * (1 - 2 * odd.astype(np.int64))).astype(np.int8)


def projection(features: int, spec: Spec, key: ArrayLike, salt: ArrayLike = 0) -> NDArray[np.int8]:
    """R [..., features, k] of ``project`` with the draw of ``spec``."""
    k = kept(features, spec)
    if DRAWS[spec[3]] != "hadamard":
        return signs(features, k, key, salt)
    return hadamard_signs(*hadamard_drawn(features, k, key, salt))


def project_scale(k: int) -> float:
    """The power of two by which stored projections are scaled: 2^-floor(log4 k)."""
    return 2.0 ** -((max(k, 1).bit_length() - 1) // 2)

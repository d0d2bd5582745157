"""The sampler: Random123's words, exact index ranges, and one sample from every implementation of it."""

import math
import mmap
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from cases import BY_KEY, COMBINATIONS, DEVICES, ENTRYWISE, LINEARS

from rad_kernels import _C, Sketch, ops, reference
from rad_kernels.sketch import VALID_DRAWS

SALTS = (0, 1, 7, 2**31, 2**32 - 1)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def pack_values(x: torch.Tensor, sketch: Sketch, key: int) -> np.ndarray:
    """The stored values of a float64 activation of at most one tile of features."""
    saved = ops.pack(x, sketch.spec, torch.tensor(key, device=x.device)).cpu()
    layout = reference.saved_layout(sketch.spec, 8, x[..., 0].numel(), x.shape[-1])
    count = layout.lines * layout.stored
    return saved[: 8 * count].view(torch.float64).reshape(layout[:2]).numpy()


# ---- random words ----

# Random123 1.14, tests/kat_vectors, philox4x32 10: counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def test_known_answers_of_random123():
    vectors = [[[int(w, 16) for w in part.split()] for part in line] for line in KNOWN_ANSWERS]
    for counter, key, words in vectors:
        assert list(_C.philox4x32(counter, key)) == words
    counters, keys, words = (np.array(part) for part in zip(*vectors))
    assert np.array_equal(reference.philox4x32(counters, keys), words)


def test_words_of_random_coordinates():
    """Every field of the coordinate at its extremes and at random."""
    rng = random.Random(1)
    widths = 63, 32, 7, 44, 44  # bits of key, salt, role, outer, inner
    for _ in range(3000):
        fields = (rng.choice([0, 2**w - 1, rng.getrandbits(w), 2 ** rng.randrange(w)]) for w in widths)
        key, salt, role, outer, inner = fields
        expected = reference.random_words(key, salt, role, outer, inner)
        assert np.array_equal(_C.random_words(key, salt, role, outer, inner), expected)


def test_no_two_coordinates_share_their_words():
    """Flipping any one bit of any field leads elsewhere: fields do not overlap in the counter."""
    start = {"key": 0x1234_5678_9ABC, "salt": 5, "role": 1, "outer": 3, "inner": 2}
    widths = {"key": 63, "salt": 32, "role": 7, "outer": 44, "inner": 44}
    flipped = [start | {name: start[name] ^ 1 << bit} for name in widths for bit in range(widths[name])]
    words = {tuple(_C.random_words(**point)) for point in [start, *flipped]}
    assert len(words) == 1 + sum(widths.values())


# ---- index map ----

LENGTHS = (1, 2, 3, 5, 7, 10, 64, 1000, 4097, 50257, 10**6, 10**7, 2**31 - 1, 2**31, 2**31 + 1,
           2**32 - 1, 2**32, 2**32 + 1, 3 * 10**9, 2**40 + 3, 2**43 - 1)  # fmt: skip


def check_counts(n: int, index_of: Callable[[int], int]) -> None:
    """Of the 2^64 words, each of n indices gets floor or ceil of 2^64 / n: both ends of the runs of many."""
    rng = random.Random(n)
    for i in {0, n // 2, n - 1, *(rng.randrange(n) for _ in range(50))}:
        begin, end = (-(-j * 2**64 // n) for j in (i, i + 1))
        assert end - begin in (2**64 // n, -(-(2**64) // n))
        assert index_of(begin) == index_of(end - 1) == i


@pytest.mark.parametrize("n", LENGTHS)
def test_every_index_gets_its_share_of_words(n):
    check_counts(n, lambda word: int(reference.mulhi64(word, n)))
    draw = reference.DRAWS.index("with_replacement")
    for i in (0, 1, 2**33 + 1):
        check_counts(n, lambda word, i=i: _C.sampled_index(draw, n, 10**6, i, word))


@pytest.mark.parametrize("n", LENGTHS)
def test_every_index_of_a_stratum_gets_its_share_of_words(n):
    draw = reference.DRAWS.index("stratified")
    for k in {1, n // 3, n - 1, n} - {0}:
        size, longer = divmod(n, k)
        for i in {i for i in (0, longer - 1, longer, k - 1) if 0 <= i < k}:
            first, length = i * size + min(i, longer), size + (i < longer)
            index_of = partial(_C.sampled_index, draw, n, k, i)
            check_counts(length, lambda word, first=first, index_of=index_of: index_of(word) - first)


def test_products_of_64_bits_are_exact():
    rng = random.Random(2)
    for width in (63, 32, 20):
        words = [2**64 - 1 - rng.getrandbits(rng.randrange(65)) for _ in range(3000)]
        lengths = [2**width - 1 - rng.getrandbits(rng.randrange(width + 1)) for _ in words]
        exact = [word * n >> 64 for word, n in zip(words, lengths)]
        assert reference.mulhi64(np.array(words, np.uint64), np.array(lengths, np.uint64)).tolist() == exact


def test_strata_cut_every_length():
    """k parts that tile [0, n) in order, longest first, lengths at most one apart; in C++ and in numpy."""
    stratified = reference.DRAWS.index("stratified")
    for n in range(1, 50):
        for k in range(1, n + 1):
            begin, length = reference.strata(n, k)
            first = [_C.sampled_index(stratified, n, k, i, 0) for i in range(k)]
            last = [_C.sampled_index(stratified, n, k, i, 2**64 - 1) for i in range(k)]
            assert first == begin.tolist() and last == (begin + length - 1).tolist()
            assert first[0] == 0 and last[-1] == n - 1
            assert all(b == a + 1 for a, b in zip(last, first[1:]))
            assert all(a - 1 <= b <= a for a, b in pairwise(length.tolist())) and length[0] - length[-1] <= 1


def test_how_many_are_kept():
    """ceil(n * keep) of the rational keep, never of a rounded product: .07 of 100 is 7."""
    assert Sketch(0.07).kept(100) == 7
    rng = random.Random(3)
    for _ in range(3000):
        keep = Fraction(rng.randint(1, 999), 1000)
        n = rng.choice([rng.randrange(1, 400), 1000 * rng.randrange(1, 10**6), rng.randrange(2**43)])
        sketch = Sketch(float(keep))
        assert sketch.kept(n) == reference.kept(n, sketch.spec) == math.ceil(n * keep)


# ---- one sample from every implementation ----


def check_sample(sketch: Sketch, n: int, key: int, device: str, lines: int = 3) -> None:
    """The stored entries of a matrix that holds positions are those that numpy names."""
    by_row = sketch.sampling in ("rows", "tile_rows")
    rows, features = (n, 1) if by_row else (lines, n)
    line = np.arange(rows) if sketch.sampling == "different" else 0
    index = reference.sample(sketch.spec, n, key, ops.rank_salt(), line)
    expected = index[:, None] if by_row else index + features * np.arange(rows)[:, None]
    x = torch.arange(rows * features, dtype=torch.float64, device=device).reshape(rows, features)
    assert np.array_equal(pack_values(x, sketch, key), expected), (sketch, n, key)


@pytest.mark.parametrize(("sampling", "draw"), BY_KEY)
def test_samples_are_numpys(sampling, draw, device, monkeypatch):
    rng = random.Random(sampling + draw)
    for n in (*range(1, 40), 63, 64, 65, 255, 256, 257, 511, 513, 1024, 4099, 20011):
        for k in {1, 2, n // 3, n // 2, n - 1, n, rng.randint(1, n)} - {0}:
            monkeypatch.setattr(ops.salt, "resolved", rng.choice([*SALTS, rng.getrandbits(32)]))
            key = rng.choice([0, 1, 2**32, 2**63 - 1, *(rng.getrandbits(63) for _ in range(8))])
            check_sample(Sketch(min(k, n) / n, sampling, draw), n, key, device)


@pytest.mark.parametrize(("sampling", "draw"), BY_KEY)
def test_samples_of_ten_million(sampling, draw, device):
    check_sample(Sketch(0.0123, sampling, draw), 10**7, 2**62 + 99, device, lines=1)


@pytest.mark.parametrize("draw", VALID_DRAWS["different"])
def test_row_numbers_of_different_reach_far(draw, device):
    """A row's sample depends on its number alone: two million rows at once, in numpy's order."""
    rows, features, key = 2_000_003, 3, 12345
    sketch = Sketch(2 / 3, "different", draw)
    x = torch.arange(features, dtype=torch.float64, device=device).expand(rows, features)
    expected = reference.sample(sketch.spec, features, key, ops.rank_salt(), np.arange(rows))
    assert np.array_equal(pack_values(x, sketch, key), expected)


DIGITS = (2**12, 2**11, 2**12)  # row numbers below 2^35: strides of 0 reach further than memory


def digit_of_row(which: int, device) -> torch.Tensor:
    """[2^35, 1]: each row holds one digit of its own number, at the memory of that digit's values alone."""
    strides = [0, 0, 0]
    strides[which] = 1
    values = torch.arange(DIGITS[which], dtype=torch.float64, device=device)
    return values.as_strided((*DIGITS, 1), (*strides, 1))


@pytest.mark.parametrize(("sampling", "draw"), [names for names in BY_KEY if "rows" in names[0]])
def test_rows_beyond_2_to_the_32(sampling, draw, device):
    """Samples of 2^35 rows, in forward and in backward: nothing on the way is a 32-bit number."""
    n, key, sketch = int(np.prod(DIGITS)), 2**61 + 17, Sketch(1e-6, sampling, draw)
    digits = [digit_of_row(which, device) for which in range(3)]
    stored = [pack_values(digit, sketch, key)[:, 0].astype(np.int64) for digit in digits]
    index = (stored[0] * DIGITS[1] + stored[1]) * DIGITS[2] + stored[2]
    expected = reference.sample(sketch.spec, n, key, ops.rank_salt())
    assert len(index) == 34360 and index.max() > 2**34
    assert np.array_equal(index, expected)
    weight = reference.weights(draw, n, len(index))
    for which, digit in enumerate(digits):
        saved = ops.pack(digits[0], sketch.spec, torch.tensor(key, device=device))
        dw = ops.linear_wgrad(digit, saved, 1, sketch.spec).item()
        assert dw == pytest.approx((weight * stored[0] * stored[which]).sum(), rel=1e-12)


MAP_NORESERVE = 0x4000  # of Linux; Python names it from 3.13 on


@pytest.mark.parametrize(("sampling", "draw"), [names for names in BY_KEY if "rows" not in names[0]])
def test_features_beyond_2_to_the_32(sampling, draw):
    """One row of 2^32 + 2^28 features, in memory of which only the pages with expected entries exist."""
    n, key, sketch = 2**32 + 2**28, 77, Sketch(1e-6, sampling, draw)
    index = reference.sample(sketch.spec, n, key, ops.rank_salt())
    assert index.max() > 2**32
    memory = mmap.mmap(-1, 2 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    x = np.frombuffer(memory, np.float16)[None]
    x[0, index] = 1 + np.arange(len(index)) % 2048
    saved = ops.pack(torch.from_numpy(x), sketch.spec, torch.tensor(key))
    assert np.array_equal(saved[: 2 * len(index)].view(torch.float16).numpy(), x[0, index])


@pytest.mark.parametrize(("sampling", "draw"), ENTRYWISE)
def test_backward_uses_the_sample_of_forward(sampling, draw, device):
    """unpack is the estimate by definition, and linear_wgrad is dy^T unpack: the same entries and weights."""
    for case in LINEARS:
        generator = torch.Generator().manual_seed(case.rows)
        x = torch.randn(case.rows, case.features, dtype=torch.float64, generator=generator).to(device)
        dy = torch.randn(case.rows, case.outputs, dtype=torch.float64, generator=generator).to(device)
        for keep in (0.1, 0.34, 0.7, 1.0):
            sketch = Sketch(keep, sampling, draw)
            saved = ops.pack(x, sketch.spec, torch.tensor(99, device=device))
            dense = ops.unpack(saved, case.rows, case.features, x.dtype, sketch.spec)
            expected = reference.estimate(x.cpu().numpy(), sketch.spec, 99, ops.rank_salt())
            assert np.allclose(dense.cpu(), expected, rtol=1e-14, atol=0)  # at most a few added duplicates
            dw = ops.linear_wgrad(dy, saved, case.features, sketch.spec)
            assert torch.allclose(dw, dy.T @ dense, rtol=1e-12, atol=1e-12)


# ---- torch's generator ----


@pytest.mark.parametrize(("sampling", "draw"), COMBINATIONS)
def test_a_pack_draws_one_integer_from_torchs_generator(sampling, draw, device):
    x, sketch = torch.randn(6, 5, device=device), Sketch(0.5, sampling, draw)
    torch.manual_seed(11)
    expected = torch.empty(1, dtype=torch.int64, device=device).random_()
    after = torch.rand(3, device=device)
    for draws in (lambda: ops.pack(x, sketch.spec), lambda: ops.linear(x, x, None, sketch.spec)[1]):
        torch.manual_seed(11)
        key = draws()[-64:-56].view(torch.int64)
        assert torch.equal(key, expected) and torch.equal(torch.rand(3, device=device), after)
    torch.manual_seed(11)
    ops.pack(x, sketch.spec, torch.tensor(5, device=device))  # an explicit key leaves the generator alone
    assert torch.equal(torch.empty(1, dtype=torch.int64, device=device).random_(), expected)
    torch.manual_seed(11)
    ops.draw_key(x.device)
    assert torch.equal(torch.rand(3, device=device), after)


@pytest.mark.parametrize(("sampling", "draw"), COMBINATIONS)
def test_keys_and_salts_give_other_samples(sampling, draw, device, monkeypatch):
    """32 kept of 64, two or more choices each: two samples are equal by chance in 1 of 2^32 pairs."""
    x, sketch = torch.arange(4096.0, device=device).double().reshape(64, 64), Sketch(0.5, sampling, draw)
    samples = set()
    for salt in SALTS:
        monkeypatch.setattr(ops.salt, "resolved", salt)
        samples |= {pack_values(x, sketch, key).tobytes() for key in (0, 1, 2**32, 2**62)}
    assert len(samples) == 4 * len(SALTS)


# ---- the streams, statistically ----

CELLS = 13  # a prime: no bit of a word decides alone
DEVIATION = 6.0  # standard normal: 2e-9 a table, 5e-7 for the 240 tables below, were their keys fresh


def check_independent(columns: dict[str, np.ndarray]) -> None:
    """Chi-square of every pair of columns, each uniform on CELLS values, against independence.

    Neither too uneven nor too even: the cube root of chi-square over its degrees of freedom is normal up to
    1e-3 here (Wilson and Hilferty).
    """
    freedom = CELLS**2 - 1
    for a, b in combinations(columns, 2):
        counts = np.bincount(columns[a] * CELLS + columns[b], minlength=CELLS**2)
        expected = len(columns[a]) / CELLS**2
        chi_square = np.square(counts - expected).sum() / expected
        spread = 2 / (9 * freedom)
        z = ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
        assert abs(z) <= DEVIATION, f"{a} and {b}: {z:.1f} standard deviations"


def neighbours(keys: np.ndarray) -> dict[str, np.ndarray]:
    """Draws at coordinates that differ in one thing: number, line, salt, stream or key."""
    spec = Sketch(8 / CELLS, "different", "with_replacement").spec
    rows = Sketch(1 / CELLS, "rows", "with_replacement").spec
    columns = {}
    for line in (0, 1, 2**32):
        index = reference.drawn(spec, CELLS, keys, 0, line)
        columns |= {f"line {line} number {i}": index[:, i] for i in (0, 1, 2, 7)}
    columns["salt 1"] = reference.drawn(spec, CELLS, keys, 1)[:, 0]
    columns["salt 2^31"] = reference.drawn(spec, CELLS, keys, 2**31)[:, 0]
    columns["stream of rows"] = reference.drawn(rows, CELLS, keys)[:, 0]
    columns["next key"] = reference.drawn(spec, CELLS, keys + np.uint64(1))[:, 0]
    return columns


@pytest.mark.parametrize("keys", ["random", "consecutive"])
def test_neighbouring_coordinates_are_independent(keys):
    count = 200_000
    if keys == "random":
        numbers = np.random.default_rng(4).integers(2**63, size=count, dtype=np.uint64)
    else:
        numbers = np.arange(count, dtype=np.uint64) * np.uint64(2)
    check_independent(neighbours(numbers))


def test_dependence_is_noticed():
    rng = np.random.default_rng(6)
    a, b = rng.integers(CELLS, size=(2, 200_000))
    check_independent({"a": a, "b": b})
    for planted in (a, (a + 1) % CELLS, np.where(rng.random(a.size) < 0.05, a, b), b * (CELLS - 1) // CELLS):
        with pytest.raises(AssertionError):
            check_independent({"a": a, "planted": planted})

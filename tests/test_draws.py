"""Draws without replacement, draws by norm, and projections: what is special about them (docs/maths.md:
rotation, norm draw, projection). Their expectation and variance are in test_enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from cases import DTYPES, LAYOUTS, LINEARS
from checks import ROUNDING, error_over_bound, same_bits

from rad_kernels import Sketch, functional, ops, reference
from rad_kernels.sketch import VALID_DRAWS

KEY = 0x0123_4567_89AB_CDEF
DEVIATION = 6.0  # standard normal: 2e-9 a statistic, were its keys fresh

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def random_keys(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**63, size=count, dtype=np.uint64)


# ---- without replacement

SIZES = (1, 2, 3, 4, 5, 15, 16, 17, 37, 64, 65, 255, 256, 257, 1000, 4096, 4097)


@pytest.mark.parametrize("n", SIZES)
def test_a_permutation_has_every_index_once(n):
    keys = random_keys(20, n)
    drawn = reference.permuted(np.arange(n), n, keys)
    assert np.array_equal(np.sort(drawn), np.broadcast_to(np.arange(n), drawn.shape))
    assert n < 15 or len({row.tobytes() for row in drawn}) == 20


@pytest.mark.parametrize("n", SIZES)
def test_rotations_make_inclusion_exact(n):
    """For fixed rounds, all n rotations of the first k hold every index k times, whatever the rounds are."""
    for key in random_keys(3, n):
        plain = reference.permuted(np.arange(n), n, key, 3, 8, rotate=False)
        shifted = (plain + np.arange(n)[:, None]) % n  # [rotation, position]
        for k in {1, min(2, n), n // 3, n // 2, n} - {0}:
            assert (np.bincount(shifted[:, :k].reshape(-1), minlength=n) == k).all(), (n, k)
        # The last step is such a shift, by the index that a word of its own draws.
        word = reference.word64(reference.random_words(key, 3, 5, 8, 3), 0)
        assert np.array_equal(reference.permuted(np.arange(n), n, key, 3, 8), shifted[int(word) * n >> 64])


def pair_deviation(index: np.ndarray, n: int) -> float:
    """Of samples [keys, k]: how far a pair's count is off k (k - 1) / (n (n - 1)) at most, in deviations."""
    keys, k = index.shape
    inside = np.zeros((keys, n), np.float32)
    np.put_along_axis(inside, index, 1, axis=1)
    both = (inside.T @ inside)[np.triu_indices(n, 1)].astype(np.float64)
    chance = k * (k - 1) / (n * (n - 1))
    return float((abs(both - keys * chance) / math.sqrt(keys * chance * (1 - chance))).max())


@pytest.mark.parametrize(("n", "k"), [(16, 4), (16, 8), (37, 9), (64, 6), (100, 10)])
def test_pairs_are_included_as_often_as_in_a_simple_sample(n, k):
    """200,000 keys, at most 4,950 pairs: 6 deviations are passed by chance in 1e-5 of the cases."""
    spec = Sketch(k / n, "rows", "without_replacement").spec
    index = reference.drawn(spec, n, random_keys(200_000, n))
    assert pair_deviation(index, n) <= DEVIATION


def test_stratified_pairs_are_noticed():
    """One of each stratum: no two of a stratum. And 2 % of the samples that hold neighbours only."""
    index = reference.drawn(Sketch(0.25, "rows").spec, 16, random_keys(200_000, 1))
    assert pair_deviation(index, 16) > 50
    index = reference.drawn(Sketch(0.25, "rows", "without_replacement").spec, 16, random_keys(200_000, 1))
    index[:4000] = (index[:4000, :1] + np.arange(4)) % 16
    assert pair_deviation(index, 16) > DEVIATION


def test_tiles_and_rows_draw_permutations_of_their_own():
    """Tile 0 of `tile_rows` is the sample of `rows`; other tiles, keys and salts have others."""
    spec = Sketch(0.5, "tile_rows", "without_replacement").spec
    tiles = reference.drawn(spec, 64, KEY, 0, np.arange(50))
    assert len({tile.tobytes() for tile in tiles}) == 50
    assert np.array_equal(reference.drawn(Sketch(0.5, "rows", "without_replacement").spec, 64, KEY), tiles[0])
    assert not np.array_equal(reference.drawn(spec, 64, KEY, 1), tiles[0])


# ---- by norm

BY_NORM = Sketch(0.25, "rows", "norm")


def stored_sample(x: torch.Tensor, sketch: Sketch = BY_NORM, key: int = KEY) -> tuple[np.ndarray, np.ndarray]:
    """(indices, weights) that the buffer keeps."""
    saved = ops.pack(x, sketch.spec, torch.tensor(key)).numpy()
    layout = reference.saved_layout(sketch.spec, x.dtype.itemsize, *x.shape)
    index = saved[layout.indices :][: 8 * layout.lines].view(np.int64)
    return index, saved[layout.weights :][: 4 * layout.lines].view(np.float32)


@every_dtype
def test_indices_and_weights_are_numpys(dtype):
    for rows in (1, 2, 3, 40, 1000):
        x = (torch.randn(rows, 7, dtype=torch.float64) * torch.rand(rows, 1) ** 3).to(dtype)
        fixed = reference.fixed_norms(x.double().numpy())
        index, weight = stored_sample(x)
        k = BY_NORM.kept(rows)
        assert np.array_equal(index, reference.norm_drawn(fixed, k, KEY, ops.rank_salt()))
        assert np.array_equal(weight, reference.norm_weight(fixed, k)[index])


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf")])
def test_norms_that_say_nothing_draw_uniformly(value):
    """All weights N / k, and the estimate of zeros is zero."""
    x = torch.randn(40, 6, dtype=torch.float64)
    x = (
        torch.zeros_like(x)
        if value == 0
        else x.index_put((torch.tensor(17), torch.tensor(3)), torch.tensor(value).double())
    )
    index, weight = stored_sample(x)
    assert (weight == 4).all() and index.min() >= 0 and index.max() < 40
    words = reference.random_words(KEY, ops.rank_salt(), 1, 0, np.arange(10))
    assert np.array_equal(index, reference.mulhi64(reference.word64(words, 1), 40))


@every_dtype
def test_weights_are_bounded(dtype):
    """By 10 N / k, however small a row: one draw in ten ignores the norms."""
    x = torch.full((40, 6), torch.finfo(dtype).smallest_normal, dtype=dtype)
    x[7] = 1000
    for key in range(200):
        index, weight = stored_sample(x, key=key)
        assert (weight <= np.float32(10 * 40 / 10)).all() and weight[index == 7].max(initial=0) < 0.12


def test_probabilities_are_those_of_the_weights():
    """Counts of 400,000 draws against p: chi-square, as in test_sampler (its cube root is normal)."""
    x = np.random.default_rng(1).standard_normal((50, 4)) * np.arange(50)[:, None]
    fixed = reference.fixed_norms(x)
    p = reference.norm_probability(fixed)
    assert abs(p.sum() - 1) < 1e-12 and p.min() >= 0.1 / 50
    norms = np.linalg.norm(x, axis=1)
    assert np.allclose(p, 0.9 * norms / norms.sum() + 0.1 / 50, rtol=1e-7)  # norms are fp32 numbers
    drawn = reference.norm_drawn(fixed, 4, random_keys(100_000, 2))

    def deviation(p):
        chi_square = (
            np.square(np.bincount(drawn.reshape(-1), minlength=50) - drawn.size * p) / (drawn.size * p)
        ).sum()
        spread = 2 / (9 * 49)
        return abs((chi_square / 49) ** (1 / 3) - (1 - spread)) / spread**0.5

    assert deviation(p) <= DEVIATION
    assert deviation(norms / norms.sum() * 0.95 + 0.05 / 50) > DEVIATION


def test_backward_needs_no_norms():
    """Indices and weights travel in the buffer: another key in the trailer changes nothing."""
    x, dy = torch.randn(40, 6), torch.randn(40, 3)
    saved = ops.pack(x, BY_NORM.spec, torch.tensor(KEY))
    dw = ops.linear_wgrad(dy, saved, 6, BY_NORM.spec)
    saved[-64:-56] = 77
    assert torch.equal(ops.linear_wgrad(dy, saved, 6, BY_NORM.spec), dw)


# ---- projection

PROJECT = Sketch(0.25, "project")
PROJECT_DRAWS = VALID_DRAWS["project"]


def signs_of_ops(features: int, sketch: Sketch, key: int) -> torch.Tensor:
    """R, from the projection of the identity."""
    k = sketch.kept(features)
    saved = ops.pack(torch.eye(features, dtype=torch.float64), sketch.spec, torch.tensor(key))
    return saved[: 8 * features * k].view(torch.float64).view(features, k) / reference.project_scale(k)


@pytest.mark.parametrize("draw", PROJECT_DRAWS)
@pytest.mark.parametrize("features", [1, 2, 31, 33, 127, 300, 1030])
def test_signs_are_numpys(features, draw, monkeypatch):
    for salt, keep in itertools.product((0, 2**32 - 1), (1e-6, 0.3, 0.99)):
        monkeypatch.setattr(ops.salt, "resolved", salt)
        sketch = Sketch(keep, "project", draw)
        if sketch.kept(features) == features:
            continue
        expected = reference.projection(features, sketch.spec, KEY, salt)
        assert np.array_equal(signs_of_ops(features, sketch, KEY).numpy(), expected)


def test_signs_are_balanced_and_uncorrelated():
    """2^20 signs of one key: their mean, and that of products of neighbours in a row, a column and a word."""
    r = reference.signs(1024, 1024, KEY).astype(np.float64)
    products = [r, r[1:] * r[:-1], r[:, 1:] * r[:, :-1], r[:, 32:] * r[:, :-32], r[:, 128:] * r[:, :-128]]
    other = reference.signs(1024, 1024, KEY + 1)
    for product in (*products, r * other, r * r.T * (1 - np.eye(1024))):
        assert abs(product.mean()) * math.sqrt(product.size) <= DEVIATION * math.sqrt(2)
    assert abs((r * r).mean()) * 1024 > DEVIATION


def projected_error(x: torch.Tensor, dy: torch.Tensor, sketch: Sketch) -> tuple[float, float]:
    """(stored values, dW) off their definitions, over their bounds.

    Stored: d + 2 roundings of a sum of d, then one into the dtype. dW = (dy^T stored) R^T / (k scale): sums
    of N and of k, and in 16-bit types the inner product is rounded before it is used.
    """
    rows, features, k = *x.shape, sketch.kept(x.shape[1])
    key, scale = torch.tensor(KEY), reference.project_scale(k)
    r = torch.from_numpy(reference.projection(features, sketch.spec, KEY, ops.rank_salt())).double()
    saved = ops.pack(x, sketch.spec, key)
    stored = saved[: rows * k * x.element_size()].view(x.dtype).view(rows, k).double()
    unit = ROUNDING[x.dtype]
    sums = ROUNDING[torch.float64 if x.dtype == torch.float64 else torch.float32]
    least = torch.finfo(x.dtype).smallest_normal
    exact, magnitude = x.double() @ r * scale, x.double().abs().sum(1, keepdim=True) * scale
    of_stored = (stored - exact).abs() / ((features + 2) * sums * magnitude + 2 * unit * exact.abs() + least)
    dw = ops.linear_wgrad(dy, saved, features, sketch.spec).double()
    inner = dy.double().t() @ stored
    exact = inner @ r.t() / (k * scale)
    magnitude = (dy.double().abs().t() @ stored.abs()).sum(1, keepdim=True) / (k * scale)
    of_inner = unit * inner.abs().sum(1, keepdim=True) / (k * scale) if unit > 2.0**-20 else 0
    bound = 1.01 * ((rows + k + 4) * sums * magnitude + 2 * unit * exact.abs() + of_inner) + least
    return of_stored.max().item(), ((dw - exact).abs() / bound).max().item()


@pytest.mark.parametrize("draw", PROJECT_DRAWS)
@every_dtype
def test_projection_and_its_gradient(dtype, draw):
    for case in LINEARS[1:]:
        for keep in (0.07, 0.5):
            x = torch.randn(case.rows, case.features, dtype=torch.float64).to(dtype)
            dy = torch.randn(case.rows, case.outputs, dtype=torch.float64).to(dtype)
            errors = projected_error(x, dy, Sketch(keep, "project", draw))
            assert max(errors) <= 1, (str(case), keep, errors)


@pytest.mark.parametrize("draw", PROJECT_DRAWS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unpack_is_the_estimate_of_the_projection(layout, draw):
    sketch = Sketch(0.25, "project", draw)
    x = LAYOUTS[layout](torch.randn(48, 33, dtype=torch.float64))
    matrix = x.reshape(-1, 33)
    dense = ops.unpack(ops.pack(x, sketch.spec, torch.tensor(KEY)), *matrix.shape, x.dtype, sketch.spec)
    expected = torch.from_numpy(reference.estimate(matrix.numpy(), sketch.spec, KEY, ops.rank_salt()))
    assert torch.allclose(dense, expected, rtol=1e-13, atol=1e-12)


def test_backward_through_the_layer_uses_the_signs_of_forward():
    x, dy = torch.randn(40, 64, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    for seed in range(10):
        torch.manual_seed(seed)
        key = torch.empty(1, dtype=torch.int64).random_()
        torch.manual_seed(seed)
        weight = torch.zeros(5, 64, dtype=torch.float64, requires_grad=True)
        functional.linear(x, weight, None, PROJECT).backward(dy)
        estimate = torch.from_numpy(reference.estimate(x.numpy(), PROJECT.spec, int(key), ops.rank_salt()))
        assert error_over_bound(weight.grad, dy, estimate, 8) < 1e4  # another key: 1e14
        assert same_bits(weight.grad, ops.linear_wgrad(dy, ops.pack(x, PROJECT.spec, key), 64, PROJECT.spec))

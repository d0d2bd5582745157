"""The CUDA kernels, executed on the host, against numpy and the twin of the sampler in rad_kernels.reference.

Values are multiples of 1/8 and weights multiples of 1/2, so sums are exact in every order and results are
compared bit for bit. tests/cpp has the same kernels under the race and memory checker.
"""

import ctypes
import itertools

import numpy as np
import pytest

from rad_kernels import reference
from tests import simt

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing())

KEY, SALT = 0x0123456789ABCDEF, 77
ROWS, SAME, DIFFERENT, TILE_ROWS, PROJECT = range(5)
WITHOUT_REPLACEMENT = 2
SPECS = list(itertools.product([2], [5], range(3), range(2), [0]))
NUMPY_DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16}
ORDERS = {"forward": 0, "reverse": 1, "random": 2}


@pytest.fixture(params=ORDERS, autouse=True)
def order(request):
    simt.schedule(ORDERS[request.param], seed=5)
    yield
    simt.schedule(0)


def eighths(*shape: int, dtype="float64", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-8, 9, shape) / 8).astype(dtype)


def test_structs_have_the_size_of_the_headers():
    for which, args in enumerate(simt.ARGS):
        assert ctypes.sizeof(args) == simt.library().simt_sizeof(which), args.__name__


@pytest.mark.parametrize("draw", range(2))
@pytest.mark.parametrize("sampling", range(2))
@pytest.mark.parametrize(
    ("n", "num", "den"), [(1, 1, 1), (7, 3, 7), (100, 1, 100), (257, 1, 4), (1000, 2, 3)]
)
def test_sample(n, num, den, sampling, draw):
    spec = (num, den, sampling, draw, 0)
    np.testing.assert_array_equal(simt.sample(spec, n, KEY, SALT), reference.sample(spec, n, KEY, SALT))


@pytest.mark.parametrize("n", [1, 2, 37, 500])
def test_sample_without_replacement(n):
    lists = [
        simt.sample((1, 1, sampling, WITHOUT_REPLACEMENT, 0), n, KEY, SALT, outer)
        for sampling, outer in ((ROWS, 0), (SAME, 0), (TILE_ROWS, 1))
    ]
    for index in lists:
        np.testing.assert_array_equal(np.sort(index), np.arange(n))
    np.testing.assert_array_equal(lists[1], np.arange(n))
    half = (1, 2, ROWS, WITHOUT_REPLACEMENT, 0)
    np.testing.assert_array_equal(simt.sample(half, n, KEY, SALT), lists[0][: (n + 1) // 2])
    assert n < 37 or (lists[0] != lists[2]).any()


@pytest.mark.parametrize("dtype", simt.DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_pack_moves_bits(spec, dtype):
    bits = f"u{simt.ITEM_BYTES[dtype]}"
    x = np.random.default_rng(1).integers(0, 1 << 15, (13, 45)).astype(bits)
    for layout_of_x in (x, np.asfortranarray(x), x[:, ::-1], np.broadcast_to(x[:1], x.shape)):
        saved = simt.pack(layout_of_x, dtype, spec, KEY, SALT)
        np.testing.assert_array_equal(saved, reference.pack(layout_of_x, spec, KEY, SALT))


def test_norm_sample():
    """p = 0.9 a / S + 0.1 / N of the norms in fixed point; indices and weights are planes."""
    spec, rows = (1, 2, ROWS, simt.NORM, 0), 41
    x = eighths(rows, 30, dtype=np.float32) * np.arange(rows, dtype=np.float32)[:, None]
    saved, layout = simt.pack(x, "float32", spec, KEY, SALT), simt.layout_of(spec, "float32", *x.shape)
    k = layout.lines
    norm = np.sqrt((x.astype(np.float64) ** 2).sum(1)).astype(np.float32).astype(np.float64)
    prefix = np.cumsum(np.floor(norm / norm.max() * 2**30).astype(np.uint64))
    words = reference.random_words(KEY, SALT, 1, 0, np.arange(k)).astype(np.uint64)
    choice, place = (words[:, i] + (words[:, i + 1] << np.uint64(32)) for i in (0, 2))
    by_norm = np.searchsorted(prefix, reference.mulhi64(place, prefix[-1]).astype(np.uint64), side="right")
    want = np.where(reference.mulhi64(choice, 10) == 0, reference.mulhi64(place, rows), by_norm)
    index = saved[layout.indices :].view(np.uint8)[: 8 * k].view(np.int64)
    np.testing.assert_array_equal(index, want)
    share = np.diff(prefix, prepend=np.uint64(0)).astype(np.float64) / float(prefix[-1])
    weight = saved[layout.weights :][: 4 * k].view(np.float32)
    np.testing.assert_allclose(weight, 1 / (k * (0.9 * share + 0.1 / rows))[index], rtol=2**-23)
    np.testing.assert_array_equal(saved[: x[index].nbytes].view(np.float32).reshape(k, -1), x[index])


def stored_tiles(x, spec):
    """The stored values before they are coded, tile by tile of features."""
    if spec[2] != TILE_ROWS:
        return [reference.stored_values(x, spec, KEY, SALT)]
    starts = range(0, x.shape[1], 128)
    return [
        x[simt.sample(spec, len(x), KEY, SALT, tile), begin : begin + 128]
        for tile, begin in enumerate(starts)
    ]


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("sampling", [ROWS, SAME, DIFFERENT, TILE_ROWS])
def test_codes_decode_within_half_a_step(sampling, bits, dtype):
    spec = (3, 5, sampling, 0, bits)
    x = np.random.default_rng(3).standard_normal((6, 300)).astype(dtype)
    saved, layout = simt.pack(x, dtype, spec, KEY, SALT), simt.layout_of(spec, dtype, *x.shape)
    lo_bytes, step_bytes = saved[layout.lo :], saved[layout.step :]
    place = 0  # planes are [tile][group][line]
    for tile, values in enumerate(stored_tiles(x, spec)):
        decoded = simt.decode(saved, dtype, spec, *x.shape, tile, np.empty_like(values, order="C"))
        for begin in range(0, values.shape[1], 64):
            group, lines = values[:, begin : begin + 64], len(values)
            lo = lo_bytes[place * x.itemsize :][: lines * x.itemsize].view(dtype)
            step = (step_bytes[2 * place :][: 2 * lines].view(np.uint16).astype(np.uint32) << 16).view(
                np.float32
            )
            place += lines
            np.testing.assert_array_equal(lo, group.min(1))
            span = (group.max(1).astype(np.float64) - lo) / (2**bits - 1)
            assert (span <= step).all() and (step <= span * (1 + 2.0**-7)).all()
            error = np.abs(decoded[:, begin : begin + 64].astype(np.float64) - group)
            rounding = np.finfo(dtype).eps * np.abs(group).max()
            assert (error <= step[:, None] * 0.5 + 2 * rounding).all()


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize(("features", "num"), [(7, 7), (200, 129)])
def test_signs(features, num, dtype):
    spec = (num, features, PROJECT, 0, 0)
    words = reference.random_words(KEY, SALT, 4, np.arange(features)[:, None], np.arange(2))
    bits = np.unpackbits(words.reshape(features, 8).astype("<u4").view(np.uint8), axis=1, bitorder="little")
    out = np.empty((features, num), dtype)
    np.testing.assert_array_equal(
        simt.signs(spec, dtype, features, KEY, SALT, out), np.where(bits[:, :num], 1, -1).astype(dtype)
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("n", [1, 4, 1027])
def test_dropout(n, dtype):
    x, threshold = eighths(n, dtype=dtype), 1 << 30
    words = reference.random_words(KEY, SALT, 6, 0, np.arange(-(-n // 4))).reshape(-1)[:n]
    want = np.where(words >= threshold, x * np.asarray(2, dtype), 0).astype(dtype)
    trailer = simt.trailer_of(KEY)
    np.testing.assert_array_equal(simt.dropout(x, dtype, threshold, 2.0, trailer, SALT), want)
    np.testing.assert_array_equal(trailer, simt.trailer_of(KEY, SALT))
    np.testing.assert_array_equal(simt.dropout(x, dtype, threshold, 2.0, trailer, -1), want)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_unpack_is_the_estimate(spec, dtype):
    x = eighths(10, 25, dtype=dtype)
    saved = reference.pack(x, spec, KEY, SALT)
    np.testing.assert_array_equal(
        simt.unpack(saved, dtype, spec, *x.shape, np.empty_like(x)),
        reference.estimate(x, spec, KEY, SALT).astype(dtype),
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("draw", range(2))
@pytest.mark.parametrize(("rows", "outputs", "features"), [(1, 1, 1), (37, 5, 70), (40, 70, 135)])
def test_linear_wgrad(rows, outputs, features, draw, dtype):
    spec = (2, 5, DIFFERENT, draw, 0)
    x, dy = eighths(rows, features, dtype=dtype), eighths(rows, outputs, dtype=dtype, seed=1)
    if features == 1:
        spec = (1, 1, DIFFERENT, draw, 0)
    saved = reference.pack(x, spec, KEY, SALT)
    want = (dy.astype(np.float64).T @ reference.estimate(x, spec, KEY, SALT)).astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(simt.linear_wgrad(dy, saved, dtype, spec, features), want)
    np.testing.assert_array_equal(
        simt.linear_wgrad(np.asfortranarray(dy), saved, dtype, spec, features), want
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_gather_and_scatter(dtype):
    index = np.array([0, 3, 3, 4, 11], np.int64)
    weight = np.array([3, 3, 2, 2, 2.0])
    source = eighths(12, 9, dtype=dtype)
    np.testing.assert_array_equal(simt.gather(source, dtype, index), source[index])
    np.testing.assert_array_equal(
        simt.gather(source, dtype, index, split=2, scale=(3, 2)),
        (source[index] * weight[:, None]).astype(dtype),
    )
    listed = (np.arange(5) / 3).astype(np.float32)
    np.testing.assert_array_equal(
        simt.gather(source, dtype, index, weight=listed),
        (source[index].astype(np.result_type(dtype, np.float32)) * listed[:, None]).astype(dtype),
    )
    packed = eighths(6, 5, dtype=dtype)
    want = np.zeros((6, 12))
    np.add.at(want.T, index, (packed * weight).T)
    np.testing.assert_array_equal(simt.scatter(packed, dtype, index, 12, 2, (3, 2)), want.astype(dtype))


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("n", [1, 31, 1024, 4099])
def test_relu_and_mask(n, dtype):
    x = np.resize(np.array([1, -2, 0, -0.0, np.nan, np.inf, -np.inf, 0.5, -0.125], dtype), n)
    y, mask = simt.relu(x, dtype)
    passes = ~(x <= 0)
    np.testing.assert_array_equal(y, np.where(x < 0, 0, x).astype(dtype))
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    np.testing.assert_array_equal(bits[:n], passes)
    assert not bits[n:].any()
    dy = eighths(n, dtype=dtype)
    np.testing.assert_array_equal(simt.masked(dy, dtype, mask), np.where(passes, dy, 0).astype(dtype))

"""The CUDA kernels, executed on the host, against numpy and the twin of the sampler in rad_kernels.reference.

Values are multiples of 1/8 and weights multiples of 1/2, so sums are exact in every order and results are
compared bit for bit. tests/cpp has the same kernels under the race and memory checker.
"""

import ctypes

import numpy as np
import pytest

from rad_kernels import reference
from rad_kernels.sketch import BITS, DRAWS, SAMPLINGS, VALID_DRAWS
from tests import simt

pytestmark = pytest.mark.skipif(bool(simt.missing()), reason=simt.missing())

KEY, SALT = 0x0123456789ABCDEF, 77
ROWS, SAME, DIFFERENT, TILE_ROWS, PROJECT = range(5)
PLACES = [  # every sampling of places with its draws
    (SAMPLINGS.index(sampling), DRAWS.index(draw))
    for sampling, draws in VALID_DRAWS.items()
    for draw in draws
    if sampling != "project"
]
# Weights of these are multiples of 1/2, so estimates are exact.
SPECS = [(2, 5, *place, 0) for place in PLACES if place[1] != simt.NORM]
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


@pytest.mark.parametrize("place", [p for p in PLACES if p[0] != DIFFERENT and p[1] != simt.NORM])
@pytest.mark.parametrize(
    ("n", "num", "den"), [(1, 1, 1), (7, 3, 7), (100, 1, 100), (257, 1, 4), (1000, 2, 3)]
)
def test_sample(n, num, den, place):
    spec = (num, den, *place, 0)
    for line in (0, 3) if place[0] == TILE_ROWS else (0,):
        np.testing.assert_array_equal(
            simt.sample(spec, n, KEY, SALT, line), reference.sample(spec, n, KEY, SALT, line)
        )


@pytest.mark.parametrize("dtype", simt.DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_pack_moves_bits(spec, dtype):
    bits = f"u{simt.ITEM_BYTES[dtype]}"
    x = np.random.default_rng(1).integers(0, 1 << 15, (13, 45)).astype(bits)
    for layout_of_x in (x, np.asfortranarray(x), x[:, ::-1], np.broadcast_to(x[:1], x.shape)):
        saved = simt.pack(layout_of_x, dtype, spec, KEY, SALT)
        np.testing.assert_array_equal(saved, reference.pack(layout_of_x, spec, KEY, SALT))


def of_dtype(x: np.ndarray, dtype: str) -> np.ndarray:
    """bf16 as its bits; multiples of 1/8 up to 1 are exact in every dtype."""
    if dtype != "bfloat16":
        return x.astype(dtype)
    return (x.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


@pytest.mark.parametrize("dtype", simt.DTYPES)
@pytest.mark.parametrize("bits", [0, *BITS])
@pytest.mark.parametrize("place", PLACES)
def test_buffers_are_the_twins(place, bits, dtype):
    """Codes, offsets, steps, indices and weights, byte for byte; squares sum exactly, so norms are equal."""
    spec, x = (3, 5, *place, bits), of_dtype(eighths(9, 203), dtype)
    np.testing.assert_array_equal(
        simt.pack(x, dtype, spec, KEY, SALT), reference.pack(x, spec, KEY, SALT, dtype)
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sampling", [ROWS, SAME, DIFFERENT, TILE_ROWS])
def test_decoded_values_are_the_twins(sampling, bits, dtype):
    spec = (3, 5, sampling, 0, bits)
    x = np.random.default_rng(3).standard_normal((6, 300)).astype(dtype)
    saved = reference.pack(x, spec, KEY, SALT)
    want = reference.decoded_values(x, spec, KEY, SALT).astype(dtype)
    width = 128 if sampling == TILE_ROWS else want.shape[1]
    for tile, begin in enumerate(range(0, want.shape[1], width)):
        lines = np.ascontiguousarray(want[:, begin : begin + width])
        got = simt.decode(saved, dtype, spec, *x.shape, tile, np.empty_like(lines))
        np.testing.assert_array_equal(got, lines)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize(("features", "num"), [(7, 7), (200, 129)])
def test_signs(features, num, dtype):
    spec = (num, features, PROJECT, 0, 0)
    out = np.empty((features, num), dtype)
    np.testing.assert_array_equal(
        simt.signs(spec, dtype, features, KEY, SALT, out), reference.signs(features, num, KEY, SALT)
    )


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("n", [1, 4, 1027])
def test_dropout(n, dtype):
    x, threshold = eighths(n, dtype=dtype), 1 << 30
    want = np.where(reference.dropout_words(n, KEY, SALT) >= threshold, x * np.asarray(2, dtype), 0).astype(
        dtype
    )
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

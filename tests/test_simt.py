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
SPECS = list(itertools.product([2], [5], range(3), range(2)))
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
    spec = (num, den, sampling, draw)
    np.testing.assert_array_equal(simt.sample(spec, n, KEY, SALT), reference.sample(spec, n, KEY, SALT))


@pytest.mark.parametrize("dtype", simt.DTYPES)
@pytest.mark.parametrize("spec", SPECS)
def test_pack_moves_bits(spec, dtype):
    bits = f"u{simt.ITEM_BYTES[dtype]}"
    x = np.random.default_rng(1).integers(0, 1 << 15, (13, 45)).astype(bits)
    for layout_of_x in (x, np.asfortranarray(x), x[:, ::-1], np.broadcast_to(x[:1], x.shape)):
        layout = reference.saved_layout(spec, x.itemsize, *x.shape)
        saved = simt.pack(layout_of_x, dtype, spec, KEY, SALT, layout)
        np.testing.assert_array_equal(saved, reference.pack(layout_of_x, spec, KEY, SALT))


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
    spec = (2, 5, 2, draw)
    x, dy = eighths(rows, features, dtype=dtype), eighths(rows, outputs, dtype=dtype, seed=1)
    if features == 1:
        spec = (1, 1, 2, draw)
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

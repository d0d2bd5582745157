"""The saved buffer byte for byte: its size, its planes and its trailer (docs/maths.md, the saved buffer)."""

import itertools

import numpy as np
import pytest
import torch
from cases import COMBINATIONS, DEVICES, DTYPES, KEEPS, LAYOUTS, MATRICES, REPORTED_LINEARS, sketches

from rad_kernels import _C, Sketch, ops, reference
from rad_kernels.sketch import DTYPE_NAMES, saved_nbytes

KEY = 0x0123_4567_89AB_CDEF
AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def values(rows: int, features: int, dtype: torch.dtype, device="cpu") -> torch.Tensor:
    """Distinct bit patterns as far as the dtype allows, NaNs and infinities included."""
    bits = torch.arange(1, rows * features + 1, dtype=torch.int64) * 0x9E3779B97F4A7C15
    return bits.to(AS_INTEGERS[dtype.itemsize]).view(dtype).reshape(rows, features).to(device)


def packed(x: torch.Tensor, sketch: Sketch, key: int = KEY) -> np.ndarray:
    return ops.pack(x, sketch.spec, torch.tensor(key, device=x.device)).cpu().numpy()


def bits_of(x: torch.Tensor) -> np.ndarray:
    """[..., features] as an integer matrix: numpy has no bfloat16."""
    matrix = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return matrix.contiguous().view(AS_INTEGERS[x.dtype.itemsize]).cpu().numpy()


def check_buffer(x: torch.Tensor, sketch: Sketch, key: int = KEY) -> None:
    actual = packed(x, sketch, key)
    matrix = bits_of(x)
    expected = reference.pack(matrix, sketch.spec, key, ops.rank_salt())
    assert np.array_equal(actual, expected), (x.shape, sketch)


def test_four_ways_to_count_bytes_agree(device):
    """The Python rule, the C++ rule, the twin and the buffer of the op, on 2,116 shapes with every sketch."""
    assert len(MATRICES) >= 2000
    key = torch.tensor(KEY, device=device)
    choices = itertools.cycle(KEEPS)  # seven, and no combination of shape, dtype and draw is left out
    for dtype, combination in itertools.product(DTYPES, COMBINATIONS):
        blank = torch.zeros(1, dtype=dtype, device=device)  # expanded: only the shape matters here
        for rows, features in MATRICES:
            sketch = Sketch(next(choices), *combination)
            expected = reference.saved_layout(sketch.spec, dtype.itemsize, rows, features).nbytes
            case = (rows, features, dtype, sketch)
            assert saved_nbytes(rows, features, dtype, sketch) == expected, case
            assert _C.saved_nbytes(sketch.spec, DTYPE_NAMES[dtype], rows, features) == expected, case
            assert ops.pack(blank.expand(rows, features), sketch.spec, key).numel() == expected, case


def test_bytes_of_huge_activations():
    """Sizes whose byte counts pass 2^32 and 2^40: nothing overflows."""
    for rows, features in ((2**31 + 1, 3), (3, 2**31 + 1), (2**32 + 1, 4096), (10**8, 10**5)):
        for dtype in DTYPES:
            for sketch in sketches():
                expected = reference.saved_layout(sketch.spec, dtype.itemsize, rows, features).nbytes
                assert saved_nbytes(rows, features, dtype, sketch) == expected
                assert _C.saved_nbytes(sketch.spec, DTYPE_NAMES[dtype], rows, features) == expected


def test_bytes_by_hand():
    """keep .1 of [150, 784] fp32: 15 rows of 3,136 bytes are 367.5 units of 128 bytes, 79 columns 370.3."""
    assert saved_nbytes(150, 784, torch.float32, Sketch(0.1, "rows")) == 368 * 128 + 64
    assert saved_nbytes(150, 784, torch.float32, Sketch(0.1, "same")) == 371 * 128 + 64
    assert saved_nbytes(0, 784, torch.float32, Sketch(0.1, "rows")) == 64


def test_keep_of_reported_layers_is_what_it_says():
    """The whole buffer is within one stored line and 192 bytes of the share that was asked for."""
    for case in REPORTED_LINEARS:
        for sketch in sketches(keeps=(0.1, 0.5)):
            exact = case.rows * case.features * 4
            line = max(case.rows, case.features) * 4
            bytes_ = saved_nbytes(case.rows, case.features, torch.float32, sketch)
            assert 0 <= bytes_ - exact * sketch.keep <= line + 192, (case, sketch)


def test_planes_and_trailer_on_many_shapes(device):
    shapes = [(r, f) for r, f in MATRICES if r * f <= 300] + [(257, 65), (3, 4099), (1030, 17)]
    rng = np.random.default_rng(5)
    for dtype in DTYPES:
        for number, sketch in enumerate(sketches(keeps=(0.1, 1 / 3, 0.97))):
            for rows, features in shapes[number % 3 :: 3]:
                check_buffer(values(rows, features, dtype, device), sketch, int(rng.integers(2**63)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout, device):
    for rows, features in ((7, 5), (64, 33), (3, 130)):
        for dtype in DTYPES:
            x = LAYOUTS[layout](values(rows, features, dtype, device))
            for sketch in sketches(keeps=(0.3, 1.0)):
                check_buffer(x, sketch)


@pytest.mark.parametrize("salt", [0, 1, 2**31, 2**32 - 1])
def test_trailer(salt, device, monkeypatch):
    monkeypatch.setattr(ops, "_salt", salt)
    for key in (0, 1, 2**32 - 1, 2**32, 2**63 - 1):
        for sketch in sketches(keeps=(0.5,)):
            words = packed(values(9, 11, torch.float32, device), sketch, key)[-64:].view("<u8")
            assert words.tolist() == [key, salt, _C.format_version, 0, 0, 0, 0, 0]
    assert _C.format_version == reference.FORMAT_VERSION


def test_alignment(device):
    """Planes start at multiples of 128 in the buffer, and torch aligns buffers to at least 64 bytes."""
    for sampling, draw in COMBINATIONS:
        sketch = Sketch(0.4, sampling, draw)
        for rows, features in ((1, 1), (33, 65), (129, 7)):
            layout = reference.saved_layout(sketch.spec, 2, rows, features)
            assert layout.trailer % 128 == 0 and layout.nbytes == layout.trailer + 64
            saved = ops.pack(values(rows, features, torch.float16, device), sketch.spec)
            assert saved.data_ptr() % 64 == 0 and saved.dtype == torch.uint8 and saved.is_contiguous()


def test_a_buffer_of_another_size_is_refused(device):
    sketch = Sketch(0.5)
    saved = ops.pack(values(8, 8, torch.float32, device), sketch.spec)
    dy = torch.ones(8, 2, device=device)
    for wrong in (saved[:-1], torch.cat([saved, saved]), saved.view(torch.int32), saved.repeat(2)[::2]):
        with pytest.raises(RuntimeError, match="saved must be a contiguous uint8 tensor of 192 bytes"):
            ops.linear_wgrad(dy, wrong, 8, sketch.spec)

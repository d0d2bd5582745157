"""The saved buffer byte for byte: its size, its planes and its trailer (docs/maths.md, the saved buffer)."""

import itertools

import numpy as np
import pytest
import torch
from cases import (
    COMBINATIONS,
    DEVICES,
    DTYPES,
    ENTRYWISE,
    EVERY_BITS,
    KEEPS,
    LAYOUTS,
    MATRICES,
    REPORTED_LINEARS,
    sketches,
)

from rad_kernels import _C, Sketch, ops, reference
from rad_kernels.sketch import DTYPE_NAMES, WITHOUT_BITS, saved_nbytes

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
    """Every byte, also of the gaps between planes."""
    matrix = bits_of(x)
    expected = reference.pack(matrix, sketch.spec, key, ops.rank_salt(), DTYPE_NAMES[x.dtype])
    actual = packed(x, sketch, key)
    assert actual.size == expected.size, (x.shape, sketch)
    differing = np.flatnonzero(actual != expected)
    assert not differing.size, (x.shape, x.dtype, sketch, differing[:8])


def test_four_ways_to_count_bytes_agree(device):
    """The Python rule, the C++ rule, the twin and the buffer of the op, on 36,000 cases: every one of 2,116
    shapes with every dtype, every combination with all shares and bits."""
    assert len(MATRICES) >= 2000
    key = torch.tensor(KEY, device=device)
    shares, widths = itertools.cycle(KEEPS), itertools.cycle(EVERY_BITS)  # seven and five: every pair occurs
    for number, (dtype, names) in enumerate(itertools.product(DTYPES, COMBINATIONS)):
        blank = torch.zeros(1, dtype=dtype, device=device)  # expanded: only the shape matters here
        for rows, features in MATRICES[number % 3 :: 3]:
            share, width = next(shares), next(widths)
            sketch = Sketch(share, *names, None if names[0] in WITHOUT_BITS and share < 1 else width)
            expected = reference.saved_layout(sketch.spec, dtype.itemsize, rows, features).nbytes
            case = (rows, features, dtype, sketch)
            assert saved_nbytes(rows, features, dtype, sketch) == expected, case
            assert _C.saved_nbytes(sketch.spec, DTYPE_NAMES[dtype], rows, features) == expected, case
            if rows * features < 2000 or 257 in (rows, features):
                assert ops.pack(blank.expand(rows, features), sketch.spec, key).numel() == expected, case


def test_bytes_of_huge_activations():
    """Sizes whose byte counts pass 2^32 and 2^40: nothing overflows."""
    for rows, features in ((2**31 + 1, 3), (3, 2**31 + 1), (2**32 + 1, 4096), (10**8, 10**5)):
        for dtype in DTYPES:
            for sketch in sketches(bits=EVERY_BITS):
                expected = reference.saved_layout(sketch.spec, dtype.itemsize, rows, features).nbytes
                assert saved_nbytes(rows, features, dtype, sketch) == expected
                assert _C.saved_nbytes(sketch.spec, DTYPE_NAMES[dtype], rows, features) == expected


def test_bytes_by_hand():
    """keep .1 of [150, 784] fp32, in units of 128 bytes: 15 rows of 3,136 bytes are 367.5, 79 columns 370.3.

    4 bits: 15 rows of 392 bytes are 45.9; 13 groups a row, 195 in all, of 4 bytes are 6.1, of 2 bytes 3.05.
    The norm draw adds 15 indices of 8 bytes and 15 weights of 4, a unit each. `tile_rows`: 6 tiles of 512
    bytes a row and one of 64, together the bytes of `rows`.
    """
    size = lambda *sketch: saved_nbytes(150, 784, torch.float32, Sketch(0.1, *sketch))  # noqa: E731
    assert size("rows") == 368 * 128 + 64
    assert size("same") == 371 * 128 + 64
    assert size("project") == 371 * 128 + 64
    assert size("rows", "norm") == (368 + 1 + 1) * 128 + 64
    assert size("rows", "stratified", 4) == (46 + 7 + 4) * 128 + 64
    assert size("rows", "norm", 4) == (46 + 7 + 4 + 1 + 1) * 128 + 64
    assert size("tile_rows") == 368 * 128 + 64
    assert saved_nbytes(0, 784, torch.float32, Sketch(0.1, "rows")) == 64
    assert saved_nbytes(0, 784, torch.float32, Sketch(0.1, "rows", "norm", 1)) == 64


def test_keep_of_reported_layers_is_what_it_says():
    """The whole buffer is within one stored line and 192 bytes of the share that was asked for; the norm draw
    adds 12 bytes a row and 256."""
    for case in REPORTED_LINEARS:
        for sketch in sketches(keeps=(0.1, 0.5)):
            exact = case.rows * case.features * 4
            line = max(case.rows, case.features) * 4
            bytes_ = saved_nbytes(case.rows, case.features, torch.float32, sketch)
            listed = 12 * sketch.kept(case.rows) + 256 if sketch.draw == "norm" else 0
            assert 0 <= bytes_ - exact * sketch.keep <= line + 192 + listed, (case, sketch)


def test_planes_and_trailer_on_many_shapes(device):
    shapes = [(r, f) for r, f in MATRICES if r * f <= 300] + [(257, 65), (3, 4099), (1030, 17)]
    rng = np.random.default_rng(5)
    for dtype in DTYPES:
        for number, sketch in enumerate(sketches(keeps=(0.1, 1 / 3, 0.97), combinations=ENTRYWISE)):
            for rows, features in shapes[number % 7 :: 7]:
                check_buffer(values(rows, features, dtype, device), sketch, int(rng.integers(2**63)))


def test_projections_lie_in_the_values_plane(device):
    """Small integers: all sums are exact, so that only the last rounding into the dtype is left."""
    for rows, features in ((1, 1), (7, 5), (40, 300), (3, 1025)):
        for dtype in DTYPES:
            for sketch in sketches(keeps=(0.1, 1 / 3, 0.97), combinations=[("project", "stratified")]):
                x = (torch.arange(rows * features) * 7 % 17 - 8).reshape(rows, features).to(dtype)
                stored = reference.stored_values(x.double().numpy(), sketch.spec, KEY, ops.rank_salt())
                expected = torch.from_numpy(stored).to(dtype).reshape(-1)
                saved = ops.pack(x.to(device), sketch.spec, torch.tensor(KEY, device=device)).cpu()
                size = expected.numel() * dtype.itemsize
                assert torch.equal(saved[:size].view(dtype), expected), (rows, features, dtype, sketch)
                assert saved[-64:].view(torch.int64).tolist()[:3] == [KEY, ops.rank_salt(), 1]
                assert saved.numel() == saved_nbytes(rows, features, dtype, sketch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout, device):
    for rows, features in ((7, 5), (64, 33), (3, 130)):
        for dtype in DTYPES:
            x = LAYOUTS[layout](values(rows, features, dtype, device))
            for sketch in sketches(keeps=(0.3, 1.0), combinations=ENTRYWISE):
                check_buffer(x, sketch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_of_projected_activations_do_not_matter(layout, device):
    x = LAYOUTS[layout](values(16, 33, torch.int64, device).remainder(17).sub(8).double())
    sketch, key = Sketch(0.3, "project"), torch.tensor(KEY, device=device)
    assert torch.equal(ops.pack(x, sketch.spec, key), ops.pack(x.clone().contiguous(), sketch.spec, key))


@pytest.mark.parametrize("salt", [0, 1, 2**31, 2**32 - 1])
def test_trailer(salt, device, monkeypatch):
    monkeypatch.setattr(ops.salt, "resolved", salt)
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

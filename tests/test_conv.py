"""The sampled weight gradient of convolutions against torch's, given the same estimate of x: geometries,
dtypes, layouts, codes, every tail of the loops, threads; the saved bytes."""

import pytest
import torch
from cases import DTYPES, EVERY_BITS
from checks import same_bits
from conv_cases import COMBINATIONS, KEY, ConvCase, check, estimate

from rad_kernels import Sketch, memory, nn, ops
from rad_kernels.memory import step_peak
from rad_kernels.sketch import saved_nbytes


@pytest.fixture(autouse=True)
def _one_thread():
    """Small products: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)

# Both directions in one, two and three dimensions; windows beyond the image, taps that meet nothing.
GEOMETRIES = [
    ConvCase(3, 5, (17,), 7, (3,), padding=1),
    ConvCase(2, 6, (31,), 4, (5,), stride=3, padding=2, dilation=2, groups=2),
    ConvCase(3, 5, (9, 7), 18, (3, 3), padding=1),
    ConvCase(2, 3, (7, 9), 33, (1, 1)),
    ConvCase(2, 4, (11, 6), 6, (3, 2), stride=2, padding=1, groups=2),
    ConvCase(2, 3, (5, 5), 3, (5, 5), padding=4, dilation=2),
    ConvCase(2, 3, (12, 12), 5, (4, 4), stride=4),
    ConvCase(1, 6, (8, 10), 6, (3, 3), padding=1, groups=6),
    ConvCase(2, 2, (4, 5, 6), 9, (3, 2, 3), stride=2, padding=1, dilation=1),
    ConvCase(3, 4, (9,), 6, (4,), stride=2, padding=1, groups=2, transposed=True, output_padding=1),
    ConvCase(2, 5, (6, 7), 7, (3, 3), stride=2, padding=1, transposed=True, output_padding=1),
    ConvCase(2, 4, (5, 4), 6, (3, 2), stride=1, padding=2, dilation=3, groups=2, transposed=True),
    ConvCase(2, 3, (4, 4), 5, (2, 3), stride=3, dilation=2, transposed=True, output_padding=1),
    ConvCase(2, 3, (3, 4, 3), 5, (2, 3, 2), stride=2, padding=1, transposed=True),
]
# More than one panel of output positions, block of channels, of taps, chunk of entries, strip of outputs.
TAILS = [
    ConvCase(1, 1, (90, 100), 3, (3, 3), padding=1),
    ConvCase(2, 2, (70, 70), 2, (3, 3), stride=2, padding=1, transposed=True),
    ConvCase(1, 1, (40, 20, 15), 2, (3, 3, 3), padding=1),
    ConvCase(5, 300, (4, 3), 65, (3, 3), padding=1),
    ConvCase(150, 3, (2, 2), 130, (2, 2), padding=1),
]


@every_combination
@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
def test_geometries(case, combination):
    for keep in (0.07, 0.4):
        check(case, Sketch(keep, *combination))
    check(case, Sketch(0.4, *combination), torch.float32)


@every_combination
@pytest.mark.parametrize("case", TAILS, ids=str)
def test_tails(case, combination):
    check(case, Sketch(0.3, *combination), torch.float32)
    check(case, Sketch(0.1, *combination))


@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_more_taps_than_are_summed_at_a_time(sampling):
    check(ConvCase(1, 2, (6600,), 1, (6500,)), Sketch(0.1, sampling), torch.float32)


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "channels second to last": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
    "cropped": lambda t: torch.nn.functional.pad(t, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "every other column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "images last": lambda t: t.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


@every_combination
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_no_bit(layout, combination):
    case = GEOMETRIES[2]
    x, weight, dy = case.data(torch.float32)
    for bits in (None, 4):
        sketch = Sketch(0.3, *combination, bits)
        by_channel = sketch.sampling != "rows"
        saved = case.pack(x, weight, sketch, by_channel, KEY)
        assert torch.equal(case.pack(LAYOUTS[layout](x), weight, sketch, by_channel, KEY), saved)
        dw = case.sampled(dy, saved, sketch, by_channel)
        assert same_bits(case.sampled(LAYOUTS[layout](dy), saved, sketch, by_channel), dw)


@every_combination
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_bits(dtype, combination):
    case = ConvCase(3, 130, (5, 6), 20, (2, 3), padding=1)
    for bits in EVERY_BITS:
        check(case, Sketch(0.3, *combination, bits), dtype)
        if bits:
            check(case, Sketch(1, *combination, bits), dtype)


def test_everything_kept_as_codes_by_row_or_by_channel():
    """keep = 1: either matrix serves, and decodes to x within half a step."""
    case = GEOMETRIES[2]
    x, weight, dy = case.data()
    for by_channel in (False, True):
        sketch = Sketch(1, bits=8)
        saved = case.pack(x, weight, sketch, by_channel, KEY)
        dense = estimate(case, saved, sketch, by_channel, torch.float64)
        assert (dense - x).abs().max() < 0.02
        exact = case.wgrad(dense, dy)
        assert (case.sampled(dy, saved, sketch, by_channel) - exact).abs().max() <= 1e-12 * exact.abs().max()


@every_combination
def test_threads_change_no_bit(combination):
    case = ConvCase(4, 37, (9, 9), 40, (3, 3), padding=1)
    x, weight, dy = case.data(torch.float32)
    sketch, by_channel = Sketch(0.3, *combination), combination[0] != "rows"
    saved = case.pack(x, weight, sketch, by_channel, KEY)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 7, 64):
        torch.set_num_threads(count)
        found.append(case.sampled(dy, saved, sketch, by_channel))
    torch.set_num_threads(threads)
    assert all(same_bits(dw, found[0]) for dw in found)


def test_saved_bytes_are_the_formula():
    for case in (GEOMETRIES[1], GEOMETRIES[6]):
        x, weight, _ = case.data(torch.float32)
        for combination in COMBINATIONS:
            for bits in (None, 4):
                sketch, by_channel = Sketch(0.3, *combination, bits), combination[0] != "rows"
                saved = case.pack(x, weight, sketch, by_channel, KEY)
                rows, cols = case.matrix(by_channel)
                assert saved.nbytes == saved_nbytes(rows, cols, x.dtype, sketch)


def test_what_is_not_kept_does_not_spread():
    """NaN in x reaches dW only where it was sampled; padding never meets it."""
    case = ConvCase(1, 2, (6, 6), 3, (3, 3), padding=1)
    x, weight, dy = case.data(torch.float32)
    sketch = Sketch(1 / 36, "same")
    ones = torch.ones(case.x_shape, dtype=torch.float64)
    mask = (
        estimate(case, case.pack(ones, weight.double(), sketch, True, KEY), sketch, True, torch.float64) > 0
    )
    x[~mask] = float("nan")
    dw = case.sampled(dy, case.pack(x, weight, sketch, True, KEY), sketch, True)
    assert dw.isfinite().all()
    x[:, 0] = float("nan")
    dw = case.sampled(dy, case.pack(x, weight, sketch, True, KEY), sketch, True)
    met = case.wgrad(mask.double(), torch.ones_like(dy).double()) != 0
    assert (dw[:, 0].isnan() == met[:, 0]).all() and dw[:, 1].isfinite().all()


@every_combination
def test_backward_needs_a_mebibyte_beside_its_result(combination):
    """And the list of kept positions: 8 bytes each, 24 where they have to be sorted."""
    case = ConvCase(4, 64, (56, 56), 64, (3, 3), padding=1)
    x, weight, dy = case.data(torch.float32)
    sketch, by_channel = Sketch(0.1, *combination), combination[0] != "rows"
    saved = case.pack(x, weight, sketch, by_channel, KEY)
    found = [None]

    def backward():
        found[0] = case.sampled(dy, saved, sketch, by_channel)

    rows = case.matrix(False)[0]
    assert step_peak(backward) <= weight.nbytes + 2**20 + 24 * sketch.kept(rows)


@every_combination
def test_positions_that_no_window_reads_are_not_kept(combination):
    """A window of one tap in strides packs and sums what it would pack and sum of the positions it reads."""
    sketch, by_channel = Sketch(0.3, *combination), combination[0] != "rows"
    key, whole = torch.tensor(KEY), (slice(None), slice(None))
    for size, window, steps in [((13,), (1,), (3,)), ((9, 8), (1, 1), (2, 2)), ((7, 12), (3, 1), (2, 3))]:
        generator = torch.Generator().manual_seed(12)
        x = torch.randn(4, 6, *size, dtype=torch.float64, generator=generator)
        weight = torch.randn(8, 3, *window, dtype=torch.float64, generator=generator)
        read = x[whole + tuple(slice(None, None, s if w == 1 else 1) for s, w in zip(steps, window))]
        zeros, ones = [0] * len(size), [1] * len(size)
        inner = [1 if w == 1 else s for s, w in zip(steps, window)]
        rest = zeros, ones, False, zeros, 2, key
        for images in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
            y, saved = ops.conv(images, weight, None, sketch.spec, by_channel, steps, *rest)
            same_y, same_saved = ops.conv(
                read.contiguous(), weight, None, sketch.spec, by_channel, inner, *rest
            )
            assert torch.allclose(y, same_y) and torch.equal(saved, same_saved)
        shape = ops.shape_read(x.shape, weight.shape, steps, zeros, False)
        assert shape == read.shape
        assert saved.numel() == saved_nbytes(*ops.packed_shape(shape, by_channel), x.dtype, sketch)
        dy = torch.randn(y.shape, dtype=torch.float64, generator=generator)
        how = zeros, ones, False, 2
        got, want = (
            ops.conv_wgrad(dy, saved, s, weight.shape, sketch.spec, by_channel, step, *how)
            for s, step in ((x.shape, steps), (read.shape, inner))
        )
        assert torch.equal(got, want)


def test_what_a_shortcut_keeps():
    """A quarter of the pack of a convolution that reads all of x, through every layer above the op."""
    x = torch.randn(4, 16, 16, 16, requires_grad=True)
    layer = nn.Conv2d(16, 32, 1, stride=2, bias=False, sketch=Sketch(0.1))
    exact = torch.nn.Conv2d(16, 32, 1, stride=2, bias=False)
    exact.load_state_dict(layer.state_dict())
    kept = memory.saved_bytes(lambda: layer(x).sum()).total
    assert kept == saved_nbytes(4 * 8 * 8, 16, x.dtype, Sketch(0.1))
    y = layer(x)
    assert torch.equal(y, exact(x))
    dy = torch.randn_like(y)
    assert torch.equal(*(torch.autograd.grad(f(x), x, dy)[0] for f in (layer, exact)))

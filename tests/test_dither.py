"""Dithered codes: what ops write and read against numpy operation by operation, the error over all 2^16
noises, independent noise, and the composition with sampling (docs/maths.md, dither)."""

import itertools

import numpy as np
import pytest
import torch
from cases import BY_KEY, DEVICES, DTYPES, ENTRYWISE, LINEARS
from checks import ROUNDING

from rad_kernels import Sketch, ops, reference
from rad_kernels.sketch import BITS, DTYPE_NAMES

KEY = 0x0123_4567_89AB_CDEF
PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Tails: of words, of groups, of blocks of 128, and nothing but a tail.
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 300)

every_bits = pytest.mark.parametrize("bits", BITS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


def codes(x: torch.Tensor, bits: int, key: int = KEY) -> torch.Tensor:
    """The buffer of all of x as codes."""
    return ops.pack(x, Sketch(1, bits=bits).spec, torch.tensor(key, device=x.device))


def decoded(x: torch.Tensor, bits: int, key: int = KEY) -> torch.Tensor:
    return ops.unpack(codes(x, bits, key), *x.shape, x.dtype, Sketch(1, bits=bits).spec)


def check_codes(x: torch.Tensor, bits: int, key: int = KEY) -> None:
    """Codes, lo and step are numpy's bit for bit, and so is what they decode to."""
    spec, name = Sketch(1, bits=bits).spec, DTYPE_NAMES[x.dtype]
    matrix = x.cpu().contiguous().view(PATTERNS[x.dtype.itemsize]).numpy()
    expected = reference.pack(matrix, spec, key, ops.rank_salt(), name)
    assert np.array_equal(codes(x, bits, key).cpu().numpy(), expected), (x.shape, x.dtype, bits)
    values = torch.from_numpy(reference.decoded_values(matrix, spec, key, ops.rank_salt(), name))
    # Adding to zero is how the estimate is made: -0 becomes 0.
    actual, expected = decoded(x, bits, key).cpu(), values.to(x.dtype) + 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


# ---- bit for bit


@every_dtype
@every_bits
def test_codes_are_numpys(bits, dtype, device):
    for width in WIDTHS:
        check_codes(torch.randn(5, width, dtype=torch.float64).mul(3).to(dtype).to(device), bits, KEY + width)


def hard_rows(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """name -> [2, 100]: a whole group and a tail."""
    info, noise = torch.finfo(dtype), torch.randn(2, 100, dtype=torch.float64)
    least = info.smallest_normal * info.eps  # subnormal
    position = torch.arange(100.0, dtype=torch.float64).expand(2, 100)
    small = torch.where(position % 3 == 0, 1.0, -1.0)
    special = {}
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("-inf", -float("inf"))):
        row = noise.clone()
        row[0, 10] = row[1, 99] = value  # one in a whole group, one in a tail
        special[name] = row
    rows = special | {
        "equal": torch.full((2, 100), -3.75),
        "zeros of both signs": torch.where(position % 2 == 0, 0.0, -0.0),
        "subnormal": position * least,
        "one ulp": 1 + (position % 2) * info.eps,
        "neighbours far from zero": (2 + (position % 2) * 2 * info.eps) * 2.0**13,
        "a huge value among small ones": torch.where(position == 20, info.max / 4, noise),
        "half the range": small * (info.max / 4),
        "all of the range": small * info.max,
        "powers of two": 2.0 ** (position % 20 - 10),
        "-infinity alone": torch.where(position == 64, -float("inf"), 1.0),
    }
    return {name: row.to(dtype) for name, row in rows.items()}


@every_dtype
@every_bits
def test_hard_values_are_numpys(bits, dtype, device):
    for row in hard_rows(dtype).values():
        check_codes(row.to(device), bits)


@every_bits
def test_random_bit_patterns_are_numpys(bits, device):
    """All exponents, NaNs and infinities among them."""
    for dtype in DTYPES:
        pattern = torch.arange(1, 3001, dtype=torch.int64) * 0x9E3779B97F4A7C15
        check_codes(pattern.to(PATTERNS[dtype.itemsize]).view(dtype).reshape(30, 100).to(device), bits)


@every_dtype
@every_bits
def test_equal_values_decode_exactly(bits, dtype, device):
    for value in (0.0, 1.0, -3.75, 1e-7, torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal):
        x = torch.full((3, 130), value, dtype=dtype, device=device)
        assert torch.equal(decoded(x, bits), x), value


@every_dtype
@every_bits
def test_what_is_not_finite_spoils_its_own_group_only(bits, dtype, device):
    for name in ("nan", "inf", "-inf"):
        lost = decoded(hard_rows(dtype)[name].to(device), bits).isnan().cpu()
        assert lost[0].tolist() == [True] * 64 + [False] * 36
        assert lost[1].tolist() == [False] * 64 + [True] * 36


def test_a_range_beyond_the_step_decodes_to_nan():
    """A step is a bf16 number. Ranges above (2^bits - 1) 3.39e38 have none, and fp32 none above 3.4e38."""
    for dtype, extreme in ((torch.float32, 3e38), (torch.float64, 1e300)):
        x = torch.tensor([[-extreme, extreme, 0.0]], dtype=dtype)
        assert decoded(x, 8).isnan().all()
    assert decoded(torch.tensor([[-1.6e38, 1.6e38]]), 8).isfinite().all()
    assert decoded(torch.tensor([[-1e40, 1e40]], dtype=torch.float64), 8).isfinite().all()


# ---- the step


def ranges() -> tuple[np.ndarray, np.ndarray]:
    """(lo, hi) of float32 over all magnitudes, and next to where a quotient is a bf16 number."""
    rng = np.random.default_rng(1)
    lo = rng.standard_normal(20_000) * 2.0 ** rng.integers(-120, 100, 20_000)
    hi = lo + abs(rng.standard_normal(lo.size)) * 2.0 ** rng.integers(-140, 100, lo.size)
    exact = np.arange(1, 257) * 2.0 ** rng.integers(-100, 90, 256)  # bf16 numbers
    for levels in (1, 3, 15, 255):
        near = [np.nextafter((exact * levels).astype(np.float32), np.float32(end)) for end in (0, np.inf)]
        top = np.concatenate([(exact * levels).astype(np.float32), *near])
        lo, hi = np.append(lo, np.zeros(top.size)), np.append(hi, top)
    return lo.astype(np.float32), hi.astype(np.float32)


@every_bits
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_a_step_is_a_bf16_that_spans_the_range(real, bits):
    """At least (hi - lo) / levels, as computed and, up to one rounding, exactly; at most two bf16 more."""
    lo, hi = (end.astype(real) for end in ranges())
    step = reference.step_for(lo, hi, bits)
    assert np.array_equal(step.view(np.uint32) & 0xFFFF, np.zeros(step.size))
    span, levels = hi - lo, real(2**bits - 1)
    with np.errstate(all="ignore"):
        assert (span[step > 0] / step[step > 0].astype(real) <= levels).all()
    assert ((step == 0) == (span == 0)).all()
    exact = span.astype(np.longdouble) / (2**bits - 1)
    assert (step * np.longdouble(1 + 2 * np.finfo(real).eps) >= exact).all()
    assert (step <= exact * (1 + 2.0**-6) + 2.0**-132).all()  # the smallest bf16 is 2^-133


# ---- all 2^16 noises

NOISES = np.arange(2**16, dtype=np.uint32)


def errors(value, lo, step, bits):
    """Decoded minus true, [2^16] float64, of one value under every noise."""
    real = value.dtype.type
    group = np.full((1, NOISES.size), value)
    lows, steps = np.array([lo], real), np.array([step], np.float32)
    number = reference.encode(group, lows, steps, NOISES[None], bits)
    found = reference.decode(number, lows, steps, NOISES[None])[0]
    return found.astype(np.longdouble) - np.longdouble(value)


@every_bits
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_bias_and_variance_over_all_noises(real, bits):
    """|bias| <= step 2^-17, variance step^2 / 12, |error| <= step / 2: in fp64 as they stand (up to 2^-50 of
    the numbers), in fp32 up to the roundings of t, of the product and of the sum.

    The value crosses a code at a noise that is a multiple of 2^-16: up to half a grid step of bias, 2^-17.
    """
    rng, levels = np.random.default_rng(3), 2**bits - 1
    lo, hi = real(-1.25), real(2.0)
    step = reference.step_for(np.array([lo]), np.array([hi]), bits)[0]
    inside = rng.uniform(lo, hi, 60).astype(real)
    on_levels = (lo + step.astype(real) * np.arange(min(levels, 20)).astype(real)).clip(lo, hi)
    for value in (lo, hi, *inside, *on_levels):
        error = errors(real(value), lo, step, bits)
        t = (value - lo) / step
        unit = np.finfo(real).eps
        rounding = unit * (step * (levels + 1) + abs(value) + abs(lo))
        crossing = unit * (levels + 1)  # t is rounded: that moves where the code changes
        assert abs(error.mean()) <= step * (2.0**-17 + crossing) + rounding, (value, t)
        assert abs(error).max() <= step * (0.5 + crossing) + rounding, value
        # A grid of 2^16 points has the variance (1 - 2^-32) / 12; a crossing off the grid adds its bias.
        variance = np.square(error).mean()
        assert abs(variance - np.longdouble(step) ** 2 / 12) <= step * (step * 2.0**-31 + 4 * rounding), value


def test_ops_have_no_bias_over_all_noises():
    """The ops themselves: every error of 2^20 values is that of its noise in the table of all 2^16."""
    rows, bits = 2**14, 2
    row = torch.linspace(-1.25, 2.0, 64, dtype=torch.float64)
    x = row.expand(rows, 64)
    noise = reference.dither_noise(KEY, ops.rank_salt(), np.arange(rows), 64)
    error = (decoded(x, bits) - x).numpy()
    step = float(reference.step_for(np.array([-1.25]), np.array([2.0]), bits)[0])
    seen = 0
    for column in range(64):
        table = errors(np.float64(row[column]), np.float64(-1.25), np.float32(step), bits)
        assert np.array_equal(error[:, column], table[noise[:, column]].astype(np.float64))
        seen += np.unique(noise[:, column]).size
    assert seen > 64 * 14_000  # of 2^14 draws from 2^16, 14,500 differ


@pytest.mark.parametrize("shift", [2.0**-9, -(2.0**-9)])
def test_noise_off_its_centre_is_noticed(shift):
    """A dither that is not centred, as (noise + 1/2 + 128) / 2^16 would be, breaks the bias bound."""
    error = errors(np.float64(0.3), np.float64(-1.0), np.float32(0.5), 4) + shift * 0.5
    assert abs(error.mean()) > 0.5 * 2.0**-17 * 100


# ---- noise

DEVIATION = 6.0  # standard normal: 2e-9 a test, 2e-6 for the 1,000 below, were the keys fresh


def test_noise_of_neighbours_is_independent():
    """Correlation of the noise at coordinates that differ in line, column, key or salt, of 2^17 keys each."""
    keys = np.random.default_rng(2).integers(2**63, size=2**17, dtype=np.uint64)
    role = reference.ROLES["dither"]

    def noise(line, column, keys=keys, salt=0):
        word = reference.random_words(keys, salt, role, line, column // 8)[:, column // 2 % 4]
        return (word >> np.uint32(16 * (column % 2)) & np.uint32(0xFFFF)).astype(np.float64) - 32767.5

    places = [noise(line, column) for line in (0, 1, 2**33) for column in (0, 1, 2, 7, 8, 63, 64, 2**36)]
    places += [noise(0, 0, keys + np.uint64(1)), noise(0, 0, salt=1), noise(0, 0, salt=2**31)]
    spread = np.sqrt((2**32 - 1) / 12)
    for a in places:
        assert abs(a.mean()) * np.sqrt(a.size) <= DEVIATION * spread
    for a, b in itertools.combinations(places, 2):
        assert abs((a * b).mean()) * np.sqrt(a.size) <= DEVIATION * spread**2
    assert abs((places[0] * places[0]).mean()) * np.sqrt(keys.size) > DEVIATION * spread**2


@pytest.mark.parametrize(("sampling", "draw"), BY_KEY)
def test_noise_is_that_of_the_stored_place(sampling, draw):
    """Equal rows: the same values at every line, and yet no two lines or groups have the same codes."""
    x = torch.randn(1, 256, dtype=torch.float64).expand(64, 256).contiguous()
    sketch = Sketch(0.5, sampling, draw, 8)
    saved = ops.pack(x, sketch.spec, torch.tensor(KEY)).numpy()
    layout = reference.saved_layout(sketch.spec, 8, *x.shape)
    lines = saved[: layout.lines * layout.stored].reshape(-1, min(layout.tile, layout.stored))
    assert len({line.tobytes() for line in lines}) == len(lines)


# ---- decoded inside the weight gradient


def dw_error(x, dy, sketch, key) -> float:
    """max |linear_wgrad - dy^T estimate| over the bound of sums in the accumulator's precision."""
    saved = ops.pack(x, sketch.spec, key)
    dw = ops.linear_wgrad(dy, saved, x.shape[1], sketch.spec).double().numpy()
    matrix = x.contiguous().view(PATTERNS[x.dtype.itemsize]).numpy()
    name = DTYPE_NAMES[x.dtype]
    of_sample = matrix, sketch.spec, int(key), ops.rank_salt(), name
    factor = dy.double().numpy()
    exact = factor.T @ reference.estimate(*of_sample)
    # Copies of one entry have noise of their own, so terms may be larger than their sum.
    magnitude = abs(factor).T @ reference.estimate(*of_sample, magnitude=True)
    accumulator = ROUNDING[torch.float64 if x.dtype == torch.float64 else torch.float32]
    # In 16-bit products, decoded values, weighted factors and sums of copies are rounded before that.
    narrow = 0.0 if x.dtype in (torch.float32, torch.float64) else 3 * ROUNDING[x.dtype]
    bound = (len(x) + 8) * accumulator * magnitude + narrow * magnitude + ROUNDING[x.dtype] * abs(exact)
    return float((abs(dw - exact) / (bound + torch.finfo(x.dtype).smallest_normal)).max())


@every_dtype
@every_bits
@pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
def test_wgrad_is_the_product_with_the_decoded_estimate(combination, bits, dtype):
    for case in LINEARS[1:4] + LINEARS[5:]:
        for keep in (0.3, 1.0):
            x = torch.randn(case.rows, case.features, dtype=torch.float64).to(dtype)
            dy = torch.randn(case.rows, case.outputs, dtype=torch.float64).to(dtype)
            sketch = Sketch(keep, *combination, bits)
            assert dw_error(x, dy, sketch, torch.tensor(KEY + case.rows)) <= 1, (str(case), keep)


# ---- composed with sampling


@pytest.mark.parametrize("combination", BY_KEY, ids="-".join)
def test_mean_and_variance_over_keys(combination):
    """Of 4,000 keys: mean x, and variance v x^2 + (1 + v) step^2 / 12, v being the multiplier's.

    Both summed over all entries; deviations are estimated from 40 batches of keys, so that 6 of them are
    passed by chance in 5e-7 of the cases.
    """
    rows, features, batches, size, bits = 12, 12, 40, 100, 2
    x = torch.linspace(-1, 2, rows * features, dtype=torch.float64).reshape(rows, features)
    sketch = Sketch(1 / 3, *combination, bits)  # strata of three: E z^2 = 3 for each of them
    n, k = reference.sampled_length(sketch.spec, rows, features), 4
    v = (n - 1) / k if combination[1] == "with_replacement" else n / k - 1
    total = np.zeros((batches, 2))
    for batch, number in itertools.product(range(batches), range(size)):
        key = torch.tensor(7919 * (batch * size + number) + 1)
        saved = ops.pack(x, sketch.spec, key)
        estimate = ops.unpack(saved, rows, features, torch.float64, sketch.spec)
        layout = reference.saved_layout(sketch.spec, 8, rows, features)
        steps = saved[layout.step : layout.step + 2 * layout.lines].view(torch.bfloat16).double()
        # Each stored value carries step^2 / 12 and is multiplied by n / k.
        dither = (n / k) ** 2 * (steps.square() / 12).sum() * layout.stored
        error = estimate - x
        total[batch] += error.sum(), error.square().sum() - v * x.square().sum() - dither
    for deviations in total.T:
        z = deviations.mean() / (deviations.std(ddof=1) / np.sqrt(batches))
        assert abs(z) <= DEVIATION, z

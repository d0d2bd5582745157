"""Every layer with nothing to do, without a batch, with every memory layout, and with special values."""

import math

import pytest
import torch
from checks import rng_untouched, same_bits
from families import FAMILIES, NO_DROPOUTS, near, step

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
no_dropout = pytest.mark.parametrize("family", NO_DROPOUTS, ids=str)

LOSSLESS = ("LSTM",)  # the fused kernel sums in another order


def values_agree(family, got, want):
    same = same_bits if family.name not in (*LOSSLESS, "LinearCrossEntropy") else near
    assert same(got[0], want[0]), "y"
    assert len(got) == len(want)
    assert all(map(near, got[1:], want[1:])), "gradients"


# Layers whose packs have groups with a range of their own.
WITH_RANGES = ("Linear", "SwiGLU", "PReLU", "Conv")
# (layer, whether the value is NaN) that shows in the output alone: torch's slope of elu at NaN is that of
# positive numbers, or NaN, by its place in a vector; at infinity ours is the limit where torch's is NaN; a
# code of tanh's fixed range has no place for NaN.
ONLY_IN_Y = {
    *((name, True) for name in ("ELU", "CELU", "SELU", "RNN")),
    *((name, False) for name in ("GELU", "SiLU", "Mish")),
}

REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError)  # the last two are torch's own


def outcome(call):
    """The shapes of what a step returns, or the kind of its refusal."""
    try:
        return [tuple(t.shape) for t in call()]
    except REFUSALS as refusal:
        return type(refusal)


def same_values(got, want):
    return torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(), want.nan_to_num())


# ---- nothing


@every_family
def test_an_empty_batch(family):
    """Shapes and zeros as torch's, where torch has an answer; nothing is launched and nothing drawn."""
    ours, exact = family.pair()
    x = family.x()[:0]
    want = outcome(lambda: step(family, exact, x))
    torch.manual_seed(5)
    with rng_untouched():
        got = outcome(lambda: step(family, ours, x))
    if isinstance(want, type):
        assert got in REFUSALS
    else:
        assert got == want
        assert all(map(same_values, step(family, ours, x), step(family, exact, x)))


# Axes that may be empty beside the batch: of rows, channels, positions or steps.
@pytest.mark.parametrize("axis", [1, -1])
@every_family
def test_another_empty_axis(family, axis):
    """Torch's answer, or a refusal where torch refuses; for batch norm, no channels are another number of
    channels than its parameters have, which torch lets pass."""
    ours, exact = family.pair()
    x = family.x().narrow(axis, 0, 0)
    want = outcome(lambda: step(family, exact, x))
    torch.manual_seed(5)
    with rng_untouched():
        got = outcome(lambda: step(family, ours, x))
    if axis == 1 and family.name.startswith("BatchNorm"):
        assert got is ValueError
    else:
        assert got == want or (want in REFUSALS and got in REFUSALS)


# ---- shapes and layouts


@pytest.mark.filterwarnings("ignore::rad_kernels.functional.SketchWarning")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.batched and "Dropout" not in f.name], ids=str)
def test_without_a_batch(family):
    """One-dimensional rows; images, sequences and volumes without a first dimension."""
    ours, exact = family.pair()
    x = family.x()[0]
    values_agree(family, step(family, ours, x), step(family, exact, x))


def reversed_memory(x):
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def spread(x):
    """Every other entry of each axis of something larger, from an odd offset."""
    wide = x.new_zeros([2 * n + 1 for n in x.shape])
    view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    return view.copy_(x)


def overlapping(x):
    """Rows that share all but one of their entries with the next."""
    steps = [1] * x.dim()
    return torch.as_strided(x.reshape(-1), x.shape, steps)


LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "reversed": reversed_memory,
    "sliced": spread,
    "offset": lambda x: torch.cat([x.new_zeros(3), x.reshape(-1)])[3:].view(x.shape),
    "flipped": lambda x: x.flip(-1),
    "expanded batch": lambda x: x[:1].expand(x.shape),
    "expanded entries": lambda x: x[..., :1].expand(x.shape),
    "overlapping": overlapping,
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@no_dropout
def test_layouts(family, layout):
    """Values as torch's, x untouched, and dx in the layout that torch gives it."""
    ours, exact = family.pair()
    x = LAYOUTS[layout](family.x())
    before = x.clone()
    got, want = step(family, ours, x), step(family, exact, x)
    values_agree(family, got, want)
    assert same_bits(x, before)


# ---- values

ODD = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1.2e-38, -1.2e-38])


@no_dropout
def test_zeros_and_subnormal_numbers(family):
    """Their signs and bits survive in y as in torch's; nothing is divided by a range of zero."""
    ours, exact = family.pair()
    for fill in (ODD.repeat(family.x().numel())[: family.x().numel()], torch.zeros(family.x().numel())):
        x = fill.view(family.shape)
        got, want = step(family, ours, x), step(family, exact, x)
        values_agree(family, got, want)
        assert all(t.isfinite().all() for t in got)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name.startswith(WITH_RANGES)], ids=str)
def test_equal_values(family):
    """A group of equal values has no range, and decodes exactly: only the order of sums differs."""
    ours, exact = family.pair()
    for value in (1.5, -3.0):
        got, want = (step(family, layer, torch.full(family.shape, value)) for layer in (ours, exact))
        assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-4) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@no_dropout
def test_what_is_not_finite(family, value):
    """y is torch's, and every gradient that torch's layer spoils shows it somewhere."""
    ours, exact = family.pair()
    x = family.x()
    x[(1,) * x.dim()] = value
    got, want = step(family, ours, x), step(family, exact, x)
    if family.name in (*LOSSLESS, "LinearCrossEntropy"):
        assert torch.equal(got[0].isfinite(), want[0].isfinite())
    else:
        assert same_values(got[0], want[0])
    if (family.name, math.isnan(value)) in ONLY_IN_Y:
        return
    for mine, theirs in zip(got[1:], want[1:], strict=True):
        assert theirs.isfinite().all() or not mine.isfinite().all(), "a spoilt value is hidden"

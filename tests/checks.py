"""What many tests ask: which bits, which sample, and whether the random generator moved."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from cases import BY_KEY
from torch import Tensor

from rad_kernels import Sketch, nn, ops, reference

AS_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(x: Tensor) -> Tensor:
    """The bit patterns of x: unlike its values they tell -0.0 from 0.0 and compare NaNs."""
    return x.detach().clone(memory_format=torch.contiguous_format).view(AS_INTEGERS[x.dtype.itemsize])


def same_bits(actual: Tensor | None, expected: Tensor | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return (
        actual.dtype == expected.dtype
        and actual.shape == expected.shape
        and torch.equal(bits(actual.reshape(-1)), bits(expected.reshape(-1)))
    )


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Equal strides wherever they matter: the stride of a dimension of size 1 is arbitrary."""
    return all(i == j for n, i, j in zip(a.shape, a.stride(), b.stride(), strict=True) if n > 1)


@contextmanager
def rng_untouched():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the random generator was used"


def draws(action) -> int:
    """How many keys ``action`` takes from torch's generator (at most 20)."""
    start = torch.get_rng_state()
    action()
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    for count in range(20):
        if torch.equal(torch.get_rng_state(), end):
            return count
        ops.draw_key(torch.device("cpu"))
    raise AssertionError("the generator is at no whole number of keys from its start")


def next_key() -> Tensor:
    """The key that the next packing call will draw."""
    with torch.random.fork_rng(devices=[]):
        return torch.empty(1, dtype=torch.int64).random_()


def multipliers(sketch: Sketch, key: Tensor, rows: int, features: int) -> Tensor:
    """[rows, features] float64: by what each entry of an activation is multiplied in its estimate."""
    ones = torch.ones(rows, features, dtype=torch.float64)
    return ops.unpack(ops.pack(ones, sketch.spec, key), rows, features, torch.float64, sketch.spec)


def sampled(x: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
    """The estimate of x [..., features] as a float64 matrix, without rounding for weights below 2^20."""
    matrix = x.detach().reshape(-1, x.shape[-1]).double()
    if (sketch.sampling, sketch.draw) not in BY_KEY:
        return ops.unpack(ops.pack(matrix, sketch.spec, key), *matrix.shape, torch.float64, sketch.spec)
    factor = multipliers(sketch, key, *matrix.shape)
    return torch.where(factor == 0, 0.0, factor * matrix)


SKETCH = Sketch(0.25)


def pair(inputs=8, outputs=5, sketch=SKETCH, **kwargs) -> tuple[nn.Linear, torch.nn.Linear]:
    """A sampled layer and torch's with the same parameters."""
    layer = nn.Linear(inputs, outputs, sketch=sketch, **kwargs)
    exact = torch.nn.Linear(inputs, outputs, **kwargs)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


class NoGradient(torch.autograd.Function):
    """The identity, whose gradient is undefined."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


# Half the distance from 1 to the next number.
ROUNDING = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


def error_over_bound(dw: Tensor, rows: Tensor, estimate: Tensor, roundings: Tensor | int = 1) -> float:
    """max |dw - rows^T @ estimate| / its bound, with float64 rows [N, outputs] and estimate [N, features].

    The bound: N + 3 roundings in the accumulator's precision (product, weight twice, N - 1 sums, fused or
    not, in any order), then ``roundings`` into dw's dtype.
    """
    exact, magnitude, terms = rows.t() @ estimate, rows.abs().t() @ estimate.abs(), len(rows) + 3
    accumulator = ROUNDING[torch.float64 if dw.dtype == torch.float64 else torch.float32]
    gamma = terms * accumulator / (1 - terms * accumulator)
    subnormal = torch.finfo(dw.dtype).smallest_normal * torch.finfo(dw.dtype).eps
    bound = gamma * magnitude + (ROUNDING[dw.dtype] * roundings + gamma) * exact.abs() + subnormal
    return ((dw.double() - exact).abs() / bound).max().item()


# How a weight gradient tells its sample: with x = CODES and dy = identity, dW / CODES is the matrix of
# multipliers, provided that backward used the indices that forward packed. Any other index puts a value
# under the wrong code and the quotient is no multiplier.
CODED_ROWS = CODED_FEATURES = 16
CODES = torch.arange(1.0, CODED_ROWS * CODED_FEATURES + 1).view(CODED_ROWS, CODED_FEATURES)


def revealed_sample(dw: Tensor, sketch: Sketch, scale: float = 1.0) -> Tensor:
    """The multipliers [16, 16] of the call that gave ``dw`` from x = CODES and dy = scale * identity.

    Exact for codes up to 256 in every dtype when strata have 4 entries.

    Raises:
        AssertionError: the values and the indices that dW was made of do not belong to one sample.
    """
    n, k = CODED_ROWS, sketch.kept(CODED_ROWS)
    weight = torch.tensor(n / k)
    if sketch.draw == "norm":
        weight = torch.from_numpy(reference.norm_weight(reference.fixed_norms(CODES), k))[:, None]
    counts = dw.detach().double() / (CODES.double() * scale) / weight
    if sketch.draw in ("with_replacement", "norm"):
        assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-5), "values under wrong indices"
        counts = counts.round()
    if sketch.sampling in ("rows", "tile_rows"):  # CODES are one tile
        assert (counts == counts[:, :1]).all(), "rows are not whole"
        lines = counts[:, 0][None]
    elif sketch.sampling == "same":
        assert (counts == counts[:1]).all(), "features are not the same in all rows"
        lines = counts[:1]
    else:
        lines = counts
    if sketch.draw == "stratified":
        strata = lines.view(-1, k, n // k)
        assert ((strata == 0) | (strata == 1)).all(), "values under wrong indices"
        assert (strata.sum(-1) == 1).all(), "not one per stratum"
    else:
        assert (lines.sum(-1) == k).all(), "not k draws"
    if sketch.draw == "without_replacement":
        assert (lines <= 1).all(), "drawn twice"
    return counts

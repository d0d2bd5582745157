"""Pools: torch's bits in y and dx; places in ceil(log2(window)) bits, or shapes alone."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import rng_untouched, same_bits, same_strides
from torch.library import opcheck

from rad_kernels import functional, nn, ops
from rad_kernels.memory import saved_bytes

# (dimensions, arguments after x): overlapping, padded, dilated, ceil_mode, one place, uneven.
MAX = [
    (1, (2,)), (1, (3, 2, 1)), (1, (5, 3, 2, 2)), (1, (3, 2, 0, 1, True)),
    (2, (2,)), (2, (3, 2, 1)), (2, (3, 1, 1)), (2, ((2, 3), (1, 2), (0, 1), (2, 1))), (2, (2, 2, 0, 1, True)),
    (2, (3, 3, 1, 1, True)), (2, (1,)), (2, (5, 1, 2)),
    (3, (2,)), (3, (3, 2, 1)), (3, ((1, 2, 3), 2, (0, 1, 1), 1, True)),
]  # fmt: skip
AVG = [
    (1, (2,)), (1, (3, 2, 1, True, False)), (2, (2,)), (2, (3, 1, 1)), (2, ((3, 2), 2, (1, 0), True, False)),
    (2, (2, 2, 0, False, True, 3)), (3, (2,)), (3, (3, 2, 1, True, False, 5)),
]  # fmt: skip
SIZES = {1: (19,), 2: (11, 8), 3: (6, 7, 8)}


def inputs(dims, dtype):
    """Batched, unbatched, sliced, channels_last; ties among the values, NaN and whole windows of -inf."""
    x = torch.randn(2, 3, *SIZES[dims], dtype=torch.float64).mul(2).round().to(dtype)
    special = x.clone()
    special.view(-1)[::5] = torch.nan
    special[0, 1] = -torch.inf
    whole = [x, special, x[0], x[:, ::2], x.transpose(0, 1)]
    if dims > 1:
        formats = torch.channels_last, torch.channels_last_3d
        # torch's max_pool3d has index 0 for windows of -inf in this format, elsewhere their first place.
        special = special.nan_to_num(neginf=-9.0, nan=torch.nan) if dims == 3 else special
        whole += [t.to(memory_format=formats[dims - 2]) for t in (x, special)]
    return whole


def gradients(pool, x, dy=None):
    leaf = x.detach().requires_grad_()
    y = pool(leaf)
    if dy is None:
        dy = torch.randn(y.shape, dtype=torch.float64).to(y.dtype)
    return y, *torch.autograd.grad(y, leaf, dy), dy


def compare(ours, theirs, x):
    expected = gradients(theirs, x)
    for dy in (expected[2], expected[2].transpose(-1, -2).contiguous().transpose(-1, -2)):
        got = gradients(ours, x, dy)
        assert same_strides(got[0], expected[0])
        for a, b in zip(got[:2], expected[:2], strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert same_bits(a.nan_to_num(nan=9.0), b.nan_to_num(nan=9.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dims", "arguments"), MAX, ids=str)
def test_max_pool_has_torchs_bits(dims, arguments, dtype):
    ours, theirs = (getattr(m, f"max_pool{dims}d") for m in (functional, F))
    for x in inputs(dims, dtype):
        compare(lambda x: ours(x, *arguments), lambda x: theirs(x, *arguments), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dims", "arguments"), AVG, ids=str)
def test_avg_pool_has_torchs_bits(dims, arguments, dtype):
    ours, theirs = (getattr(m, f"avg_pool{dims}d") for m in (functional, F))
    if dims == 3 and dtype.itemsize == 2:
        return  # torch has none on the CPU
    for x in inputs(dims, dtype):
        compare(lambda x: ours(x, *arguments), lambda x: theirs(x, *arguments), x)


ADAPTIVE = [(1, 5), (2, 1), (2, (3, None)), (2, (4, 3)), (3, 2), (3, (1, 1, 1)), (3, (None, 3, 2))]


@pytest.mark.parametrize(("dims", "size"), ADAPTIVE, ids=str)
def test_adaptive_avg_pool_has_torchs_bits(dims, size):
    ours, theirs = (getattr(m, f"adaptive_avg_pool{dims}d") for m in (functional, F))
    for dtype in DTYPES:
        for x in inputs(dims, dtype):
            compare(lambda x: ours(x, size), lambda x: theirs(x, size), x)


ADAPTIVE_MAX = [(1, None), (1, 1), (2, 1), (2, (None, 1)), (2, (4, 3)), (3, 1), (3, (None, 1, None)), (3, 2)]


@pytest.mark.parametrize(("dims", "size"), ADAPTIVE_MAX, ids=str)
def test_adaptive_max_pool_has_torchs_bits(dims, size):
    ours, theirs = (getattr(m, f"adaptive_max_pool{dims}d") for m in (functional, F))
    for dtype in DTYPES:
        for x in inputs(dims, dtype):
            wanted = x.shape[-1] if dims == 1 and size is None else size
            compare(lambda x: ours(x, size), lambda x, wanted=wanted: theirs(x, wanted), x)
    x = torch.randn(2, 3, *(8, 6, 4)[:dims], requires_grad=True)
    pool, windows = (4, 3, 2)[:dims], (2,) * dims
    compare(lambda x: ours(x, pool), lambda x: theirs(x, pool if dims > 1 else pool[0]), x.detach())
    kept = saved_bytes(lambda: ours(x * 1, pool)).total
    assert kept == 4 * ops.pool_code_words(ours(x, pool).numel(), windows)
    found, expected = ours(x, pool, True), theirs(x, pool if dims > 1 else pool[0], True)
    assert same_bits(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_retained_bytes_are_the_formula():
    for dims, arguments in MAX:
        x = torch.randn(2, 3, *SIZES[dims], requires_grad=True)
        pool = getattr(functional, f"max_pool{dims}d")
        y = pool(x, *arguments)
        window = arguments[0] if isinstance(arguments[0], tuple) else (arguments[0],) * dims
        bytes_ = 4 * ops.pool_code_words(y.numel(), window)
        assert saved_bytes(lambda x=x, pool=pool, a=arguments: pool(x * 1, *a)).total == bytes_
    assert ops.pool_code_words(32 * 10, (2, 2)) == 20 and ops.pool_code_words(33, (3, 3)) == 8
    for dims, arguments in AVG:
        x, pool = torch.randn(2, 3, *SIZES[dims], requires_grad=True), getattr(functional, f"avg_pool{dims}d")
        assert saved_bytes(lambda x=x, pool=pool, a=arguments: pool(x * 1, *a)).total == 0
        pool = getattr(functional, f"adaptive_avg_pool{dims}d")
        assert saved_bytes(lambda x=x, pool=pool: pool(x * 1, 2)).total == 0


def test_derivatives():
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    for pool in (
        lambda x: functional.avg_pool2d(x, 3, 2, 1),
        lambda x: functional.adaptive_avg_pool2d(x, (2, 4)),
    ):
        assert torch.autograd.gradcheck(pool, x) and torch.autograd.gradgradcheck(pool, x)
    assert torch.autograd.gradcheck(lambda x: functional.max_pool2d(x, 2), x)
    y, dy = functional.max_pool2d(x, 2), torch.ones(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    with pytest.raises(RuntimeError, match="max pooling cannot be differentiated again"):
        dx.sum().backward()
    grads = [torch.func.grad(lambda x, f=f: f(x, 2).pow(2).sum())(x.detach())
             for f in (functional.max_pool2d, F.max_pool2d)]  # fmt: skip
    assert same_bits(*grads)


def test_without_gradients_it_is_torchs():
    x = torch.randn(2, 3, 8, 8)
    with rng_untouched():
        assert same_bits(functional.max_pool2d(x, 2), F.max_pool2d(x, 2))
        x.requires_grad_()
        got, expected = (f(x, 2, return_indices=True) for f in (functional.max_pool2d, F.max_pool2d))
        assert same_bits(got[0], expected[0]) and torch.equal(got[1], expected[1])
        assert functional.max_pool2d(x[:0], 2).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()
    layers = torch.nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2))
    compiled = torch.compile(layers, backend=backend, fullgraph=True, dynamic=True)
    for size in (20, 27):
        x = torch.randn(2, 3, size, size + 1)
        got, expected = gradients(compiled, x), None
        expected = gradients(layers, x, got[2])
        torch.testing.assert_close(got[:2], expected[:2])


def test_layers():
    made = [nn.MaxPool1d(3), nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d(3, 2, 1), nn.MaxPool3d(2),
            nn.AvgPool1d(2), nn.AvgPool2d(3, 2, 1), nn.AvgPool3d(2, divisor_override=3),
            nn.AdaptiveAvgPool1d(3), nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveAvgPool3d(2),
            nn.AdaptiveMaxPool1d(1), nn.AdaptiveMaxPool2d((None, 1)), nn.AdaptiveMaxPool3d(1)]  # fmt: skip
    for layer in made:
        base = type(layer).__mro__[1]
        exact = base.__new__(base)
        exact.__dict__.update(layer.__dict__)
        x = torch.randn(2, 3, *SIZES[int(type(layer).__name__[-2])])
        assert base.__module__ == "torch.nn.modules.pooling" and repr(layer) == repr(exact)
        assert all(map(same_bits, *(layer_outputs(f, x) for f in (layer, exact))))
        assert all(map(same_bits, *(layer_outputs(f, x) for f in (layer.eval(), exact))))


def layer_outputs(layer, x):
    torch.manual_seed(2)
    first = lambda x: y[0] if isinstance(y := layer(x), tuple) else y  # noqa: E731
    return gradients(first, x)[:2]


def test_errors():
    x = torch.ones(2, 3, 8, 8, requires_grad=True)
    for call, message in (
        (lambda: functional.max_pool2d(x, 2, padding=2), "padding must be at most half of the window"),
        (lambda: functional.max_pool2d(x, 9), "kernel_size 9 is too large for H = 8"),
        (lambda: functional.max_pool2d(x, 0), "kernel_size must be one or 2 integers of at least 1, got 0"),
        (lambda: functional.max_pool2d(x, (1, 2, 3)), "kernel_size must be one or 2 integers"),
        (lambda: functional.max_pool2d(x[0, 0], 2), "x must have 3 or 4 dimensions"),
        (lambda: functional.avg_pool3d(x[0], 2), "x must have 4 or 5 dimensions"),
        (lambda: functional.adaptive_avg_pool2d(x, (1, 2, 3)), "output_size must be one or 2 integers"),
        (lambda: functional.adaptive_max_pool2d(x, (1, 2, 3)), "output_size must be one or 2 integers"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call in (lambda: functional.max_pool2d(x.int(), 2), lambda: functional.max_pool2d(x, 2.0),
                 lambda: functional.avg_pool2d(x.long(), 2)):  # fmt: skip
        with pytest.raises(TypeError, match="must"):
            call()


def test_opcheck_and_refusals():
    geometry = (1, 3, 2, 1, 2, 2, 0, 1, 0, 1, 1, 1)
    x = torch.randn(4, 1, 6, 8, 3)
    opcheck(torch.ops.rad_kernels.max_pool, (x, (1, 3, 4), geometry))
    y, codes = ops.max_pool(x, (1, 3, 4), geometry)
    opcheck(torch.ops.rad_kernels.max_pool_backward, (y, codes, (1, 6, 8), geometry))
    for call, message in (
        (lambda: ops.max_pool(x[..., ::2], (1, 3, 4), geometry), "x must be contiguous"),
        (lambda: ops.max_pool(x, (1, 5, 4), geometry), "a window lies outside the input"),
        (lambda: ops.max_pool(x, (1, 3, 4), geometry[:-1]), "twelve numbers"),
        (lambda: ops.max_pool_backward(y, codes[1:], (1, 6, 8), geometry), "codes must hold"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_any_number_of_threads():
    x, threads, results = torch.randn(40, 7, 33, 31), torch.get_num_threads(), []
    try:
        for count, last in itertools.product((1, 3), (False, True)):
            torch.set_num_threads(count)
            given = x.to(memory_format=torch.channels_last) if last else x
            torch.manual_seed(1)
            results.append(gradients(lambda x: functional.max_pool2d(x, 3, 2, 1), given)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results)

"""The sampled Linear against torch's: y, dx and db bit for bit, dW against the matrix that was sampled."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import COMBINATIONS, DTYPES, ENTRYWISE, LAYOUTS, LINEARS
from checks import error_over_bound, multipliers, next_key, rng_untouched, same_bits, same_strides, sampled

from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.functional import SketchWarning
from rad_kernels.sketch import SAMPLINGS, saved_nbytes

ONE_ROW_IS_EXACT = pytest.mark.filterwarnings("ignore::rad_kernels.functional.SketchWarning")


def randn(*shape, dtype):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


# Layouts of dy [..., outputs].
GRADIENTS = {
    "contiguous": lambda shape, dtype: randn(*shape, dtype=dtype),
    "expanded": lambda shape, dtype: torch.ones((), dtype=dtype).expand(shape),
    "transposed": lambda shape, dtype: randn(*shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1]),
    "sliced": lambda shape, dtype: randn(*shape[:-1], 2 * shape[-1] + 1, dtype=dtype)[..., 1::2],
}


@ONE_ROW_IS_EXACT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_y_dx_and_db_have_torchs_bits_and_strides(layout, dtype):
    base = LAYOUTS[layout](randn(48, 33, dtype=dtype))
    for outputs, bias in ((1, None), (40, None), (40, randn(40, dtype=dtype).requires_grad_())):
        x, weight = base.detach().requires_grad_(), randn(outputs, 33, dtype=dtype).requires_grad_()
        inputs = [x] if bias is None else [x, bias]
        expected_y = F.linear(x, weight, bias)
        gradients = [make(expected_y.shape, dtype) for make in GRADIENTS.values()]
        expected = [torch.autograd.grad(expected_y, inputs, dy, retain_graph=True) for dy in gradients]
        for sampling in SAMPLINGS:
            y = functional.linear(x, weight, bias, Sketch(0.25, sampling))
            assert same_bits(y, expected_y) and same_strides(y, expected_y)
            for dy, wanted in zip(gradients, expected, strict=True):
                got = torch.autograd.grad(y, inputs, dy, retain_graph=True)
                assert all(map(same_bits, got, wanted)), (outputs, sampling)
                assert same_strides(got[0], wanted[0]), (outputs, sampling)


def dw_error(x, dy, sketch):
    """max |dW of the layer - float64 product with the sampled matrix| / its bound."""
    weight = torch.zeros(dy.shape[-1], x.shape[-1], dtype=x.dtype, requires_grad=True)
    rows, key = dy.detach().reshape(-1, dy.shape[-1]).double(), next_key()
    functional.linear(x, weight, None, sketch).backward(dy)
    return error_over_bound(
        weight.grad, rows, sampled(x, sketch, key), copies(sketch, key, rows, x.shape[-1])
    )


def copies(sketch, key, rows, features):
    """How often each feature was drawn by ``same`` with replacement; 1 for everything else."""
    if (sketch.sampling, sketch.draw) != ("same", "with_replacement"):
        return 1
    times = multipliers(sketch, key, len(rows), features)[0] * sketch.kept(features) / features
    return times.clamp(min=1)


@ONE_ROW_IS_EXACT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
def test_dw_is_the_product_with_the_sampled_matrix(combination, dtype):
    for case in LINEARS:
        for keep in (0.07, 0.3, 0.5):
            sketch = Sketch(keep, *combination)
            if not sketch.is_worthwhile(case.rows, case.features, dtype):
                continue
            x, dy = randn(case.rows, case.features, dtype=dtype), randn(case.rows, case.outputs, dtype=dtype)
            assert dw_error(x, dy, sketch) <= 1, (str(case), keep)


@ONE_ROW_IS_EXACT
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dw_for_every_layout_of_x_and_dy(layout, dtype):
    x = LAYOUTS[layout](randn(48, 33, dtype=dtype))
    for make in GRADIENTS.values():
        for combination in ENTRYWISE:
            sketch = Sketch(0.25, *combination)
            if not sketch.is_worthwhile(x.numel() // 33, 33, dtype):
                continue
            assert dw_error(x, make((*x.shape[:-1], 5), dtype), sketch) <= 1, combination


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("draw", ["stratified", "with_replacement"])
def test_products_in_several_blocks(draw, dtype):
    """More gathered dy than 4 MiB (rows) and more columns of dW than 1 MiB (same): two blocks and more, with
    strata of two lengths that change within a block."""
    for sampling, rows, features, outputs in (("rows", 3500, 4, 1500), ("same", 8, 1500, 700)):
        x, dy = randn(rows, features, dtype=dtype), randn(rows, outputs, dtype=dtype)
        assert dw_error(x, dy, Sketch(0.6, sampling, draw)) <= 1


def torchs_gradient(x, dy, sketch, key, dtype):
    """torch's dW in ``dtype`` from the sample written out, less the rows or columns that are zero in it."""
    factor = multipliers(sketch, key, *x.shape)
    estimate = (x.double() * factor).to(dtype)
    if sketch.sampling in ("rows", "tile_rows"):  # 64 features are one tile
        kept = factor[:, 0] != 0
        return dy[kept].t() @ estimate[kept]
    if sketch.sampling == "same":
        kept = factor[0] != 0
        dw = torch.zeros(dy.shape[1], x.shape[1], dtype=dtype)
        dw[:, kept] = dy.t() @ estimate[:, kept]
        return dw
    return dy.t() @ estimate


def one_after_another(x, dy, sketch, key, dtype):
    """dW summed row by row in fp32 or fp64: what a kernel with one accumulator per entry does."""
    estimate = (x.double() * multipliers(sketch, key, *x.shape)).to(dtype)
    dw = torch.zeros(dy.shape[1], x.shape[1], dtype=dtype)
    for g, row in zip(dy, estimate, strict=True):
        dw += torch.outer(g, row)
    return dw


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sampling", [name for name in SAMPLINGS if name != "project"])
def test_dw_is_as_accurate_as_torchs_on_the_same_sample(sampling, dtype):
    """Root mean square error over all entries and 8 samples, against extended precision, relative to torch's
    gradient in the same dtype from the same sample. Strata of 4 make the weighted sample exact in every
    dtype, so that both sides sum the same numbers.

    At most 1.02: two ways of summing the same numbers differ by up to 2 % in the error of so few entries.
    ``different`` has no counterpart in torch at fp32 and fp64 (torch multiplies by its zeros, in blocks):
    there the yardstick is a plain sum in the order of the rows.
    """
    sketch = Sketch(0.25, sampling)
    yardstick = torchs_gradient
    if sampling == "different" and dtype in (torch.float32, torch.float64):
        yardstick = one_after_another
    errors = np.zeros(2)
    for _ in range(8):
        x, dy = randn(512, 64, dtype=dtype), randn(512, 48, dtype=dtype)
        key = next_key()
        extended = [t.double().numpy().astype(np.longdouble) for t in (dy, sampled(x, sketch, key))]
        exact = extended[0].T @ extended[1]
        weight = torch.zeros(48, 64, dtype=dtype, requires_grad=True)
        functional.linear(x, weight, None, sketch).backward(dy)
        for i, dw in enumerate((weight.grad, yardstick(x, dy, sketch, key, dtype))):
            errors[i] += np.square(dw.double().numpy() - exact).sum()
    assert 0 < np.sqrt(errors[0] / errors[1]) <= 1.02


@pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
def test_weights_of_a_sample_cannot_overflow(combination):
    """Half of float16's range: a sample stored multiplied by its weight of 10 would be infinite."""
    x = torch.full((40, 20), 32752.0, dtype=torch.float16)
    weight = torch.zeros(3, 20, dtype=torch.float16, requires_grad=True)
    dy = torch.full((40, 3), 2.0**-9, dtype=torch.float16)
    functional.linear(x, weight, None, Sketch(0.1, *combination)).backward(dy)
    assert weight.grad.isfinite().all() and weight.grad.any()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shape, outputs", [((0, 8), 5), ((3, 0, 8), 5), ((4, 0), 5), ((0,), 5), ((0, 0), 0)])
def test_an_empty_input_is_exact_and_draws_nothing(shape, outputs, sampling):
    layer, exact = (
        nn.Linear(shape[-1], outputs, sketch=Sketch(0.1, sampling)),
        torch.nn.Linear(shape[-1], outputs),
    )
    exact.load_state_dict(layer.state_dict())
    results = []
    for module in (layer, exact):
        x = torch.zeros(shape, requires_grad=True)
        with rng_untouched():
            y = module(x)
        y.sum().backward()
        results.append((y, x.grad, module.weight.grad, module.bias.grad))
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_a_layer_without_outputs(combination):
    layer = nn.Linear(8, 0, sketch=Sketch(0.1, *combination))
    x = torch.randn(40, 8, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (40, 0) and layer.weight.grad.shape == (0, 8) and not x.grad.any()


@pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
def test_ops_take_empty_matrices(combination):
    spec, key = Sketch(0.1, *combination).spec, torch.tensor([5])
    for rows, features, outputs in [(0, 8, 5), (4, 0, 5), (4, 8, 0), (0, 0, 0)]:
        y, saved = ops.linear(torch.ones(rows, features), torch.ones(outputs, features), None, spec, key)
        dw = ops.linear_wgrad(torch.ones(rows, outputs), saved, features, spec)
        estimate = ops.unpack(saved, rows, features, torch.float32, spec)
        assert y.shape == (rows, outputs) and dw.shape == (outputs, features) and not dw.any()
        assert estimate.shape == (rows, features)


@pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
@pytest.mark.parametrize("rows, features", [(1, 64), (64, 1), (1, 1), (2, 2)])
def test_the_smallest_samples(rows, features, combination):
    """k = 1, through the ops: a layer would keep most of these exactly."""
    sketch, key = Sketch(1e-6, *combination), torch.tensor([11])
    x, dy = torch.randn(rows, features), torch.randn(rows, 3)
    saved = ops.pack(x, sketch.spec, key)
    dw = ops.linear_wgrad(dy, saved, features, sketch.spec)
    assert error_over_bound(dw, dy.double(), sampled(x, sketch, key), 1) <= 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_keep_1_is_torchs_path(sampling):
    layer, exact = nn.Linear(16, 8, sketch=Sketch(1, sampling)), torch.nn.Linear(16, 8)
    exact.load_state_dict(layer.state_dict())
    x, dy = torch.randn(40, 16), torch.randn(40, 8)
    with rng_untouched():
        y = layer(x)
        y.backward(dy)
        expected = exact(x)
        expected.backward(dy)
    assert type(y.grad_fn) is type(expected.grad_fn)
    assert same_bits(layer.weight.grad, exact.weight.grad) and same_bits(y, expected)


def test_a_pack_of_90_percent_is_kept_exactly_with_a_warning():
    # 10 rows of 16 floats are 640 bytes, 8 of them with the trailer 576: 90 % to the byte.
    assert saved_nbytes(10, 16, torch.float32, Sketch(0.8)) == 576
    assert not Sketch(0.8).is_worthwhile(10, 16, torch.float32)
    assert Sketch(0.8).is_worthwhile(10, 16, torch.float64)
    layer = nn.Linear(16, 3, sketch=Sketch(0.8))
    x, dy = torch.randn(10, 16), torch.randn(10, 3)
    with rng_untouched(), pytest.warns(SketchWarning, match=r"rows:0\.8 would keep 576 of the 640 bytes"):
        y = layer(x)
    y.backward(dy)
    assert torch.equal(layer.weight.grad, dy.t() @ x)

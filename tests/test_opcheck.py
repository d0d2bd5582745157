"""torch.library.opcheck of every op: schema (aliasing, mutation), autograd registration, fake, compilation
with symbolic shapes. It cannot see which sample is used: test_compile.py does."""

import pytest
import torch
from cases import COMBINATIONS, DTYPES, LAYOUTS
from conv_cases import ConvCase
from torch.library import opcheck

from rad_kernels import Sketch
from rad_kernels.sketch import SAMPLINGS

CONVOLUTIONS = [
    ConvCase(2, 4, (7, 6), 6, (3, 2), stride=2, padding=1, groups=2),
    ConvCase(2, 3, (9,), 5, (3,), padding=1, transposed=True, stride=2, output_padding=1),
]
OPS = torch.ops.rad_kernels
KEY = torch.tensor([2**62 + 12345])
every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def check(op, *args):
    """All four checks, with inputs that need no gradient: that is how the layers call ops."""
    report = opcheck(op, args)
    assert set(report.values()) == {"SUCCESS"} and len(report) == 4


@every_dtype
@every_combination
def test_linear_ops(combination, dtype):
    sketch = Sketch(0.3, *combination)
    weights, biases = [randn(m, 12, dtype=dtype) for m in (5, 1)], [randn(5, dtype=dtype), None]
    x = randn(4, 10, 12, dtype=dtype)
    check(OPS.linear.default, x, weights[0], biases[0], sketch.spec, 0, KEY)
    check(OPS.linear.default, x[0], weights[1], None, sketch.spec, 2**32 - 1, KEY)
    check(OPS.linear_shared.default, x, weights, biases, sketch.spec, 3, KEY)
    check(OPS.pack.default, x, sketch.spec, 0, KEY)
    saved = OPS.pack(x, sketch.spec, 0, KEY)
    check(OPS.linear_wgrad.default, randn(4, 10, 5, dtype=dtype), saved, 12, sketch.spec)
    check(OPS.unpack.default, saved, sketch.spec, 40, 12, dtype)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_x(layout, sampling):
    x = LAYOUTS[layout](randn(12, 9))
    check(OPS.linear.default, x, randn(5, 9), randn(5), Sketch(0.3, sampling).spec, 0, KEY)


@every_combination
def test_empty_matrices(combination):
    spec = Sketch(0.3, *combination).spec
    for rows, features, outputs in [(0, 8, 5), (4, 0, 5), (4, 8, 0)]:
        check(
            OPS.linear.default, torch.ones(rows, features), torch.ones(outputs, features), None, spec, 0, KEY
        )
        saved = OPS.pack(torch.ones(rows, features), spec, 0, KEY)
        check(OPS.linear_wgrad.default, torch.ones(rows, outputs), saved, features, spec)


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (1,), (33,), (3, 11, 2)], ids=str)
def test_relu_ops(shape, dtype):
    x = randn(*shape, dtype=dtype)
    check(OPS.relu.default, x)
    check(OPS.relu_.default, x.clone())
    y, mask = OPS.relu(x)
    check(OPS.masked.default, randn(*shape, dtype=dtype), mask, list(y.stride()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_of_layouts(layout):
    x = LAYOUTS[layout](randn(12, 9))
    check(OPS.relu.default, x)
    y, mask = OPS.relu(x)
    check(OPS.masked.default, randn(*x.shape), mask, list(y.stride()))
    check(OPS.masked.default, torch.ones(()).expand(x.shape), mask, list(y.stride()))


@every_dtype
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_ops(case, dtype):
    x, weight, dy = case.data(dtype)
    for sketch in (Sketch(0.3), Sketch(0.3, "different"), Sketch(1, bits=4)):
        by_channel = sketch.sampling != "rows"
        how = [*case.geometry, sketch.spec, by_channel]
        check(OPS.conv.default, x, weight, None, *how, 0, KEY)
        saved = OPS.conv(x, weight, None, *how, 0, KEY)[1]
        del how[4]  # output padding
        check(OPS.conv_wgrad.default, dy, saved, x.shape, weight.shape, *how)


@every_dtype
def test_norm_ops(dtype):
    x = randn(3, 6, 5, 4, dtype=dtype)
    w, b = randn(6, dtype=dtype), randn(6, dtype=dtype)
    flat = randn(7, 6, dtype=dtype)
    check(OPS.layer_norm.default, flat, [6], w, b, 1e-5, 4, 0, KEY)
    check(OPS.rms_norm.default, flat, [6], w, 1e-5, 8, 0, KEY)
    check(OPS.group_norm.default, x, 2, w, b, 1e-5, 2, 0, KEY)
    running = [torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)]
    check(OPS.batch_norm.default, x, w, b, *running, 0.1, 1e-5, 20, 1, 0, KEY)
    check(OPS.batch_norm.default, flat, None, None, None, None, 0.1, 1e-5, 1, 4, 0, KEY)
    _, saved, rstd = OPS.layer_norm(flat, [6], w, b, 1e-5, 4, 0, KEY)
    geometry = (6, 6, 1, False, True, 4)
    check(
        OPS.norm_backward.default,
        randn(7, 6, dtype=dtype),
        saved,
        rstd,
        w.to(rstd.dtype),
        *geometry,
        True,
        True,
    )
    check(OPS.norm_backward.default, randn(7, 6, dtype=dtype), saved, rstd, None, *geometry, False, True)

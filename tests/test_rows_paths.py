"""The two ways to the weight gradient of rows and tile_rows: one kernel, or gathering and the BLAS."""

import pytest
import torch

from rad_kernels import ops
from rad_kernels.sketch import Sketch

SKETCHES = [
    Sketch(0.3),
    Sketch(0.5, "tile_rows", "with_replacement"),
    Sketch(0.3, "rows", "norm"),
    Sketch(0.3, "rows", bits=4),
    Sketch(0.5, "tile_rows", "without_replacement", bits=8),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sketch", SKETCHES, ids=str)
def test_both_paths_are_the_product_with_the_estimate(sketch, dtype):
    rows, features, outputs = 50, 140, 37
    torch.manual_seed(1)
    x, dy = torch.randn(rows, features).to(dtype), torch.randn(5, 10, outputs).to(dtype)
    saved = ops.pack(x, sketch.spec)
    flat = dy.reshape(rows, outputs).double()
    estimate = ops.unpack(saved, rows, features, dtype, sketch.spec).double()
    want, magnitude = flat.t() @ estimate, flat.t().abs() @ estimate.abs()
    # The estimate, dy's own weights and dW are each rounded once, by at most half a unit.
    bound = 4 * torch.finfo(dtype).eps / 2 * magnitude
    paths = [ops.rows_wgrad(dy, saved, features, sketch.spec, fused=fused) for fused in (True, False)]
    for dw in paths:
        assert dw.dtype == dtype and dw.shape == (outputs, features)
        assert ((dw.double() - want).abs() <= bound).all()
    assert torch.equal(paths[1], ops.linear_wgrad(dy, saved, features, sketch.spec))


def test_the_fused_path_takes_16_bits_and_rows_alone():
    x = torch.randn(8, 6)
    with pytest.raises(RuntimeError, match="fused path takes bf16 and fp16"):
        ops.rows_wgrad(x, ops.pack(x, Sketch(0.5).spec), 6, Sketch(0.5).spec, fused=True)
    same = Sketch(0.5, "same").spec
    with pytest.raises(RuntimeError, match="rows or tile_rows"):
        ops.rows_wgrad(x, ops.pack(x, same), 6, same, fused=False)


def test_opcheck():
    x, spec = torch.randn(8, 6, dtype=torch.bfloat16), Sketch(0.5).spec
    for fused in (True, False):
        args = (x, ops.pack(x, spec), 6, spec, fused)
        torch.library.opcheck(torch.ops.rad_kernels.rows_wgrad.default, args)

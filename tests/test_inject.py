"""Random matrix injection inside a torch model: the identity forward, P dy with E[P] = I backward."""

import numpy as np
import pytest
import torch
from cases import COMBINATIONS, DTYPES
from checks import draws, next_key, rng_untouched, same_bits
from enumeration import Design, search_keys

from rad_kernels import Sketch, functional, memory, ops
from rad_kernels.sketch import WITHOUT_BITS

CODED = [(c, bits) for c in COMBINATIONS for bits in (None, 4) if bits is None or c[0] not in WITHOUT_BITS]


@pytest.mark.parametrize(("combination", "bits"), CODED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_gradient_is_the_sketchs_estimate(combination, bits, dtype):
    sketch = Sketch(0.3, *combination, bits)
    x = torch.randn(3, 4, 140, dtype=torch.float64).to(dtype).requires_grad_()
    dy = torch.randn(3, 4, 140, dtype=torch.float64).to(dtype)
    key = next_key()
    y = functional.inject(x, sketch)
    assert same_bits(y, x) and y.data_ptr() == x.data_ptr()
    y.backward(dy, retain_graph=True)
    estimate = ops.unpack(ops.pack(dy, sketch.spec, key), 12, 140, dtype, sketch.spec).view_as(x)
    assert same_bits(x.grad, estimate)
    assert same_bits(torch.autograd.grad(y, x, dy)[0], estimate)


DESIGNS = [
    Design("rows", "stratified", 5, 2, 2),
    Design("same", "stratified", 2, 5, 2),
    Design("different", "stratified", 2, 5, 2),
    Design("different", "with_replacement", 2, 4, 1),
    Design("project", "stratified", 2, 3, 2),
]


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_unbiased_over_every_outcome_of_two_injections(design, monkeypatch):
    """tanh -> inject -> product -> inject: two independent P meet along every path from the loss to x."""
    keys = [torch.tensor([k]) for k in search_keys(design, 0).view(np.int64).tolist()]
    x = torch.randn(design.rows, design.features, dtype=torch.float64, requires_grad=True)
    w = torch.randn(design.features, design.features, dtype=torch.float64)

    def gradient(sketch, *drawn):
        queue = iter(drawn)
        monkeypatch.setattr(ops, "draw_key", lambda device: next(queue))
        y = functional.inject(torch.tanh(x), sketch)
        return torch.autograd.grad((functional.inject(y @ w, sketch) ** 3).sum(), x)[0]

    exact = gradient(Sketch(1))
    found = torch.stack([gradient(design.sketch, a, b) for a in keys for b in keys])
    assert (found.mean(0) - exact).abs().max() <= 1e-12 * exact.abs().max()
    assert (found - exact).abs().max() > 0.1 * exact.abs().max()


def test_what_is_kept_and_drawn():
    x = torch.randn(20, 50, requires_grad=True)
    sketch = Sketch(0.1)
    assert memory.saved_bytes(lambda: functional.inject(x, sketch)).total == 8
    assert draws(lambda: functional.inject(x, sketch)) == 1
    with torch.no_grad():
        assert draws(lambda: functional.inject(x, sketch)) == 1
    with rng_untouched():
        assert functional.inject(x, Sketch(1)) is x
        empty = torch.ones(0, 3)
        assert functional.inject(empty, sketch) is empty
        with torch.inference_mode():
            assert functional.inject(x, sketch) is x


def test_strides_and_changes_in_place():
    x = torch.randn(12, 9, requires_grad=True)
    key = next_key()
    y = functional.inject(x.t(), Sketch(0.3, "different"))
    dy = torch.randn(12, 9).t()
    y.backward(dy)
    saved = ops.pack(dy.contiguous(), Sketch(0.3, "different").spec, key)
    assert same_bits(x.grad.t(), ops.unpack(saved, 9, 12, torch.float32, Sketch(0.3, "different").spec))
    with pytest.raises(RuntimeError, match="is a view and is being modified inplace"):
        torch.relu_(functional.inject(torch.tanh(x), Sketch(0.3)))


def test_a_second_derivative_raises():
    x = torch.randn(6, 8, requires_grad=True)
    (first,) = torch.autograd.grad(functional.inject(x**2, Sketch(0.3)).sum(), x, create_graph=True)
    first.sum().backward()  # by way of x alone, this is the derivative of the estimate's other factor
    (second,) = torch.autograd.grad((functional.inject(x, Sketch(0.3)) ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="an injected gradient cannot be differentiated again"):
        second.sum().backward()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_are_estimates(backend):
    """Every entry is 0 or n / k times the exact one, with another sample in every call."""
    x = torch.randn(8, 32, requires_grad=True)

    @torch.compile(backend=backend, fullgraph=True)
    def loss(x):
        return (functional.inject(torch.tanh(x), Sketch(0.25, "different")) * 3).sum()

    torch._dynamo.reset()
    found = torch.stack([torch.autograd.grad(loss(x), x)[0] for _ in range(3)])
    exact = 3 * (1 - torch.tanh(x.detach()) ** 2)
    hit = found != 0
    assert torch.allclose(found[hit], (4 * exact).expand_as(found)[hit]) and (hit.sum((1, 2)) == 64).all()
    assert (hit[0] != hit[1]).any() and (hit[1] != hit[2]).any()


def test_wrong_arguments():
    with rng_untouched():
        with pytest.raises(TypeError, match=r"sketch must be a rad_kernels.Sketch, got 0.1"):
            functional.inject(torch.ones(2, 2), 0.1)
        with pytest.raises(TypeError, match="x must be a Tensor, got list"):
            functional.inject([1.0], Sketch(0.1))
        with pytest.raises(ValueError, match="x must have at least one dimension"):
            functional.inject(torch.tensor(1.0), Sketch(0.1))

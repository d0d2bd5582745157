"""Faults of the first implementation of randomized automatic differentiation (Oktay et al. 2021; layers.py,
published with the paper) in Linear and ReLU: one test each, that they are right here."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from cases import ENTRYWISE
from checks import SKETCH, draws, error_over_bound, next_key, pair, rng_untouched, same_bits, sampled
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.memory import saved_bytes, step_peak
from rad_kernels.sketch import saved_nbytes

# A projection stores sums, which 16-bit dtypes round: its own tests bound that.
every_sampling = pytest.mark.parametrize("sampling", dict(ENTRYWISE))


def exact_but_dw(layer, exact, x, autocast=None):
    """A step of both layers: y, dx and db must be equal bits, dW that of the sample."""
    values, key, results = x.detach(), next_key(), []
    for module in (layer, exact):
        x = values.clone().requires_grad_()
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            y = module(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
        results.append((y, x.grad, None if module.bias is None else module.bias.grad))
    assert all(map(same_bits, *results))
    dy = torch.linspace(-1, 1, y.numel()).to(y.dtype).view(-1, y.shape[-1]).double()
    estimate = sampled(values.to(y.dtype), layer.sketch, key)
    assert error_over_bound(layer.weight.grad.to(y.dtype), dy, estimate) <= 1


# ---- calls that raised


@every_sampling
def test_inputs_of_three_dimensions(sampling):
    exact_but_dw(*pair(sketch=Sketch(0.25, sampling)), torch.randn(4, 10, 8))


@pytest.mark.parametrize("sampling", ["same", "different"])
def test_inputs_of_one_dimension(sampling):
    exact_but_dw(*pair(128, 5, sketch=Sketch(0.25, sampling)), torch.randn(128))


@pytest.mark.parametrize("keep", [0.25, 1])
def test_no_bias(keep):
    layer, exact = pair(bias=False, sketch=Sketch(keep))
    if keep == 1:
        layer(torch.randn(40, 8)).sum().backward()
        assert layer.weight.grad is not None
    else:
        exact_but_dw(layer, exact, torch.randn(40, 8))


@every_sampling
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(dtype, sampling):
    exact_but_dw(*pair(dtype=dtype, sketch=Sketch(0.25, sampling)), torch.randn(40, 8).to(dtype))


@every_sampling
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, sampling):
    exact_but_dw(*pair(sketch=Sketch(0.25, sampling)), torch.randn(40, 8), autocast=dtype)


def test_autograd_grad():
    layer, _ = pair()
    x = torch.randn(40, 8, requires_grad=True)
    for inputs in ((x,), (layer.weight,), (layer.bias,), (x, layer.weight, layer.bias)):
        assert all(g is not None for g in torch.autograd.grad(layer(x).sum(), inputs))
    hidden = torch.randn(40, requires_grad=True)
    assert torch.equal(torch.autograd.grad(nn.ReLU()(hidden).sum(), hidden)[0], (hidden > 0).float())


def test_backward_with_inputs():
    layer, _ = pair()
    layer(torch.randn(40, 8)).sum().backward(inputs=[layer.weight])
    assert layer.weight.grad is not None and layer.bias.grad is None


def test_gradcheck():
    layer = nn.Linear(4, 3, dtype=torch.float64, sketch=SKETCH)
    x = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradcheck(nn.ReLU(), x)


def test_func():
    weight, x = torch.randn(5, 8), torch.randn(40, 8)
    key = next_key()
    dw = torch.func.grad(lambda w: functional.linear(x, w, None, SKETCH).sum())(weight)
    expected = torch.ones(5, 40).double() @ sampled(x, SKETCH, key)
    torch.testing.assert_close(dw, expected.float())
    assert torch.equal(torch.func.grad(lambda x: functional.relu(x).sum())(x), (x > 0).float())


def test_compile_without_graph_breaks():
    model = torch.nn.Sequential(nn.Linear(8, 5, sketch=SKETCH), nn.ReLU())
    torch.compile(model, backend="eager", fullgraph=True)(torch.randn(40, 8)).sum().backward()


@pytest.mark.parametrize("keep", [0, 1e-9, -0.1, 1.5, float("nan"), float("inf")])
def test_impossible_shares_are_refused_at_construction(keep):
    """They divided by zero, made tensors of negative size, or failed in backward only; and a projection with
    keep = 1e-9 gave a weight gradient of zero."""
    with rng_untouched(), pytest.raises(ValueError, match=r"keep must be (in \(0, 1\]|at least 1e-6), got"):
        nn.Linear(8, 5, sketch=Sketch(keep))


# ---- silently wrong


def test_relu_is_unbiased_because_it_is_exact():
    """A mean of (1 - (1 - 1/d)^k) dy was returned on active units: .4375 dy for d = 4, k = 2."""
    x = torch.tensor([-1.0, 2.0, 3.0, -4.0], requires_grad=True)
    functional.relu(x).backward(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    assert x.grad.tolist() == [0, 6, 7, 0]


def test_nearly_everything_kept_is_exactly_everything():
    """keep = 1 - 1e-12 kept all the memory and sampled with replacement nevertheless."""
    layer, exact = pair(sketch=Sketch(1 - 1e-12))
    x = torch.randn(40, 8)
    with rng_untouched():
        layer(x).square().sum().backward()
    exact(x).square().sum().backward()
    assert same_bits(layer.weight.grad, exact.weight.grad)


def test_eval_does_not_randomize_gradients():
    layer, exact = pair()
    layer.eval()
    x = torch.randn(40, 8)
    for module in (layer, exact):
        module(x).square().sum().backward()
    assert same_bits(layer.weight.grad, exact.weight.grad)


@pytest.mark.parametrize("loss", [torch.sum, torch.norm], ids=["linear", "curved"])
def test_second_derivatives_are_right_or_refused(loss):
    """With create_graph the part that flows through dW was missing: 32 % error, no warning."""
    layer, _ = pair()
    x = torch.randn(40, 8, requires_grad=True)
    dw = torch.autograd.grad(loss(layer(x)), layer.weight, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="the sampled weight gradient cannot be differentiated again"):
        dw.square().sum().backward()


@every_sampling
def test_half_precision_does_not_overflow(sampling):
    """A value of 8000 became infinite, because stored samples were multiplied by d / k."""
    layer = nn.Linear(50, 3, bias=False, dtype=torch.float16, sketch=Sketch(0.1, sampling))
    x = torch.full((40, 50), 8000.0, dtype=torch.float16)
    layer(x).backward(torch.full((40, 3), 2.0**-8, dtype=torch.float16))
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.any()


# ---- waste


def test_a_frozen_weight_packs_nothing():
    layer, _ = pair()
    layer.weight.requires_grad_(False)
    x = torch.randn(40, 8, requires_grad=True)
    with rng_untouched():
        assert saved_bytes(lambda: layer(x)).total == 0


def test_no_dx_for_a_first_layer():
    """Neither is it computed nor the weight kept for it."""
    layer = nn.Linear(512, 1, sketch=Sketch(0.1))
    y = layer(torch.randn(4096, 512))
    assert all(t.dtype == torch.uint8 or not t.numel() for t in y.grad_fn.saved_tensors if t is not None)
    assert step_peak(y.sum().backward) < 4096 * 512 * 4 // 8


def test_no_sample_without_gradients():
    """A key is drawn in training mode, which keeps checkpoints and later random numbers in step; nothing is
    packed for it. Outside of training the generator is left alone."""
    layer = nn.Linear(256, 1, sketch=Sketch(0.5))
    x = torch.randn(1024, 256)
    with torch.no_grad():
        layer(x)
        assert step_peak(lambda: layer(x)) < 1024 * 256 * 4 // 8  # the pack would be half of x
        assert draws(lambda: layer(x)) == 1
    layer.eval()
    with rng_untouched():
        layer(x)


def test_construction_uses_torchs_randomness_only():
    results = []
    for make in (torch.nn.Linear, lambda *sizes: nn.Linear(*sizes, sketch=SKETCH)):
        torch.manual_seed(1)
        results.append((*make(8, 5).parameters(), torch.rand(3)))
    assert all(map(same_bits, *results))


def test_backward_does_not_copy_weights_or_rebuild_the_input():
    """It cloned weight and bias, wrote out the dense input and repeated the forward pass."""
    large_weight, small_input = nn.Linear(1000, 1000, sketch=Sketch(0.1, "different")), torch.randn(4, 1000)
    y = large_weight(small_input)
    assert step_peak(y.sum().backward) < 1.5 * 4_000_000  # dW itself
    small_weight, large_input = nn.Linear(512, 8, sketch=Sketch(0.1, "same")), torch.randn(4096, 512)
    y = small_weight(large_input)
    assert step_peak(y.sum().backward) < 4096 * 512 * 4 / 4


# ---- memory that was not saved


def test_two_layers_and_a_relu_keep_less_than_torch():
    """ReLU kept its whole input, so that networks kept more than torch's."""

    def kept(linear, relu):
        model = torch.nn.Sequential(linear(256, 256), relu(), linear(256, 256), relu())
        return saved_bytes(lambda: model(torch.randn(128, 256))).total

    sketch = Sketch(0.1)
    ours = kept(lambda *sizes: nn.Linear(*sizes, sketch=sketch), nn.ReLU)
    assert ours == 2 * saved_nbytes(128, 256, torch.float32, sketch) + 2 * 128 * 256 // 8
    assert ours < 0.15 * kept(torch.nn.Linear, torch.nn.ReLU)


def test_query_key_and_value_share_one_pack():
    x, weights = torch.randn(64, 64), [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(3)]
    sketch = Sketch(0.5)
    together = saved_bytes(lambda: functional.shared_linear(x, weights, [None] * 3, sketch)).total
    apart = saved_bytes(lambda: [functional.linear(x, w, None, sketch) for w in weights]).total
    assert together == saved_nbytes(64, 64, torch.float32, sketch) and apart == 3 * together


# ---- what was right and must stay so


def test_weight_modified_in_place_is_detected():
    layer, _ = pair()
    y = layer(torch.randn(40, 8, requires_grad=True))
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_retained_graph_gives_equal_gradients():
    layer, _ = pair()
    loss = layer(torch.randn(40, 8)).square().sum()
    first = torch.autograd.grad(loss, layer.weight, retain_graph=True)
    assert same_bits(first[0], torch.autograd.grad(loss, layer.weight)[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_changes_nothing(use_reentrant):
    layer, _ = pair()
    x, results = torch.randn(40, 8, requires_grad=True), []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=use_reentrant)):
        torch.manual_seed(2)
        layer.zero_grad()
        call(x).square().sum().backward()
        results.append(layer.weight.grad)
    assert same_bits(*results)


def test_copies_states_and_seeds():
    layer, exact = pair()
    exact.load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(exact.state_dict(), strict=True)
    x, grads = torch.randn(40, 8), []
    for module in (layer, layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(2)
        grads.append(torch.autograd.grad(module(x).sum(), module.weight)[0])
    assert all(same_bits(grads[0], other) for other in grads)


def test_empty_strided_and_meta_inputs_and_a_frozen_bias():
    layer, exact = pair()
    layer(torch.randn(0, 8)).sum().backward()
    assert not layer.weight.grad.any()
    for x in (torch.randn(80, 8)[::2], torch.randn(1, 8).expand(40, 8), torch.randn(8, 40).t()):
        layer.zero_grad()
        exact.zero_grad()
        exact_but_dw(layer, exact, x)
    assert copy.deepcopy(layer).to("meta")(torch.randn(40, 8, device="meta")).shape == (40, 5)
    layer.bias.requires_grad_(False)
    layer(torch.randn(40, 8)).sum().backward()


# ---- several devices and processes


def test_ranks_with_one_seed_draw_different_samples(monkeypatch):
    """Every rank drew the sample of its seed, so that averaging over ranks did not reduce the noise."""
    layer, grads, x = nn.Linear(8, 5, sketch=Sketch(0.1)), [], torch.randn(400, 8)
    for rank in range(2):
        monkeypatch.setattr(ops.salt, "resolved", rank)
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(layer(x).square().sum(), layer.weight)[0])
    assert not torch.equal(*grads)


def test_relu_of_official_shapes_keeps_bits():
    """ReLU of 4096 x 1024: 16,777,216 bytes were kept, one bit an element is 524,288."""
    x = torch.randn(4096, 1024, requires_grad=True)
    assert saved_bytes(lambda: functional.relu(x)).total == 524_288
    assert same_bits(functional.relu(x), F.relu(x))

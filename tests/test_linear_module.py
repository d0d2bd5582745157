"""nn.Linear as a module: construction, state, copies, devices, parametrized weights."""

import copy
import pickle

import pytest
import torch
from checks import SKETCH, next_key, pair, rng_untouched, same_bits, sampled
from torch.nn.utils import parametrizations

from rad_kernels import Sketch, nn


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        torch.nn.utils.weight_norm,
    ],
    ids=lambda f: f.__module__.split(".")[-1] + "." + f.__name__,
)
def test_parametrized_weights(wrap):
    grads, dy = [], torch.randn(40, 5)
    for module in pair():
        torch.manual_seed(1)
        module, x = wrap(module), torch.linspace(-1, 1, 320).view(40, 8).requires_grad_()
        module(x).backward(dy)
        grads.append((x.grad, module.bias.grad))
        assert all(p.grad.any() and p.grad.isfinite().all() for p in module.parameters())
    assert all(map(same_bits, *grads))


def test_meta_device_and_materialisation():
    layer = nn.Linear(8, 5, sketch=SKETCH, device="meta")
    x = torch.randn(3, 40, 8, device="meta", requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == (3, 40, 5) and y.is_meta
    assert x.grad.shape == x.shape and layer.weight.grad.shape == (5, 8) and layer.bias.grad.shape == (5,)
    real = torch.nn.utils.skip_init(nn.Linear, 8, 5, sketch=SKETCH)
    assert real.weight.device.type == "cpu" and real.sketch == SKETCH


def test_copies_and_pickles_carry_the_sketch():
    layer, _ = pair(sketch=Sketch(0.3, "same", "with_replacement"))
    x = torch.randn(40, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.sketch == layer.sketch
        grads = []
        for module in (layer, twin):
            torch.manual_seed(4)
            grads += torch.autograd.grad(module(x).sum(), module.weight)
        assert same_bits(*grads)


def test_state_dict_is_torchs(tmp_path):
    layer, exact = pair()
    assert list(layer.state_dict()) == list(exact.state_dict()) == ["weight", "bias"]
    exact.weight.data.normal_()
    layer.load_state_dict(exact.state_dict(), strict=True)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    exact.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True), strict=True)
    assert all(map(same_bits, layer.state_dict().values(), exact.state_dict().values()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_construction_is_torchs(dtype, bias):
    made, states = [], []
    for make in (lambda *a, **k: nn.Linear(*a, **k, sketch=SKETCH), torch.nn.Linear):
        torch.manual_seed(9)
        made.append(make(8, 5, bias, dtype=dtype))
        states.append(torch.get_rng_state())
    assert same_bits(made[0].weight, made[1].weight) and same_bits(made[0].bias, made[1].bias)
    assert torch.equal(*states)
    assert isinstance(made[0], torch.nn.Linear)
    assert repr(made[0]) == repr(made[1])[:-1] + ", sketch=rows:0.25)"


def test_the_sketch_can_be_changed():
    """Also between forward and backward: each call keeps the sketch with which it packed."""
    layer, _ = pair()
    x, dy, key = torch.randn(40, 8), torch.randn(40, 5), next_key()
    y = layer(x)
    layer.sketch = Sketch(0.5, "different")
    y.backward(dy)
    torch.testing.assert_close(layer.weight.grad, (dy.double().t() @ sampled(x, SKETCH, key)).float())
    assert "sketch=different:0.5" in repr(layer)
    with rng_untouched(), pytest.raises(TypeError, match="sketch"):
        layer.sketch = 0.1
    assert layer.sketch == Sketch(0.5, "different")

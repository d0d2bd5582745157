"""Every layer as an object: constructor, signature, state, copies, files, and settings that are changed."""

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
from checks import rng_untouched, same_bits
from families import AS_TORCH, FAMILIES, QUARTER, WITH_BITS, WITH_SKETCH, step

from rad_kernels import Sketch, nn

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
with_sketch = pytest.mark.parametrize("family", WITH_SKETCH, ids=str)
with_bits = pytest.mark.parametrize("family", WITH_BITS, ids=str)
every_class = pytest.mark.parametrize("name", nn.__all__)

NO_TORCH_LAYER = {"SwiGLU": torch.nn.Module, "LinearCrossEntropy": torch.nn.Linear}


def test_every_class_is_tested():
    assert {family.name for family in FAMILIES} | set(AS_TORCH) == set(nn.__all__)


# ---- construction


LOSS_KEYWORDS = {"class_weight", "ignore_index", "reduction", "label_smoothing", "chunk"}


def parameters_of(name):
    """Those of torch's constructor; a module without one takes nothing, whatever inspect says."""
    exact = NO_TORCH_LAYER.get(name) or getattr(torch.nn, name)
    return {} if exact.__init__ is torch.nn.Module.__init__ else inspect.signature(exact).parameters


@every_class
def test_the_signature_is_torchs_with_keywords_more(name):
    ours, exact = inspect.signature(getattr(nn, name)).parameters, parameters_of(name)
    if name == "SwiGLU":  # torch has none
        assert list(ours) == ["activation", "bits"]
        return
    added = [p for p in ours.values() if p.name not in exact]
    assert [p.name for p in ours.values() if p.name in exact] == list(exact)
    assert all(ours[p.name].default == p.default and ours[p.name].kind == p.kind for p in exact.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in added)
    wanted = LOSS_KEYWORDS if name == "LinearCrossEntropy" else set()
    wanted = wanted | {"sketch" for family in WITH_SKETCH if family.name == name}
    wanted = wanted | {"bits" for family in WITH_BITS if family.name == name}
    assert {p.name for p in added} - {"return_sequence"} == wanted


@every_class
def test_the_docstring_names_what_is_added(name):
    """In full, or by naming the class whose docstring has it: all recurrent layers are described at RNN, all
    convolutions at Conv2d."""
    cls = getattr(nn, name)
    assert f"torch.nn.{name}" in cls.__doc__ or name in NO_TORCH_LAYER
    docs = cls.__doc__ + (nn.RNN.__doc__ if "``RNN``" in cls.__doc__ else "")
    for added in set(inspect.signature(cls).parameters) - set(parameters_of(name)):
        assert added in docs, added


@every_family
def test_construction_draws_as_torchs(family):
    torch.manual_seed(3)
    ours = family.make(QUARTER, 4)
    after = torch.rand(3)
    torch.manual_seed(3)
    exact = family.make.exact()
    assert torch.equal(after, torch.rand(3))
    assert list(ours.state_dict()) == list(exact.state_dict())
    assert all(map(same_bits, ours.state_dict().values(), exact.state_dict().values()))
    assert [*dict(ours.named_parameters())] == [*dict(exact.named_parameters())]


@every_family
def test_state_goes_both_ways(family):
    """Strictly: a state_dict has torch's keys, and nothing of sketches and keys."""
    ours, exact = family.layer(), family.make.exact()
    exact.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(exact.state_dict(), strict=True)
    assert all(map(same_bits, ours.state_dict().values(), exact.state_dict().values()))


@every_family
def test_repr_shows_the_settings(family):
    shown = repr(family.layer(Sketch(0.25), 4))
    assert shown.startswith(family.name + "(")
    assert ("sketch=rows:0.25" in shown) == (family in WITH_SKETCH)
    assert ("bits=4" in shown) == (family in WITH_BITS)


# ---- copies and files


def through_pickle(layer):
    return pickle.loads(pickle.dumps(layer))


def through_a_file(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def through_weights(layer):
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


def through_safetensors(layer):
    torch_files = pytest.importorskip("safetensors.torch")
    other = copy.deepcopy(layer)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(torch_files.load(torch_files.save(layer.state_dict())))
    return other


@pytest.mark.parametrize(
    "way", [copy.deepcopy, through_pickle, through_a_file, through_weights, through_safetensors]
)
@every_family
def test_copies_train_as_the_original(family, way):
    layer = family.layer()
    with rng_untouched():
        other = way(layer)
    assert type(other) is type(layer) and repr(other) == repr(layer)
    assert all(map(same_bits, step(family, other, family.x()), step(family, layer, family.x())))


# ---- settings


@with_sketch
def test_a_sketch_may_be_changed_and_is_checked(family):
    layer = family.layer()
    for value in (None, 0.1, "rows:0.1", Sketch):
        with rng_untouched(), pytest.raises(TypeError, match="sketch must be a rad_kernels"):
            layer.sketch = value
        with rng_untouched(), pytest.raises(TypeError, match="sketch must be"):
            family.make(value, 4)
    for keep in (math.nan, math.inf, 0, -1, 2):
        with pytest.raises(ValueError, match="keep"):
            layer.sketch = Sketch(keep)
    assert layer.sketch == QUARTER
    layer.sketch = Sketch(0.5)
    assert "rows:0.5" in repr(layer)
    assert all(map(same_bits, *(step(family, l, family.x()) for l in (layer, family.layer(Sketch(0.5))))))


@with_bits
def test_bits_may_be_changed_and_are_checked(family):
    layer = family.layer()
    for value, error in (
        (5, ValueError),
        (0, ValueError),
        (True, TypeError),
        ("4", TypeError),
        (4.0, TypeError),
    ):
        with rng_untouched(), pytest.raises(error, match="bits must be None"):
            layer.bits = value
        with pytest.raises(error, match="bits must be None"):
            family.make(QUARTER, value)
    assert layer.bits == 4
    layer.bits = 8
    assert all(map(same_bits, *(step(family, l, family.x()) for l in (layer, family.layer(bits=8)))))
    layer.bits = None
    assert "bits=None" in repr(layer)

"""profile and predict: against saved_bytes and step_peak, with and without running, and without a trace."""

import os
import sys
from pathlib import Path

import pytest
import torch

from rad_kernels import Sketch, convert, memory, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import retained_bytes

NETWORKS = {name: getattr(retained_bytes, name) for name in ("RESNET", "VIT", "GPT", "LLAMA")}


def loss(model, x, y):
    return retained_bytes.loss(model, x, y, "torch")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sketch", [Sketch(0.1, bits=4)], ids=str)
def test_predicted_is_measured(name, sketch):
    torch.manual_seed(0)
    model, (x, y) = NETWORKS[name].make(), NETWORKS[name].example()
    exact = profile(model, x, y, loss=loss, sketch=sketch)
    assert exact.retained == memory.saved_bytes(lambda: loss(model, x, y)).total
    assert not any(layer.note for layer in exact.layers)
    without = profile(model, x, y, loss=loss, run=False)
    assert [t for t in without.tensors] == [t for t in exact.tensors]
    convert(model, sketch, example_inputs=x)
    after = profile(model, x, y, loss=loss)
    measured = memory.saved_bytes(lambda: loss(model, x, y))
    assert exact.predicted == after.retained == measured.total < exact.retained / 2
    assert exact.prediction.by_module == measured.by_module

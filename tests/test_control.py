"""Measured noise, clipping thresholds, and the controller."""

import pytest
import torch
from torch import nn

from rad_kernels import NoiseController, Sketch, convert, variance
from rad_kernels.plan.formulae import linear_variances


def step(model, x, y):
    return nn.functional.mse_loss(model(x), y)


@pytest.fixture
def case():
    model = nn.Sequential(nn.Linear(96, 48), nn.Tanh(), nn.Linear(48, 8))
    convert(model, {"0": Sketch(0.25)}, act_bits=None)
    return model, (torch.randn(64, 96), torch.randn(64, 8))


def test_measured_noise_is_the_formula(case):
    """Only the first weight is noisy, by the closed form; everything else is exact."""
    model, inputs = case
    y = model[0](inputs[0])
    y.retain_grad()
    nn.functional.mse_loss(model[2](model[1](y)), inputs[1]).backward()
    model.zero_grad()
    expected = linear_variances([Sketch(0.25)], inputs[0], y.grad)[Sketch(0.25)]
    state = torch.get_rng_state()
    noise = variance(model, inputs, loss=step, samples=100)
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in model.parameters())
    assert abs(noise.variance - expected) < 4.5 * noise.error < 0.4 * expected
    rows = {row.name: row for row in noise.rows}
    assert rows["0.weight"].variance == pytest.approx(noise.variance)
    assert all(row.variance < 1e-12 * row.square for name, row in rows.items() if name != "0.weight")
    assert model[0].sketch == Sketch(0.25)
    assert noise.norm_ratio == pytest.approx(noise.predicted_norm_ratio, rel=0.05)
    assert noise.matching_clip(2.0) == 2 * noise.norm_ratio > 2
    assert "0.weight" in str(noise) and noise.to_dict()["variance"] == noise.variance


def test_refusals(case):
    model, inputs = case
    with pytest.raises(ValueError, match="nothing is random"):
        variance(nn.Linear(3, 1), torch.rand(4, 3))
    with pytest.raises(ValueError, match="samples must be"):
        variance(model, inputs, loss=step, samples=1)
    for rungs, target, message in ((["rows:0.1"], 0.1, "rungs"), (["rows:0.1", "rows:0.2"], 0, "target")):
        with pytest.raises(ValueError, match=message):
            NoiseController(model, rungs, target)
    with pytest.raises(TypeError, match="add_scalar"):
        NoiseController(model, ["rows:0.1", "rows:0.2"], 0.1, writer=3)
    with pytest.raises(ValueError, match="convert it first"):
        NoiseController(nn.Linear(3, 1), ["rows:0.1", "rows:0.2"], 0.1)


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))


def test_controller_holds_the_target(case):
    model, inputs = case
    writer, rungs = Writer(), ["rows:0.06", "rows:0.25", "rows:0.5", "rows:1.0:4bit"]
    control = NoiseController(model, rungs, 0.5, loss=step, samples=8, every=2, writer=writer)
    assert model[0].sketch == Sketch(0.06)
    noises = [control(number, inputs) for number in range(16)]
    measured = [noise.relative for noise in noises if noise is not None]
    assert len(measured) == 8 and measured[0] > 0.5  # the coarsest is too noisy here
    assert max(measured[4:]) <= 0.5  # and it does not go back to what is known to be
    assert model[0].sketch == control.rungs[control.rung]
    assert {name for name, _, _ in writer.scalars} == {
        "rad_kernels/variance",
        "rad_kernels/norm_ratio",
        "rad_kernels/rung",
    }
    assert [at for name, _, at in writer.scalars if name.endswith("rung")] == list(range(0, 16, 2))
    control.target = 1e9  # anything goes: down to the coarsest, one rung at a time
    for number in range(16):
        control(number, inputs)
    assert control.rung == 0


def test_controller_writes_tensorboard(case, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    model, inputs = case
    with tensorboard.SummaryWriter(tmp_path) as writer:
        NoiseController(model, ["rows:0.1", "rows:0.5"], 0.5, loss=step, writer=writer)(0, inputs)
    assert list(tmp_path.iterdir())

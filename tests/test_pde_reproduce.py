"""The paper's reaction-diffusion problem as published, and the command that fits it."""

import json
import math

import pytest
import torch

from rad_kernels import Sketch
from rad_kernels.__main__ import main
from rad_kernels.reproduce import pde


def published_gradient(parameters, steps):
    """Equation, source, target and loss once more, as the paper's own code has them, by autograd in fp64."""
    n, dt = 32, 1 / 4096
    x = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    y, x = torch.meshgrid(x, x, indexing="ij")
    p = parameters.detach().double().requires_grad_()
    initial = torch.sin(math.pi * x) * torch.sin(math.pi * y)
    u, total = initial, 0
    inside = torch.zeros_like(u)
    inside[1:-1, 1:-1] = 1
    for k in range(steps):
        sin, cos = math.sin(math.pi * k * dt), math.cos(math.pi * k * dt)
        wave, other = torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x)
        source = p[0] + p[1] * sin + p[2] * cos
        source = source + wave * (p[3] * sin + p[4] * cos) + other * (p[5] * sin + p[6] * cos)
        target = initial + 0.25 * torch.sin(2 * math.pi * x) * torch.sin(math.pi * y) * sin
        around = sum(torch.roll(u, shift, axis) for shift in (1, -1) for axis in (0, 1))
        u = u + inside * (0.25 * dt * n**2 * (around - 4 * u) + dt * source * u)
        total = total + dt * ((u - target) ** 2).mean()
    return total.item(), torch.autograd.grad(total, p)[0]


def test_the_problem_is_the_published_one():
    """fp32: a relative rounding of 2^-24 in each of some 20 operations a step, for 60 steps."""
    problem = pde.Problem(60)
    parameters = problem.start(0)
    assert parameters[0] == torch.tensor(4.932) and (parameters[1:].abs() <= 0.1).all()
    loss, want = published_gradient(parameters, 60)
    found = problem.gradient(parameters, Sketch(1)).double()
    tolerance = 60 * 20 * 2**-24
    assert abs(problem.simulate(parameters, Sketch(1))[1].item() - loss) <= tolerance * loss
    assert (found - want).abs().max() <= tolerance * want.abs().max()


def test_a_hundredth_of_the_states_keeps_less_than_one_per_cent():
    problem = pde.Problem(40_961)
    assert problem.all_states() == 178_426_116
    assert problem.formula(0.01) <= 0.01 * problem.all_states()


def test_the_command(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert main(["reproduce", "pde", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "pde-ci.json").read_text())
    assert (out / "pde-ci.png").read_bytes().startswith(b"\x89PNG")
    assert [row["fraction"] for row in content["rows"]] == [1.0, 0.1, 0.01]
    for row in content["rows"]:
        assert row["measured"] == row["formula"] and f"{row['measured']:,}" in printed
        assert len(row["losses"]) == 13 and row["losses"][-1] < 0.9 * row["losses"][0]
    exact, tenth, hundredth = (row["noise"] for row in content["rows"])
    assert exact == 0 < tenth < hundredth < 1

    # What is done is not done again.
    monkeypatch.setattr(pde, "case", lambda *_: pytest.fail("done again"))
    assert main(["reproduce", "pde", "--out", str(out)]) == 0
    assert json.loads((out / "pde-ci.json").read_text())["rows"] == content["rows"]

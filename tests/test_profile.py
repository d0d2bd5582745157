"""profile and predict: against saved_bytes, step_peak and figures by hand, run or not, leaving no trace."""

import copy
import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checks import same_bits
from torch import nn

from rad_kernels import Sketch, convert, memory, predict, profile
from rad_kernels.profile import Profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

import gpt
import llama
import resnet
import retained_bytes
import vit

FLOAT = 4


def texts():
    tokens = torch.randint(65, (8, gpt.LENGTH + 1))
    return tokens[:, :-1], tokens[:, 1:]


def images():
    return torch.rand(8, 3, 32, 32), torch.arange(8)


def loss(model, x, y):
    return retained_bytes.loss(model, x, y, "torch")


ROWS, CODES = Sketch(0.1), Sketch(0.1, "different", bits=4)
NETWORKS = {
    "resnet": (lambda: resnet.ResNet(16, 1), images, ROWS, {"norm_bits": 2}),
    "vit": (lambda: vit.ViT(64, 1), images, CODES, {}),
    "gpt": (lambda: gpt.GPT(65, 64, 1), texts, {nn.Linear: ROWS, "head": CODES}, {"recompute": "attention"}),
    "llama": (lambda: llama.Llama(65, 64, 1), texts, CODES, {"act_bits": None}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_is_measured(name):
    make, example, sketch, options = NETWORKS[name]
    torch.manual_seed(0)
    model, (x, y) = make(), example()
    exact = profile(model, x, y, loss=loss, sketch=sketch, **options)
    assert exact.retained == memory.saved_bytes(lambda: loss(model, x, y)).total
    assert not any(layer.note for layer in exact.layers)
    without = profile(model, x, y, loss=loss, run=False)
    assert without.tensors == exact.tensors and without.gradients == exact.gradients
    convert(model, sketch, example_inputs=x, **options)
    assert exact.prediction.became == {row.name: row.became for row in model.rad_report.rows if row.became}
    after, measured = profile(model, x, y, loss=loss), memory.saved_bytes(lambda: loss(model, x, y))
    assert exact.predicted == after.retained == measured.total < exact.retained / 1.5
    assert exact.prediction.by_module == measured.by_module
    assert {layer.name: layer.retained for layer in after.layers if layer.retained} == measured.by_module


@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_peaks_are_those_of_step_peak(name):
    make, example, *_ = NETWORKS[name]
    model, (x, y) = make(), example()
    found = profile(model, x, y, loss=loss)

    def step():
        loss(model, x, y).backward()

    assert found.step_peak == memory.step_peak(step)
    model.zero_grad()
    assert found.forward_peak == memory.step_peak(lambda: loss(model, x, y))
    if name == "gpt":  # its operators allocate nothing that they do not return
        assert profile(model, x, y, loss=loss, run=False).step_peak == found.step_peak
    assert max(layer.backward_peak or 0 for layer in found.layers) <= found.backward_peak
    assert list(found.curve.times) == sorted(found.curve.times)


class Remembering(nn.Module):
    """Keeps what goes through it, and adds a buffer to it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.ones(30))

    def forward(self, x):
        self.last = x * self.offset
        return self.last.exp() * self.last


def by_hand():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), Remembering(), nn.Linear(30, 5, bias=False))


def test_figures_by_hand():
    model, x = by_hand(), torch.rand(7, 20)
    found = profile(model, x, loss=lambda m, x: m(x).sum(), optimizer=torch.optim.AdamW)
    assert found.parameters == found.gradients == (20 * 30 + 30 + 30 * 5) * FLOAT and found.buffers == 120
    assert found.optimizer == 2 * found.parameters + 3 * FLOAT  # two moments, and a step a parameter
    row = 7 * 30 * FLOAT
    assert {layer.name: (layer.calls, layer.retained, layer.alone) for layer in found.layers} == {
        "0": (1, 7 * 20 * FLOAT, 0),  # the caller's
        "1": (1, row, row),
        "2": (1, 2 * row, row),  # exp's output; the other remains as an attribute
        "3": (1, row, row),
    }
    held = {tensor.module: tensor.held_by for tensor in found.tensors if tensor.held_by}
    assert held == {"0": "the caller (inputs[0])", "2": "attribute last of 2"}
    assert found.held == 7 * 20 * FLOAT + row and found.saved_parameters == 150 * FLOAT + 120
    assert {(t.owner, t.shape) for t in found.tensors if t.owner} == {
        ("buffer", (30,)),
        ("parameter", (30, 5)),
    }
    assert found.layer("0").forward_peak == found.layer("1").forward_peak == row
    assert found.layer("2").forward_peak == 3 * row
    assert found.rounded == 1024 + 4 * 1024  # 560 bytes, and four times 840
    assert found.needed == found.parameters + 120 + found.optimizer + found.step_peak
    lines = str(found).splitlines()
    assert lines[0].split()[:6] == ["module", "type", "calls", "parameters", "retained", "alone"]
    assert lines[1].split() == [
        "0",
        "Linear",
        "1",
        "2,520",
        "560",
        "840",
        "2,520",
        "the",
        "caller",
        "(inputs[0])",
    ]
    with pytest.raises(KeyError, match="no layer is called 'x'; there are 0, 1, 2, 3"):
        found.layer("x")


def test_the_next_layer_holds_it_too():
    model, x = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)), torch.rand(7, 20)
    found = profile(model, x, loss=lambda m, x: m(x).square().sum())
    assert (found.layer("1").retained, found.layer("1").alone) == (7 * 30 * FLOAT, 0)
    assert found.layer("(functional)").retained == 7 * 5 * FLOAT
    assert next(t for t in found.tensors if t.module == "1").shared_with == ("2: AddmmBackward0",)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.frozen, self.drop = nn.BatchNorm2d(8).eval(), nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.register_buffer("moving", torch.zeros(8))

    def forward(self, x):
        x = self.drop(self.frozen(self.norm(self.conv(x)))).mean((2, 3))
        self.moving = 0.9 * self.moving + x.detach().mean(0)
        return self.head(x + random.random() + np.random.rand())


def state(model, x):
    return {
        **{f"value {k}": v.clone() for k, v in model.state_dict().items()},
        **{f"grad {k}": None if p.grad is None else p.grad.clone() for k, p in model.named_parameters()},
        **{f"id {k}": (id(v), id(v.grad)) for k, v in (*model.named_parameters(), *model.named_buffers())},
        "x": (x.clone(), id(x.grad)),
        "modes": [module.training for module in model.modules()],
        "hooks": [
            [dict(v) for k, v in sorted(vars(m).items()) if "hooks" in k and isinstance(v, dict)]
            for m in model.modules()
        ],
        "global": dict(nn.modules.module._global_forward_hooks),
        "accumulation": [dict(p._post_accumulate_grad_hooks or {}) for p in model.parameters()],
        "random": (torch.get_rng_state(), random.getstate(), str(np.random.get_state())),
        "enabled": torch.is_grad_enabled(),
    }


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert str(one[key]) == str(two[key]), key
        if isinstance(one[key], torch.Tensor):
            assert same_bits(one[key], two[key]), key


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("run", [True, False])
def test_nothing_changes(run, fails):
    torch.manual_seed(0)
    model, x = Network(), torch.rand(16, 3, 12, 12, requires_grad=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    (model.norm(model.conv(x)).square().mean() + x.sum()).backward()
    calls = []
    model.head.weight.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    model.drop.register_forward_hook(lambda *_: None)
    before, settings = state(model, x), copy.deepcopy(optimizer.state_dict())

    def run_loss(m, x):
        y = m(x).square().mean()
        return y.expand(2) if fails else y

    def call():
        return profile(model, x, loss=run_loss, sketch=Sketch(0.25), optimizer=optimizer, run=run)

    if fails:
        with pytest.raises(ValueError, match=r"loss must return a scalar tensor, got a tensor \[2\]"):
            call()
    else:
        with torch.no_grad():
            found = call()
        assert (
            found.notes[-1] == "1 parameters have hooks after the accumulation of gradients, which were off"
        )
        assert found.optimizer == found.parameters  # momentum
    assert_same(state(model, x), before)
    assert str(optimizer.state_dict()) == str(settings) and not calls


def test_an_eval_model_is_profiled_in_training():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout()).eval(), torch.rand(4, 8, requires_grad=True)
    found = profile(model, x, loss=lambda m, x: m(x).sum())
    assert found.notes == ("the model was in eval mode: profiled as after model.train()",)
    assert found.layer("1").retained and not model.training and not model[1].training


def test_without_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.GELU(), nn.Linear(100_000, 100_000))
        model.append(nn.Linear(100_000, 10))
        x, y = torch.empty(4096, 100_000), torch.zeros(4096, dtype=torch.int64)
    found = profile(
        model, x, y, loss=lambda m, x, y: F.cross_entropy(m(x), y), sketch=ROWS, run=False,
        optimizer=torch.optim.AdamW,
    )  # fmt: skip
    assert found.parameters > 80e9 and found.optimizer > 160e9 and found.device == "cpu"
    wide = 4096 * 100_000 * FLOAT
    assert found.layer("1").retained == found.layer("2").retained == found.layer("3").retained == wide
    kept = -(-4096 // 10) * 100_000 * FLOAT
    assert kept <= found.layer("2").predicted <= kept + 256
    assert found.predicted < found.prediction.peak
    with pytest.raises(
        ValueError, match="model must be on the CPU or a CUDA device, got meta; or pass run=Fa"
    ):
        profile(model, x, y, loss=loss)


def test_predict_alone_changes_nothing_and_allocates_nothing():
    model, x = (
        nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Linear(64, 1)),
        torch.rand(512, 64),
    )

    def mean(m, x):
        return m(x).mean()

    found = []
    peak = memory.step_peak(lambda: found.append(predict(model, x, loss=mean, sketch=ROWS, norm_bits=8)))
    assert peak < 10_000 and type(model[0]) is nn.Linear
    assert found[0].peak is None and found[0].before == memory.saved_bytes(lambda: mean(model, x)).total
    assert "caller holds" in found[0].reasons["0"] and found[0].became["2"] == "sketch=rows:0.1"
    assert found[0].rounded % 512 == 0 and 0 <= found[0].rounded - found[0].retained < 512 * 8
    with_peak = predict(model, x, loss=mean, sketch=ROWS, peak=True)
    converted = convert(copy.deepcopy(model), ROWS, example_inputs=x)
    assert with_peak.peak >= with_peak.retained == memory.saved_bytes(lambda: mean(converted, x)).total


def test_views_and_ties_stay_views_and_ties():
    flat = nn.Parameter(torch.rand(600))
    images = torch.rand(100, 20)

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.alias = flat, flat

        def forward(self, x):
            return F.linear(x, self.flat[:600].view(30, 20)).exp()

    run, fake = (profile(Tied(), images[:8], loss=lambda m, x: m(x).sum(), run=r) for r in (True, False))
    assert run.tensors == fake.tensors and run.retained == images.nbytes + 8 * 30 * FLOAT
    assert run.parameters == fake.parameters == 2400 and run.gradients == fake.gradients == 2400


class Inconsistent(torch.autograd.Function):
    """Keeps twice as much of fake tensors."""

    @staticmethod
    def forward(ctx, x):
        fake = type(x).__name__ == "FakeTensor"
        ctx.save_for_backward(torch.cat((x, x)) if fake else x.clone())
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_a_difference_between_prediction_and_measurement_is_explained():
    class Layer(nn.Module):
        def forward(self, x):
            return Inconsistent.apply(x)

    model, x = nn.Sequential(nn.Linear(64, 64), nn.GELU(), Layer(), nn.Linear(64, 1)), torch.rand(256, 64)
    found = profile(model, x, loss=lambda m, x: m(x).sum(), sketch=ROWS)
    (noted,) = [layer for layer in found.layers if layer.note]
    assert noted.name == "2" and "retain 131,072 bytes, not 65,536" in noted.note
    lines = str(found).splitlines()
    assert "[1] 2: the prediction rests on" in lines[-1] and "131,072 [1]" in lines[3]


def test_values_that_decide_need_a_run():
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 64)

        def forward(self, x):
            return self.a(x) if x.sum().item() > 0 else self.a(x) * 2

    def total(m, x):
        return m(x).sum()

    model, x = Deciding(), torch.ones(4, 64)
    assert profile(model, x, loss=total).retained
    with pytest.raises(RuntimeError, match="profiling without running needs the model to run without data"):
        profile(model, x, loss=total, run=False)
    with pytest.raises(RuntimeError, match=r"a prediction needs .* DataDependentOutputException"):
        profile(model, x, loss=total, sketch=ROWS)


X, LINEAR, FROZEN = torch.rand(3, 4), nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)
ELSEWHERE = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))


def total(m, x):
    return m(x).sum()


WRONG = {
    "no module": (("gpt", X), {}, TypeError, "model must be a torch.nn.Module, got str"),
    "loss": ((LINEAR, X), {"loss": X}, TypeError, r"loss must be callable as .*, got Tensor"),
    "no loss": ((LINEAR, X), {}, ValueError, r"loss must be given: Linear returns a tensor \[3, 4\]"),
    "none": ((LINEAR, X), {"loss": lambda *_: 1}, ValueError, "loss must return a scalar tensor, got int"),
    "frozen": ((FROZEN, X), {"loss": total}, ValueError, "nothing requires a gradient"),
    "option": ((LINEAR, X), {"sketch": ROWS, "dry_run": True}, TypeError, "unknown argument 'dry_run'"),
    "no sketch": ((LINEAR, X), {"norm_bits": 4}, ValueError, "norm_bits goes with sketch, which is None"),
    "lazy": ((nn.LazyLinear(4), X), {}, ValueError, "but weight waits for a first call"),
    "snapshot": ((LINEAR, X), {"snapshot": "x"}, ValueError, "snapshot needs a step that runs on a CUDA"),
    "devices": ((ELSEWHERE, X), {}, ValueError, "model must be on one device, got cpu, meta"),
    "optimizer": (
        (LINEAR, X),
        {"loss": total, "optimizer": list},
        TypeError,
        "optimizer must be a torch.optim.Optimizer or make one of a list of parameters, got list",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    inputs, keywords, error, message = WRONG[case]
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        profile(*inputs, **keywords)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_running_profiler_is_refused():
    with torch.profiler.profile(), pytest.raises(RuntimeError, match="while torch's profiler runs"):
        profile(LINEAR, X, loss=lambda m, x: m(x).sum())


def test_json_and_plot(tmp_path):
    model, x = by_hand(), torch.rand(64, 20)
    for run in (True, False):
        found = profile(model, x, loss=lambda m, x: m(x).sum(), sketch={"3": ROWS}, run=run)
        found.to_json(tmp_path / "p.json")
        content = json.loads((tmp_path / "p.json").read_text())
        assert content["environment"]["torch"] == torch.__version__ and content["retained"] == found.retained
        assert Profile.from_dict(content) == found and str(Profile.from_dict(content)) == str(found)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found.plot(tmp_path / "p.png")
        assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"

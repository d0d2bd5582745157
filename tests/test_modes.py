"""Randomness and modes in eager: how much of torch's generator is used when, that backward decodes the sample
that forward packed, checkpointing, autocast. (test_compile.py has the same for compiled layers.)"""

import itertools
import threading

import pytest
import torch
from cases import BY_KEY, ENTRYWISE
from checks import (
    CODES,
    SKETCH,
    draws,
    error_over_bound,
    next_key,
    pair,
    revealed_sample,
    rng_untouched,
    same_bits,
    sampled,
)
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, functional, nn, ops

# A projection shows no sample; test_project has it.
every_combination = pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
by_key = pytest.mark.parametrize("combination", BY_KEY, ids="-".join)


def coded_layer(combination=("rows", "stratified")):
    """Identity weight: with x = CODES its output is CODES again."""
    layer = nn.Linear(16, 16, bias=False, sketch=Sketch(0.25, *combination))
    torch.nn.init.eye_(layer.weight)
    return layer


def step(layer, x=CODES):
    """The sample that one training step of a coded layer used."""
    layer.zero_grad()
    layer(x).backward(torch.eye(16))
    return revealed_sample(layer.weight.grad, layer.sketch)


# ---- how much of the generator is used


@every_combination
def test_one_key_a_packing_call_whatever_the_grad_mode(combination):
    layer = nn.Linear(16, 5, sketch=Sketch(0.25, *combination))
    x = torch.randn(80, 16)
    for mode in (torch.enable_grad, torch.no_grad):
        for dtype in (None, torch.bfloat16):
            with mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                assert draws(lambda: layer(x)) == 1
                assert draws(lambda: layer(x.requires_grad_())) == 1
                assert draws(lambda: layer(x.expand(2, 80, 16))) == 1


@pytest.mark.filterwarnings("ignore::rad_kernels.functional.SketchWarning")
def test_exact_calls_leave_the_generator_alone():
    layer, x = nn.Linear(8, 5, sketch=SKETCH), torch.randn(40, 8)
    with rng_untouched():
        with torch.inference_mode():
            y = layer(x)
        layer.eval()
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                assert same_bits(layer(x), y)
        layer.train()
        layer.weight.requires_grad_(False)
        layer(x.requires_grad_()).sum().backward()
        layer.weight.requires_grad_(True)
        layer(x[:0])
        for sketch in (Sketch(1), Sketch(0.95), Sketch(1, "different")):
            layer.sketch = sketch
            layer(x)
        nn.ReLU()(x * 1).sum().backward()
        nn.ReLU(inplace=True)(x * 1).sum().backward()
    layer.sketch = SKETCH
    assert draws(lambda: layer(x)) == 1


def test_backward_uses_no_randomness():
    layers = [coded_layer(combination) for combination in ENTRYWISE]
    losses = [layer(CODES).sum() for layer in layers]
    with rng_untouched():
        for loss in losses:
            loss.backward()


def test_gradients_in_eval_mode_are_torchs():
    layer, exact = pair()
    layer.eval()
    x, dy = torch.randn(40, 8), torch.randn(40, 5)
    for module in (layer, exact):
        module(x).backward(dy)
    assert same_bits(layer.weight.grad, exact.weight.grad)


@every_combination
def test_manual_seed_and_fork_rng(combination):
    layer = coded_layer(combination)
    torch.manual_seed(7)
    samples = [step(layer) for _ in range(3)]
    torch.manual_seed(7)
    first = step(layer)
    state = torch.get_rng_state()
    with torch.random.fork_rng():
        step(layer)
        torch.manual_seed(8)
        step(layer)
    assert torch.equal(state, torch.get_rng_state())
    assert all(map(torch.equal, samples, [first, step(layer), step(layer)]))


@every_combination
def test_layers_and_calls_have_samples_of_their_own(combination):
    """200 samples, of which two independent ones are equal with probability at most 4^-4: 78 equal pairs are
    expected of ``rows`` and ``same`` (standard deviation 9), none of ``different``. One shared sample would
    be 19,900 pairs."""
    layers = [coded_layer(combination), coded_layer(combination)]
    samples = [step(layer) for _ in range(100) for layer in layers]
    keys = [sample.numpy().tobytes() for sample in samples]
    equal = sum(keys.count(key) - 1 for key in set(keys) for _ in range(keys.count(key))) // 2
    assert equal < 78 + 6 * 9
    neighbours = sum(a == b for a, b in itertools.pairwise(keys))
    assert neighbours < 10  # 0.8 expected


def test_ranks_have_samples_of_their_own(monkeypatch):
    """One seed, another salt: the salt is what keeps the ranks of a distributed job independent."""
    layer, samples = coded_layer(), []
    for salt in range(8):
        monkeypatch.setattr(ops.salt, "resolved", salt)
        torch.manual_seed(1)
        samples.append(step(layer).numpy().tobytes())
    assert len(set(samples)) >= 6


def test_threads_draw_their_own_keys():
    """torch's generator is locked: no key is drawn twice."""
    layer, keys = nn.Linear(64, 4, sketch=SKETCH), []

    def work():
        for _ in range(200):
            y = layer(x)
            saved = y.grad_fn.saved_tensors[0]
            keys.append(saved[-64:-56].numpy().tobytes())

    x = torch.randn(40, 64)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == len(set(keys)) == 800


# ---- backward decodes what forward packed


@by_key
def test_the_checker_sees_the_sample(combination):
    layer = coded_layer(combination)
    for _ in range(20):
        key = next_key()
        counts = step(layer)
        estimate = sampled(torch.ones(16, 16), layer.sketch, key)
        assert torch.equal(counts * 4, estimate)


@by_key
def test_the_checker_rejects_values_under_other_indices(combination):
    """The values of one key under the indices of another: found unless both drew the same sample."""
    layer = coded_layer(combination)
    for _ in range(20):
        packs = [ops.pack(CODES, layer.sketch.spec, next_key().add(i)) for i in range(2)]
        torch.rand(())
        mixed = packs[0].clone()
        mixed[-64:-56] = packs[1][-64:-56]
        dw = ops.linear_wgrad(torch.eye(16), mixed, 16, layer.sketch.spec)
        with pytest.raises(AssertionError):
            revealed_sample(dw, layer.sketch)


@every_combination
def test_stacked_layers(combination):
    """Two layers on one x, behind a third and a ReLU: each dW is of one sample, and none is shared."""
    first, second, third = (coded_layer(combination) for _ in range(3))
    shared = {pair: 0 for pair in ("12", "13", "23")}
    for _ in range(20):
        hidden = functional.relu(first(CODES))
        for layer in (first, second, third):
            layer.zero_grad()
        (second(hidden) + third(hidden)).backward(torch.eye(16))
        samples = {
            "1": revealed_sample(first.weight.grad, first.sketch, scale=2),
            "2": revealed_sample(second.weight.grad, second.sketch),
            "3": revealed_sample(third.weight.grad, third.sketch),
        }
        for both in shared:
            shared[both] += torch.equal(samples[both[0]], samples[both[1]])
    assert max(shared.values()) <= 4  # of 20; at most 4^-4 each by chance


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("preserve_rng_state", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@every_combination
def test_checkpoint(combination, use_reentrant, preserve_rng_state, autocast):
    if autocast and combination[1] in ("with_replacement", "norm"):
        combination = (combination[0], "stratified")  # other multiples of a code are no bfloat16 numbers
    layer = coded_layer(combination)
    x = CODES.clone().requires_grad_()

    def run(layer_call):
        layer.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer_call(x)
        y.backward(torch.eye(16, dtype=y.dtype))
        return revealed_sample(layer.weight.grad, layer.sketch), torch.get_rng_state()

    through_checkpoint = lambda x: checkpoint(  # noqa: E731
        layer, x, use_reentrant=use_reentrant, preserve_rng_state=preserve_rng_state
    )
    sample, state = run(through_checkpoint)
    if preserve_rng_state:
        plain, plain_state = run(layer)
        assert torch.equal(sample, plain) and torch.equal(state, plain_state)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_keeps_later_dropout_in_step(use_reentrant):
    """The first pass of a reentrant checkpoint runs without grad mode: a layer that drew no key there would
    give the recomputation another dropout mask."""
    layer = nn.Linear(64, 64, bias=False, sketch=SKETCH)
    torch.nn.init.eye_(layer.weight)
    x = torch.ones(40, 64, requires_grad=True)
    block = lambda x: torch.nn.functional.dropout(layer(x), 0.5)  # noqa: E731
    y = checkpoint(block, x, use_reentrant=use_reentrant)
    y.sum().backward()
    assert same_bits(x.grad, y)  # both are 2 where dropout kept an element, else 0
    after = torch.rand(())
    torch.manual_seed(20240607)
    nn.Linear(64, 64, bias=False, sketch=SKETCH)
    block(x.detach())
    assert torch.equal(after, torch.rand(()))


# ---- autocast


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@every_combination
def test_autocast(combination, low):
    layer, exact = pair(16, sketch=Sketch(0.25, *combination))
    values, key = torch.randn(80, 16), next_key()
    results = []
    for module in (layer, exact):
        x = values.clone().requires_grad_()
        with torch.autocast("cpu", low):
            y = module(x)
        assert y.dtype == low
        dy = torch.linspace(-1, 1, 400).view(80, 5).to(low)
        y.backward(dy)
        results.append((y, x.grad, module.bias.grad))
    assert all(map(same_bits, *results))
    assert layer.weight.grad.dtype == torch.float32
    copies = 4 if combination == ("same", "with_replacement") else 1  # k = 4 of 16 features
    estimate = sampled(values.to(low), layer.sketch, key)
    assert error_over_bound(layer.weight.grad.to(low), dy.double(), estimate, copies) <= 1


def test_autocast_around_backward_does_not_matter():
    results = []
    for around_backward in (False, True):
        torch.manual_seed(4)
        layer = nn.Linear(8, 5, sketch=SKETCH)
        x = torch.linspace(-1, 1, 320).view(40, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=around_backward):
            y.float().square().sum().backward()
        results.append((x.grad, layer.weight.grad, layer.bias.grad))
    assert all(map(same_bits, *results))


def test_autocast_of_mixed_and_wide_inputs():
    """Where F.linear accepts a mixture of dtypes under autocast, so does the layer; float64 stays float64."""
    weight = torch.randn(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.linear(torch.randn(40, 8).half(), weight, None, SKETCH).dtype == torch.bfloat16
        y = functional.linear(torch.randn(40, 8).double(), weight.double(), None, SKETCH)
        assert y.dtype == torch.float64
        with pytest.raises(
            TypeError, match=r"x and weight must have one dtype, got torch.float64 and torch.float32"
        ):
            functional.linear(torch.randn(40, 8).double(), weight, None, SKETCH)
    with pytest.raises(TypeError, match=r"got torch.bfloat16 and torch.float32"):
        functional.linear(torch.randn(40, 8).bfloat16(), weight, None, SKETCH)


def half_precision_step(scale_loss):
    """A seeded step under float16 autocast: the layer, with its gradients."""
    torch.manual_seed(4)
    layer = nn.Linear(8, 5, sketch=SKETCH)
    with torch.autocast("cpu", torch.float16):
        y = layer(torch.linspace(-1, 1, 320).view(40, 8))
    scale_loss(y.float().sum()).backward()
    return layer


def test_scaled_losses():
    """The scale passes through dW unchanged, an overflow shows in it, and a GradScaler trains."""
    plain = half_precision_step(lambda loss: loss)
    scaled = half_precision_step(lambda loss: loss * 2.0**10)
    assert torch.equal(plain.weight.grad * 2.0**10, scaled.weight.grad)
    assert not half_precision_step(lambda loss: loss * 2.0**126).weight.grad.isfinite().all()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    layer = half_precision_step(scaler.scale)
    before = layer.weight.detach().clone()
    scaler.step(torch.optim.SGD(layer.parameters(), lr=1.0))
    assert torch.equal(layer.weight, before - plain.weight.grad)


@pytest.mark.gpu
def test_replays_of_a_cuda_graph():
    """100 replays: samples of their own, and each backward decodes what its forward packed."""
    layer = coded_layer().cuda()
    x, dy = CODES.cuda(), torch.eye(16, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            layer(x).backward(dy)
    torch.cuda.current_stream().wait_stream(side)
    layer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(x).backward(dy)
    samples = set()
    for _ in range(100):
        layer.weight.grad.zero_()
        graph.replay()
        samples.add(revealed_sample(layer.weight.grad.cpu(), layer.sketch).numpy().tobytes())
    assert len(samples) > 60  # of 256; 83 expected


@pytest.mark.gpu
def test_the_key_comes_from_the_generator_of_the_device():
    layer, x = coded_layer().cuda(), CODES.cuda()
    with rng_untouched():
        before = torch.cuda.get_rng_state()
        layer(x)
        assert not torch.equal(before, torch.cuda.get_rng_state())

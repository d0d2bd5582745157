"""Compiled layers: each backward decodes the sample that its forward packed, under every backend, activation
memory budget, kind of checkpoint and autocast; no graph breaks, few recompilations."""

import itertools

import pytest
import torch
import torch._dynamo
from checks import CODES, SKETCH, draws, revealed_sample, rng_untouched, same_bits
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch import config as aot_config
from torch.utils.checkpoint import checkpoint

from rad_kernels import Sketch, functional, nn

COMPILERS = ("aot_eager", "aot_eager_decomp_partition", "inductor")
BUDGETS = (1, 0.5, 0)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


class Net(torch.nn.Module):
    """Five coded layers: one, and behind a ReLU four that share its output. All see CODES."""

    def __init__(self, linear=nn.Linear):
        super().__init__()
        samplings = ("rows", "rows", "rows", "same", "different")
        self.layers = torch.nn.ModuleList(
            linear(16, 16, bias=False, sketch=Sketch(0.25, s)) for s in samplings
        )
        for layer in self.layers:
            torch.nn.init.eye_(layer.weight)

    def forward(self, x):
        hidden = functional.relu(self.layers[0](x))
        return sum(layer(hidden) for layer in self.layers[1:])

    def check(self):
        """The samples of the last backward pass (see revealed_sample), then without gradients."""
        scales = (4, 1, 1, 1, 1)
        samples = [
            revealed_sample(l.weight.grad, l.sketch, s) for l, s in zip(self.layers, scales, strict=True)
        ]
        self.zero_grad()
        return samples


def compiled_step(net, call, steps=3, autocast=False):
    """The samples of some training steps, checked one by one and for being independent."""
    x, samples = CODES.clone().requires_grad_(), []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = call(x)
        codes = CODES.to(y.dtype)
        assert torch.equal(y, codes + codes + codes + codes)
        y.backward(torch.eye(16, dtype=y.dtype))
        samples.append(net.check())
    for one, other in itertools.combinations(range(3), 2):
        alike = [torch.equal(step[one], step[other]) for step in samples]
        assert not all(alike), "two layers share their sample"
    for layer in range(5):
        repeated = [torch.equal(a[layer], b[layer]) for a, b in itertools.pairwise(samples)]
        assert not all(repeated), "steps share a sample"
    return samples


def outer(kind, preserve, call):
    return lambda x: checkpoint(call, x, use_reentrant=kind == "reentrant", preserve_rng_state=preserve)


# name -> (compile, net) -> the call of a training step. A reentrant checkpoint cannot be compiled itself.
CHECKPOINTS = {
    "no checkpoint": lambda compile_, net: compile_(net),
    "reentrant": lambda compile_, net: outer("reentrant", True, compile_(net)),
    "reentrant, rng not kept": lambda compile_, net: outer("reentrant", False, compile_(net)),
    "non-reentrant": lambda compile_, net: outer("non-reentrant", True, compile_(net)),
    "non-reentrant, rng not kept": lambda compile_, net: outer("non-reentrant", False, compile_(net)),
    "compiled non-reentrant": lambda compile_, net: compile_(outer("non-reentrant", True, net)),
    "compiled, rng not kept": lambda compile_, net: compile_(outer("non-reentrant", False, net)),
}
# Inductor takes seconds a graph: each of its choices meets every budget or every checkpoint, not both.
MATRIX = [
    (backend, budget, kind, autocast)
    for backend in COMPILERS
    for budget in BUDGETS
    for kind in CHECKPOINTS
    for autocast in (False, True)
    if backend != "inductor" or (not autocast and (kind == "no checkpoint" or budget == 0.5))
]


@pytest.mark.parametrize("backend, budget, kind, autocast", MATRIX)
def test_backward_decodes_what_forward_packed(backend, budget, kind, autocast):
    net = Net()
    with aot_config.patch(activation_memory_budget=budget):
        call = CHECKPOINTS[kind](lambda f: torch.compile(f, backend=backend, fullgraph=True), net)
        compiled_step(net, call, autocast=autocast)


class PackedApart(torch.autograd.Function):
    """The design that does not work: the sample is drawn by torch beside the product."""

    @staticmethod
    def forward(x, weight):
        index = torch.arange(0, 16, 4) + torch.randint(4, (4,))
        return x @ weight.t(), x[index], index

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[1], *output[1:])

    @staticmethod
    def backward(ctx, dy, *_):
        weight, packed, index = ctx.saved_tensors
        return dy @ weight, 4 * dy[index].t() @ packed


class LinearPackedApart(nn.Linear):
    def __init__(self, *args, sketch, **kwargs):
        super().__init__(*args, sketch=SKETCH, **kwargs)

    def forward(self, x):
        return PackedApart.apply(x, self.weight)[0]


def test_the_checker_rejects_a_sample_drawn_apart_from_the_product():
    """Right in eager, silently wrong when compiled: backward draws other indices than forward packed."""
    net = Net(LinearPackedApart)
    compiled_step(net, net)
    with pytest.raises(AssertionError, match="rows are not whole"):
        compiled_step(net, torch.compile(net, backend="aot_eager_decomp_partition"))


@pytest.mark.parametrize("backend", COMPILERS)
def test_compiled_gradients_are_eagers_bit_for_bit(backend):
    """From the same seed: the key is drawn by the op itself, from torch's generator."""
    net = torch.nn.Sequential(
        nn.Linear(16, 24, bias=False, sketch=Sketch(0.3)),  # db of inductor is summed in another order
        nn.ReLU(),
        nn.Linear(24, 24, bias=False, sketch=Sketch(0.3, "same", "with_replacement")),
        nn.ReLU(inplace=True),
        nn.Linear(24, 8, bias=False, sketch=Sketch(0.3, "different")),
    )
    x, dy, results = torch.randn(32, 16, requires_grad=True), torch.randn(32, 8), []
    for call in (net, torch.compile(net, backend=backend, fullgraph=True)):
        torch.manual_seed(5)
        y = call(x)
        results.append((y, *torch.autograd.grad(y, (x, *net.parameters()), dy)))
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("backend", COMPILERS)
def test_compiled_gradients_are_unbiased(backend):
    """Mean of 250 steps of 6 directions of each of two dW. Seeded; a fresh seed would pass 5 standard errors
    with probability 7e-6 for the 12 of them. Redrawn indices (above) are off by 100."""
    net = torch.nn.Sequential(nn.Linear(8, 8, sketch=SKETCH), nn.ReLU(), nn.Linear(8, 4, sketch=SKETCH))
    x, target = torch.randn(32, 8), torch.randn(32, 4)
    with aot_config.patch(activation_memory_budget=0.5):
        call = torch.compile(lambda: (net(x) - target).square().sum(), backend=backend, fullgraph=True)
        weights = [net[0].weight, net[2].weight]
        net.eval()
        exact = torch.autograd.grad((net(x) - target).square().sum(), weights)
        net.train()
        directions = [torch.stack([dw, *(torch.randn_like(dw) for _ in range(5))]) for dw in exact]
        values = torch.stack(
            [
                torch.stack(
                    [(c * dw).sum((1, 2)) for c, dw in zip(directions, torch.autograd.grad(call(), weights))]
                )
                for _ in range(250)
            ]
        ).double()
    wanted = torch.stack([(c * dw).sum((1, 2)) for c, dw in zip(directions, exact)]).double()
    z = (values.mean(0) - wanted) / (values.std(0) / 250**0.5)
    assert z.abs().max() < 5


@pytest.mark.parametrize("backend", COMPILERS)
def test_generator_use_is_eagers(backend):
    layer = nn.Linear(8, 5, sketch=SKETCH)
    x, call = torch.randn(40, 8), torch.compile(layer, backend=backend, fullgraph=True)
    expected = layer(x)
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert torch.equal(call(x), expected)
            assert draws(lambda: call(x)) == 1
    layer.eval()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            call(x)
            with rng_untouched():
                assert torch.equal(call(x), expected)


def test_shared_linear_and_inplace_relu():
    weights = [torch.randn(m, 8, requires_grad=True) for m in (3, 5)]

    def step(x):
        a, b = functional.shared_linear(x, weights, [None, None], SKETCH)
        return functional.relu(a, inplace=True).sum() + functional.relu(b).square().sum()

    x, results = torch.randn(40, 8, requires_grad=True), []
    for call in (step, torch.compile(step, backend="aot_eager_decomp_partition", fullgraph=True)):
        torch.manual_seed(5)
        results.append(torch.autograd.grad(call(x), (x, *weights)))
    assert all(map(same_bits, *results))


def test_inplace_relu_modifies_its_argument_when_compiled():
    def step(x):
        hidden = x * 2
        y = functional.relu(hidden, inplace=True)
        return y + hidden

    x, results = torch.randn(40, requires_grad=True), []
    for call in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        y = call(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_dynamic_batches_do_not_recompile(sampling):
    """Two graphs: one for batches, one for a batch too small to be worth a pack."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = nn.Linear(32, 5, sketch=Sketch(0.25, sampling))
    call = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    for rows in (40, 33, 64, 100, 257, 48, 1024, 2, 3, 41):
        x, dy, start, results = torch.randn(rows, 32), torch.randn(rows, 5), torch.get_rng_state(), []
        for function in (call, layer):
            torch.set_rng_state(start)
            results.append(torch.autograd.grad(function(x), layer.weight, dy)[0])
        assert same_bits(*results)
    assert counter.frame_count <= 2
    for leading in ((4, 10), (7, 9), (3, 50)):
        call(torch.randn(*leading, 32)).sum().backward()
    assert counter.frame_count <= 3


def test_changed_sketches_and_layers_share_no_graph_limit():
    """Ten sketches of one layer class: each compiles, none is silently run with another one's sample."""
    x = CODES.clone().requires_grad_()
    layer = nn.Linear(16, 16, bias=False, sketch=SKETCH)
    torch.nn.init.eye_(layer.weight)
    call = torch.compile(layer, backend="aot_eager")
    for sampling, keep in itertools.product(("rows", "same", "different"), (0.25, 0.125, 0.5)):
        layer.sketch = Sketch(keep, sampling)
        layer.weight.grad = None
        call(x).backward(torch.eye(16))
        revealed_sample(layer.weight.grad, layer.sketch)


def test_export_of_an_eval_model_is_plain_torch():
    net = torch.nn.Sequential(
        nn.Linear(8, 6, sketch=SKETCH), nn.ReLU(), nn.Linear(6, 3, sketch=SKETCH)
    ).eval()
    x = torch.randn(40, 8)
    batch = torch.export.Dim("batch")
    with rng_untouched():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
        assert torch.equal(program.module()(x), net(x))
    assert program.module()(torch.randn(7, 8)).shape == (7, 3)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.linear.default", "aten.relu.default"}


def test_hooks_and_parametrizations():
    """Parametrized weights and gradient hooks survive compilation."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 5, sketch=SKETCH))
    seen, x, results = [], torch.randn(40, 8), []
    layer.bias.register_hook(lambda g: seen.append(g.clone()))
    for call in (layer, torch.compile(layer, backend="aot_eager")):
        torch.manual_seed(5)
        layer.zero_grad()
        call(x).square().sum().backward()
        results.append([p.grad.clone() for p in layer.parameters()])
    assert len(seen) == 2 and same_bits(*seen)
    assert all(map(same_bits, *results))

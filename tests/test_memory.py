"""saved_bytes and step_peak against figures that can be worked out by hand."""

import gc
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, linear, relu
from torch.utils.checkpoint import checkpoint

from rad_kernels.memory import saved_bytes, step_peak

FLOAT, LONG = 4, 8
DEVICES = ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def _gpu(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def fully_connected(device="cpu"):
    layers = []
    for inputs, outputs in pairwise([784, 300, 300, 300, 10]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device)


def digits(device="cpu"):
    return torch.zeros(150, 784, device=device), torch.zeros(150, dtype=torch.int64, device=device)


class Square(torch.autograd.Function):
    """Keeps x where `stash` says: "saved" (save_for_backward), "attribute" or "list" (on ctx)."""

    @staticmethod
    def forward(ctx, x, stash):
        if stash == "saved":
            ctx.save_for_backward(x.clone())
        elif stash == "attribute":
            ctx.x = x.clone()
        else:
            ctx.kept = [{"x": x.clone()}, None]
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad, None


@pytest.mark.parametrize("device", DEVICES)
def test_the_papers_fully_connected_network(device):
    net, (x, y) = fully_connected(device), digits(device)
    report = saved_bytes(lambda: cross_entropy(net(x), y))
    assert report.by_module == {
        "0": 150 * 784 * FLOAT,
        "1": 150 * 300 * FLOAT,
        "3": 150 * 300 * FLOAT,
        "5": 150 * 300 * FLOAT,
        "(functional)": 150 * 10 * FLOAT
        + 150 * LONG
        + FLOAT,  # log-softmax, labels, the sum of label weights
    }
    assert report.total == 470_400 + 3 * 180_000 + 6_000 + 1_200 + 4
    relu_output = report.entries[1]
    assert relu_output.module == "1" and relu_output.op == "ReluBackward0"
    assert relu_output.shape == (150, 300) and relu_output.dtype is torch.float32
    assert relu_output.shared_with == ("2: AddmmBackward0",)


def test_table_lists_every_entry_and_the_total():
    net, (x, y) = fully_connected(), digits()
    lines = str(saved_bytes(lambda: cross_entropy(net(x), y))).splitlines()
    assert len(lines) == 1 + 7 + 1
    assert lines[1].split() == ["0", "AddmmBackward0", "150x784", "float32", "470,400"]
    assert lines[2].split() == ["1", "ReluBackward0", "150x300", "float32", "180,000", "2:", "AddmmBackward0"]
    assert lines[-1].split() == ["total", "1,017,604"]


def test_a_graph_freed_inside_fn_does_not_count():
    net, (x, y) = fully_connected(), digits()

    def step():
        loss = cross_entropy(net(x), y)
        loss.backward()
        return loss

    def dropped():
        cross_entropy(net(x), y)

    gc.disable()  # reference counting alone must be enough
    try:
        assert saved_bytes(step).total == 0
        assert saved_bytes(dropped).total == 0
    finally:
        gc.enable()


def test_retain_graph_still_counts():
    x = torch.zeros(10, requires_grad=True)

    def step():
        loss = x.exp().sum()
        loss.backward(retain_graph=True)
        return loss

    assert saved_bytes(step).total == 10 * FLOAT


def test_the_surviving_graph_owns_a_storage_that_a_dropped_one_saved_first():
    x = torch.zeros(10)
    w = torch.zeros(10, requires_grad=True)

    class Scale(nn.Module):
        def forward(self, w):
            return w * x

    def fn():
        Scale()(w)
        return w * x

    (entry,) = saved_bytes(fn).entries
    assert (entry.module, entry.bytes, entry.shared_with) == ("(functional)", 40, ())


def test_a_graph_kept_alive_elsewhere_counts_without_its_names():
    kept = []
    x = torch.zeros(10, requires_grad=True)
    (entry,) = saved_bytes(lambda: kept.append(x.exp())).entries
    assert entry.bytes == 40 and entry.op == ""


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: linear(x, w),
        lambda x, w: x @ w.t(),
        lambda x, w: x @ w[:3].t(),
        lambda x, w: linear(x, w.view(-1).view(4, 5)),
        lambda x, w: x * w.detach()[0],
    ],
    ids=["functional", "transposed", "slice", "view of a view", "detached"],
)
def test_views_of_a_parameter_never_count(use):
    w = nn.Parameter(torch.zeros(4, 5))
    x = torch.zeros(7, 5, requires_grad=True)
    expected = [] if not use(x.detach(), w).requires_grad else [x.shape]
    assert [entry.shape for entry in saved_bytes(lambda: use(x, w)).entries] == expected


def test_a_parameter_made_inside_fn_never_counts():
    x = torch.zeros(7, 5, requires_grad=True)
    report = saved_bytes(lambda: linear(x, nn.Parameter(torch.zeros(4, 5))))
    assert report.total == 7 * 5 * FLOAT


def test_buffers_never_count_even_of_a_module_that_is_not_called():
    holder = nn.Module()
    holder.register_buffer("scale", torch.zeros(9))
    x = torch.zeros(9, requires_grad=True)
    assert saved_bytes(lambda: x * holder.scale).total == 0


def test_a_leaf_that_is_no_parameter_counts():
    w = torch.zeros(4, 5, requires_grad=True)
    x = torch.zeros(7, 5, requires_grad=True)
    assert saved_bytes(lambda: linear(x, w)).total == (4 * 5 + 7 * 5) * FLOAT


def test_a_slice_counts_as_its_whole_storage_once():
    images = torch.zeros(1000, 8)
    w = nn.Parameter(torch.zeros(3, 8))
    report = saved_bytes(lambda: linear(images[:10], w) + linear(images[10:20], w))
    (entry,) = report.entries
    assert entry.shape == (10, 8) and entry.bytes == 1000 * 8 * FLOAT and len(entry.shared_with) == 1


def test_inplace_relu_shares_its_storage():
    w = torch.zeros(6, requires_grad=True)
    report = saved_bytes(lambda: relu(w + 1, inplace=True).exp())
    assert [(e.op, e.bytes) for e in report.entries] == [("ReluBackward0", 24), ("ExpBackward0", 24)]


@pytest.mark.parametrize("stash", ["saved", "attribute", "list"])
def test_custom_function(stash):
    class Layer(nn.Module):
        def forward(self, x):
            return Square.apply(x, stash)

    x = torch.zeros(6, requires_grad=True)
    (entry,) = saved_bytes(lambda: nn.Sequential(Layer())(x)).entries
    assert (entry.module, entry.op, entry.bytes) == ("0", "SquareBackward", 24)


def test_ctx_attributes_of_an_older_graph_do_not_count():
    x = torch.zeros(6, requires_grad=True)
    older = Square.apply(x, "attribute")
    assert saved_bytes(lambda: older.exp()).total == 6 * FLOAT


def test_checkpoint_keeps_its_input_only():
    net, (x, y) = fully_connected(), digits()
    x.requires_grad_()
    loss_bytes = 6_000 + 1_200 + 4
    report = saved_bytes(lambda: cross_entropy(checkpoint(net, x, use_reentrant=False), y))
    assert report.total == 470_400 + loss_bytes
    report = saved_bytes(lambda: cross_entropy(checkpoint(net, x, use_reentrant=True), y))
    assert report.total == 470_400 + torch.get_rng_state().nbytes + loss_bytes


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks")
def test_compiled_network_keeps_the_same():
    net, (x, y) = fully_connected(), digits()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    compiled(x)
    assert saved_bytes(lambda: cross_entropy(compiled(x), y)).total == 1_017_604


def test_backward_gives_the_same_gradients_while_being_measured():
    net = fully_connected()
    x, y = torch.rand(20, 784), torch.arange(20) % 10
    expected = torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))
    got = []
    saved_bytes(lambda: got.extend(torch.autograd.grad(cross_entropy(net(x), y), list(net.parameters()))))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_nested_modules_get_qualified_names():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x):
            return self.act(x).exp()

    x = torch.zeros(5, requires_grad=True)
    net = nn.Sequential(Block(), Block())
    assert saved_bytes(lambda: net(x)).by_module == {"0.act": 20, "0": 20, "1.act": 20, "1": 20}


def test_several_roots():
    x = torch.zeros(5, requires_grad=True)
    one, two = nn.Sequential(nn.Tanh()), nn.Sequential(nn.Tanh())
    assert saved_bytes(lambda: two(one(x))).by_module == {"Sequential.0": 20, "Sequential#2.0": 20}
    assert saved_bytes(lambda: nn.Tanh()(nn.Sigmoid()(x))).by_module == {"Sigmoid": 20, "Tanh": 20}


def test_a_module_outside_the_tree_goes_by_its_class():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Tanh()]

        def forward(self, x):
            return self.layers[0](x)

    assert saved_bytes(lambda: Hidden()(torch.zeros(5, requires_grad=True))).by_module == {"Tanh": 20}


def test_an_exception_leaves_no_hook_behind():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("broken")

    x = torch.zeros(5, requires_grad=True)
    with pytest.raises(KeyError, match="broken"):
        saved_bytes(lambda: Broken()(x))
    hooks = nn.modules.module
    assert not hooks._global_forward_hooks and not hooks._global_forward_pre_hooks

    def caught():
        with pytest.raises(KeyError):
            Broken()(x)
        return x.tanh()

    assert saved_bytes(caught).by_module == {"(functional)": 20}


def test_a_sparse_tensor_counts_its_parts():
    indices = torch.tensor([[0, 1, 2], [0, 1, 2]])
    matrix = torch.sparse_coo_tensor(indices, torch.ones(3), (3, 4), check_invariants=True).coalesce()
    x = torch.zeros(4, 2, requires_grad=True)
    assert saved_bytes(lambda: torch.sparse.mm(matrix, x)).total == 6 * LONG + 3 * FLOAT


@pytest.mark.parametrize("measure", [saved_bytes, step_peak])
def test_not_callable(measure):
    with pytest.raises(TypeError, match=rf"{measure.__name__}: fn must be callable .* got Tensor"):
        measure(torch.zeros(1))


def test_peak_of_allocations_by_hand():
    def fn():
        a = torch.empty(1000)  # 4000
        b = torch.empty(2000)  # 12000, the peak
        del a
        c = torch.empty(500)  # 10000
        return b, c

    assert step_peak(fn) == 12_000


def test_peak_sees_temporaries_inside_operators():
    x, w = torch.rand(50, 40), torch.rand(40, 30)
    assert step_peak(lambda: (x @ w).sum()) == (50 * 30 + 1) * FLOAT
    # layer_norm copies a transposed input while it runs, and makes a mean and a scale for each row.
    assert step_peak(lambda: layer_norm(x.t(), (50,))) == (2 * 40 * 50 + 2 * 40) * FLOAT


def test_peak_of_a_backward_pass():
    x = torch.zeros(1000, requires_grad=True)

    def fn():
        x.grad = None
        x.exp().sum().backward()

    # Forward: exp 4000 and its sum 4. Backward: 4 for the initial one, and the gradient of x, 4000.
    assert step_peak(fn) == 4000 + 4 + 4 + 4000


def test_peak_ignores_memory_that_was_there_before():
    box = [torch.zeros(100_000)]

    def fn():
        box.clear()
        return torch.zeros(10)

    assert step_peak(fn) == 40
    assert step_peak(lambda: None) == 0


def test_a_block_outliving_one_measurement_does_not_disturb_the_next():
    kept = []
    assert step_peak(lambda: kept.append(torch.empty(1_000_000))) == 4_000_000

    def fn():
        kept.clear()
        first = torch.empty(1_000_000)
        return first, torch.empty(10)

    assert step_peak(fn) == 4_000_040


@pytest.mark.gpu
def test_peak_on_cuda():
    def fn():
        a = torch.empty(1 << 20, device="cuda")
        del a
        return torch.empty(1 << 10, device="cuda")

    assert step_peak(fn, "cuda") == 4 << 20


def test_peak_refuses_other_devices():
    with pytest.raises(ValueError, match="step_peak: device must be a CPU or CUDA device, got 'meta'"):
        step_peak(lambda: None, "meta")

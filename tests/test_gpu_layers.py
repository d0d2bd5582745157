"""Every layer on a GPU: torch's outputs, the CPU's masks and codes, unbiased gradients; in graphs too."""

import copy

import pytest
import torch
from checks import same_bits

from rad_kernels import Sketch, nn, ops

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
KEYS = 64
HALF = Sketch(0.5)
CODES = Sketch(0.5, bits=4)

# layer of ours, torch's twin, shape of x: large enough that each pack is worth it.
LAYERS = {
    "conv rows": (lambda: nn.Conv2d(8, 12, 3, padding=1, sketch=HALF), torch.nn.Conv2d, (6, 8, 12, 12)),
    "conv codes": (lambda: nn.Conv2d(8, 12, 3, sketch=CODES), torch.nn.Conv2d, (6, 8, 12, 12)),
    "gelu": (lambda: nn.GELU(), torch.nn.GELU, (64, 200)),
    "silu": (lambda: nn.SiLU(), torch.nn.SiLU, (64, 200)),
    "tanh": (lambda: nn.Tanh(), torch.nn.Tanh, (64, 200)),
    "prelu": (lambda: nn.PReLU(200), torch.nn.PReLU, (64, 200)),
    "layer norm": (lambda: nn.LayerNorm(96), torch.nn.LayerNorm, (64, 96)),
    "rms norm": (lambda: nn.RMSNorm(96), torch.nn.RMSNorm, (64, 96)),
    "group norm": (lambda: nn.GroupNorm(4, 16), torch.nn.GroupNorm, (8, 16, 12, 12)),
    "batch norm": (lambda: nn.BatchNorm2d(16), torch.nn.BatchNorm2d, (8, 16, 12, 12)),
    "rnn": (lambda: nn.RNN(24, 32, sketch=HALF), torch.nn.RNN, (9, 40, 24)),
    "lstm": (lambda: nn.LSTM(24, 32, sketch=HALF), torch.nn.LSTM, (9, 40, 24)),
    "gru": (lambda: nn.GRU(24, 32, sketch=CODES), torch.nn.GRU, (9, 40, 24)),
}
EXACT = {
    "relu6": (lambda: nn.ReLU6(), torch.nn.ReLU6, (33, 65)),
    "leaky relu": (lambda: nn.LeakyReLU(0.25), torch.nn.LeakyReLU, (33, 65)),
    "hardtanh": (lambda: nn.Hardtanh(), torch.nn.Hardtanh, (33, 65)),
    "max pool": (lambda: nn.MaxPool2d(2), torch.nn.MaxPool2d, (3, 5, 13, 14)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), torch.nn.AvgPool2d, (3, 5, 13, 14)),
}


def output(layer, x):
    y = layer(x)
    return y[0] if isinstance(y, tuple) else y


def pair(kind, dtype):
    """(our layer, torch's with the same parameters, x, dy), on the device."""
    make, exact_class, shape = kind
    torch.manual_seed(3)
    ours = make().to(DEVICE, dtype)
    exact = copy.deepcopy(ours)
    exact.__class__ = exact_class
    x = torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()
    dy = torch.randn(output(exact, x).shape, dtype=torch.float64).to(DEVICE, dtype)
    return ours, exact, x, dy


def gradients(layer, x, dy):
    inputs = [x, *layer.parameters()]
    return torch.autograd.grad(output(layer, x), inputs, dy)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_unbiased(name):
    """|mean - exact|^2 over KEYS draws is their variance / KEYS in expectation; many entries add up to it.

    float64, so that rounding is far below; what is exact (dx of a convolution) is so within rounding."""
    ours, exact, x, dy = pair(LAYERS[name], torch.float64)
    expected = gradients(exact, x, dy)
    torch.cuda.manual_seed(11)
    draws = [gradients(ours, x, dy) for _ in range(KEYS)]
    noisy = 0
    for wanted, *found in zip(expected, *draws):
        stacked = torch.stack(found)
        scale = wanted.square().sum()
        error = (stacked.mean(0) - wanted).square().sum()
        variance = stacked.var(0).sum()
        if variance < 1e-20 * scale:
            assert error < 1e-20 * scale, name
        else:
            noisy += 1
            assert error < 3 * variance / KEYS, name
    assert noisy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_torchs(name, dtype):
    ours, exact, x, dy = pair(LAYERS[name], dtype)
    y, expected = output(ours, x), output(exact, x)
    if name in ("rnn", "lstm", "gru", "batch norm"):  # cuDNN's kernels sum in another order than ours
        tolerance = 8 * torch.finfo(dtype).eps * expected.abs().max()
        assert (y - expected).abs().max() <= tolerance
    else:
        assert same_bits(y, expected)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y, [x, *ours.parameters()], dy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact_layers(name, dtype):
    ours, exact, x, dy = pair(EXACT[name], dtype)
    assert same_bits(output(ours, x), output(exact, x))
    (dx,), (expected,) = gradients(ours, x, dy), gradients(exact, x, dy)
    if name == "average pool":  # overlapping windows, whose order of sums is torch's own affair
        torch.testing.assert_close(dx, expected)
    else:
        assert same_bits(dx, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", ["gelu", "silu", "tanh", "softplus"])
def test_codes_of_derivatives_are_the_cpus(function, dtype):
    key = torch.tensor([77])
    for length in (1, 31, 64, 257, 70_001):
        x, parameters = torch.randn(length).to(dtype), (1.0, 20.0, 0.0)
        for bits in (4, 1):
            _, on_cpu = ops.activation(x, function, parameters, bits, key)
            _, on_gpu = ops.activation(x.to(DEVICE), function, parameters, bits, key.to(DEVICE))
            assert torch.equal(on_gpu.cpu(), on_cpu), (length, bits)
            dx = ops.derivative_product(x.to(DEVICE), on_gpu, function, parameters, bits, (1,)).cpu()
            assert same_bits(dx, ops.derivative_product(x, on_cpu, function, parameters, bits, (1,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_windows_of_a_pool_are_the_cpus(dtype):
    x = torch.randn(15, 1, 17, 19, 1).to(dtype)
    x[0, 0, 3, 3] = float("nan")
    geometry = (1, 3, 3, 1, 2, 2, 0, 0, 0, 1, 1, 1)
    y, codes = ops.max_pool(x, (1, 8, 9), geometry)
    there = ops.max_pool(x.to(DEVICE), (1, 8, 9), geometry)
    assert same_bits(there[0].cpu(), y) and torch.equal(there[1].cpu(), codes)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    torch.manual_seed(5)
    logits = torch.randn(40, 300, dtype=torch.float64, device=DEVICE, requires_grad=True)
    target = torch.randint(300, (40,), device=DEVICE)
    target[3] = -100
    ours, exact = (
        nn.CrossEntropyLoss(label_smoothing=smoothing),
        torch.nn.CrossEntropyLoss(label_smoothing=smoothing),
    )
    assert same_bits(ours(logits, target), exact(logits, target))
    (expected,) = torch.autograd.grad(exact(logits, target), logits)
    draws = torch.stack([torch.autograd.grad(ours(logits, target), logits)[0] for _ in range(KEYS)])
    error, variance = (draws.mean(0) - expected).square().sum(), draws.var(0).sum()
    assert 0 < error < 3 * variance / KEYS
    assert not expected[3].any() and not draws[:, 3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("keep", [0.2, 1.0])
def test_reaction_and_diffusion(keep, dtype):
    """Sample, states and gradients of several grids are the CPU's but for the order of the last sums."""
    torch.manual_seed(9)
    u, source, target = (torch.randn(n, 9, 10, dtype=dtype) for n in (3, 6, 2))
    fields = u, source.view(3, 2, 9, 10), target, torch.rand(5, 2, dtype=dtype)
    how, key = (17, 0.1, 0.05, Sketch(keep, "different").spec), torch.tensor([13])
    on_cpu = ops.reaction_diffusion(*fields, *how, key)
    there = tuple(field.to(DEVICE) for field in fields)
    on_gpu = ops.reaction_diffusion(*there, *how, key.to(DEVICE))
    torch.testing.assert_close([t.cpu() for t in on_gpu[:2]], list(on_cpu[:2]))
    if keep < 1:
        assert torch.equal(on_gpu[2][-64:].cpu(), on_cpu[2][-64:]) and len(on_gpu[2]) == len(on_cpu[2])
    gradients = torch.randn_like(u), torch.randn_like(u)
    expected = ops.reaction_diffusion_backward(*gradients, *fields, on_cpu[2], *how)
    moved = (gradient.to(DEVICE) for gradient in gradients)
    found = ops.reaction_diffusion_backward(*moved, *there, on_gpu[2], *how)
    torch.testing.assert_close([t.cpu() for t in found], list(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sampling", ["rows", "tile_rows"])
@pytest.mark.parametrize("bits", [None, 4])
def test_both_ways_to_a_weight_gradient(sampling, bits, dtype):
    """Each within one rounding of dW and one of the decoded values from the product with the estimate."""
    torch.manual_seed(3)
    for rows, features, outputs in ((50, 140, 37), (512, 256, 128), (300, 129, 264)):
        spec = Sketch(0.3, sampling, bits=bits).spec
        x, dy = (torch.randn(rows, n).to(dtype).to(DEVICE) for n in (features, outputs))
        saved = ops.pack(x, spec)
        estimate = ops.unpack(saved, rows, features, dtype, spec).double()
        bound = 2 * torch.finfo(dtype).eps * (dy.double().abs().t() @ estimate.abs())
        for fused in (True, False):
            dw = ops.rows_wgrad(dy, saved, features, spec, fused=fused)
            assert ((dw.double() - dy.double().t() @ estimate).abs() <= bound).all(), (rows, fused)


CONVOLUTIONS = {  # x, weight, (stride, padding, dilation, transposed, output_padding, groups)
    "aligned": ((4, 64, 14, 15), (136, 64, 3, 3), ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
    "wide": ((2, 136, 9, 9), (24, 136, 3, 3), ([2, 2], [1, 1], [1, 1], False, [0, 0], 1)),
    "odd groups": ((3, 10, 13, 11), (22, 5, 3, 3), ([1, 2], [2, 0], [2, 1], False, [0, 0], 2)),
    "transposed": ((3, 24, 9, 7), (24, 20, 4, 4), ([2, 2], [1, 1], [1, 1], True, [0, 0], 1)),
    "line": ((5, 16, 301), (16, 16, 5), ([1], [2], [1], False, [0], 1)),
    "solid": ((2, 8, 6, 7, 8), (16, 8, 3, 3, 3), ([1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1)),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sampling", ["rows", "same"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weight_gradients_of_convolutions(name, sampling, channels_last, dtype):
    """Within one rounding of dW and one of the decoded values from torch's with the estimate; repeatable."""
    torch.manual_seed(3)
    shape, weight_shape, geometry = CONVOLUTIONS[name]
    by_channel = sampling == "same"
    weight = torch.randn(weight_shape).to(DEVICE, dtype)
    x = torch.randn(shape).to(DEVICE, dtype)
    for bits in (None, 4):
        spec = Sketch(0.3, sampling, bits=bits).spec
        y, saved = ops.conv(x, weight, None, spec, by_channel, *geometry)
        dy = torch.randn(y.shape).to(DEVICE, dtype)
        if channels_last:
            dy = dy.movedim(1, -1).contiguous().movedim(-1, 1)
        estimate = ops.unpack(saved, *ops.packed_shape(shape, by_channel), dtype, spec).double()
        if not by_channel:
            estimate = estimate.view(shape[0], -1, shape[1]).transpose(1, 2)

        def exact(dy, x):
            return torch.ops.aten.convolution_backward(
                dy, x.reshape(shape), weight.double(), None, *geometry, (False, True, False)
            )[1]

        bound = 2 * torch.finfo(dtype).eps * exact(dy.double().abs(), estimate.abs())
        stride, padding, dilation, transposed, _, groups = geometry
        how = spec, by_channel, stride, padding, dilation, transposed, groups
        dw = ops.conv_wgrad(dy, saved, shape, weight_shape, *how)
        assert ((dw.double() - exact(dy.double(), estimate)).abs() <= bound).all(), bits
        assert same_bits(ops.conv_wgrad(dy, saved, shape, weight_shape, *how), dw), bits


def network():
    return torch.nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, sketch=CODES),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        torch.nn.Flatten(),
        nn.LayerNorm(16 * 64),
        nn.Linear(16 * 64, 64, sketch=HALF),
        nn.GELU(),
        nn.Dropout(0.1),
        torch.nn.Linear(64, 10),
    )


def test_a_network_in_a_graph():
    """Gradients of replays differ, as their draws do, and their mean is near that of eager draws."""
    torch.manual_seed(7)
    model = network().to(DEVICE)
    x, labels = torch.randn(32, 3, 16, 16, device=DEVICE), torch.randint(10, (32,), device=DEVICE)
    parameters = list(model.parameters())

    def step():
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        return torch.autograd.grad(loss, parameters)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    replays, eager = [], []
    for _ in range(KEYS):
        graph.replay()
        replays.append(captured[0].clone())
        eager.append(step()[0])
    assert len({tuple(replay.flatten()[:8].tolist()) for replay in replays}) == KEYS
    first, second = torch.stack(replays), torch.stack(eager)
    variance = first.var(0).sum() + second.var(0).sum()
    assert (first.mean(0) - second.mean(0)).square().sum() < 3 * variance / KEYS

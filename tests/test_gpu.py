"""What only a GPU can show: its samples, codes and masks are the CPU's, its products keep their bounds, and
graphs, streams, allocator and compiler find the ops as they expect them."""

import conv_cases
import pytest
import torch
from cases import COMBINATIONS, DTYPES, LINEARS, LinearCase
from checks import CODES, ROUNDING, error_over_bound, revealed_sample, rng_untouched, same_bits

from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.memory import step_peak
from rad_kernels.sketch import BITS, WITHOUT_BITS, saved_nbytes

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
BLOCK = 512  # torch's allocator rounds sizes up to this
WITH_BITS = [
    (*combination, bits)
    for combination in COMBINATIONS
    for bits in (None, *BITS)
    if bits is None or combination[0] not in WITHOUT_BITS
]


MATMUL_SHORTCUTS = (
    "allow_tf32",
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
)


@pytest.fixture(autouse=True)
def _products_in_full_precision():
    """The bounds are those of fp32 sums: no TF32, and no partial sums in 16 bits."""
    matmul = torch.backends.cuda.matmul
    before = {name: getattr(matmul, name) for name in MATMUL_SHORTCUTS}
    for name in MATMUL_SHORTCUTS:
        setattr(matmul, name, False)
    yield
    for name, value in before.items():
        setattr(matmul, name, value)


def key_of(number: int) -> torch.Tensor:
    return torch.tensor([number * 0x9E3779B97F4A7C15 % 2**63])


def activation(case: LinearCase, sketch: Sketch, dtype) -> torch.Tensor:
    """Integers where the pack holds sums, so that they are the same in every order."""
    if sketch.sampling == "project" or sketch.draw == "norm":
        return torch.randint(-3, 4, (case.rows, case.features)).to(dtype)
    return torch.randn(case.rows, case.features, dtype=torch.float64).to(dtype)


def sketches_for(kind, case, dtype):
    """Every keep at which the layer would pack this case."""
    keeps = (0.07, 0.3, 0.5, 1.0) if kind[2] else (0.07, 0.3, 0.5)
    for keep in keeps:
        sketch = Sketch(keep, *kind)
        if sketch.is_worthwhile(case.rows, case.features, dtype):
            yield sketch


# the CPU's bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", WITH_BITS, ids=str)
def test_packs_are_those_of_the_cpu(kind, dtype):
    """Sample, values and codes: the buffers are equal byte by byte, and decoded to the same bits."""
    compared = 0
    for case in (*LINEARS, LinearCase(130, 300, 8)):
        for sketch in sketches_for(kind, case, dtype):
            x, key, shape = activation(case, sketch, dtype), key_of(compared + 1), (case.rows, case.features)
            on_cpu = ops.pack(x, sketch.spec, key)
            on_gpu = ops.pack(x.to(DEVICE), sketch.spec, key.to(DEVICE))
            assert torch.equal(on_gpu.cpu(), on_cpu), (case, sketch)
            expected = ops.unpack(on_cpu, *shape, dtype, sketch.spec)
            decoded = ops.unpack(on_gpu, *shape, dtype, sketch.spec).cpu()
            if sketch.sampling == "project":
                torch.testing.assert_close(decoded, expected)  # a product, summed in another order
            else:
                assert same_bits(decoded, expected), (case, sketch)
            compared += 1
    assert compared


def packed_values(saved, rows, features, dtype):
    """The values of ``project``'s pack, [rows, kept]."""
    return saved[: rows * features * dtype.itemsize].view(dtype).view(rows, features).double()


def dense_estimate(x, sketch, key):
    """(float64 matrix that dW is a product with, bound of the sums in its entries, terms of a sum)."""
    rows, features = x.shape
    if sketch.sampling == "project":
        eye = torch.eye(features, dtype=x.dtype)
        kept = sketch.kept(features)
        signs = packed_values(ops.pack(eye, sketch.spec, key), features, kept, x.dtype)
        values = packed_values(ops.pack(x, sketch.spec, key), rows, kept, x.dtype)
        scale = kept * signs.abs().max() ** 2
        return values @ signs.t() / scale, values.abs() @ signs.abs().t() / scale, rows + kept
    # The norm draw depends on x, here integers, whose norms are the same in every dtype.
    source = x.double() if sketch.draw == "norm" else torch.ones(rows, features, dtype=torch.float64)
    plain = Sketch(sketch.keep, sketch.sampling, sketch.draw)
    sampled = ops.unpack(ops.pack(source, plain.spec, key), rows, features, torch.float64, plain.spec)
    weights = torch.where(source == 0, 0.0, sampled / source)
    values = torch.where(weights == 0, 0.0, weights * x.double())
    if sketch.bits is None:
        return values, values.abs(), rows
    if sketch.draw == "norm":
        weights = weights.amax(1, keepdim=True)  # of whole rows, zeros in x included
    codes = ops.unpack(ops.pack(x, sketch.spec, key), rows, features, x.dtype, sketch.spec).double()
    step = x.double().amax(1, keepdim=True) - x.double().amin(1, keepdim=True)  # at most
    return codes, weights * (x.double().abs() + step), rows


def within_roundings(dw, dy, estimate, magnitude, terms, copies):
    """max |dw - dy^T estimate| over its bound: roundings of factors into the dtype (decoded value, weight,
    sum of copies, the intermediate product of ``project``), and sums of ``terms`` with three each."""
    accumulator = ROUNDING[torch.float64 if dw.dtype == torch.float64 else torch.float32]
    relative = (4 + copies) * ROUNDING[dw.dtype] + 2 * (terms + 6) * accumulator
    smallest = torch.finfo(dw.dtype).smallest_normal * torch.finfo(dw.dtype).eps
    bound = relative * (dy.abs().t() @ magnitude) + smallest
    return float(((dw.double() - dy.t() @ estimate).abs() / bound).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", WITH_BITS, ids=str)
def test_dw_within_the_rounding_bound(kind, dtype):
    for case in (*LINEARS, LinearCase(130, 300, 72)):
        for number, sketch in enumerate(sketches_for(kind, case, dtype)):
            x, key = activation(case, sketch, dtype), key_of(number + 1)
            dy = torch.randn(case.rows, case.outputs, dtype=torch.float64).to(dtype)
            saved = ops.pack(x.to(DEVICE), sketch.spec, key.to(DEVICE))
            dw = ops.linear_wgrad(dy.to(DEVICE), saved, case.features, sketch.spec).cpu()
            estimate, magnitude, terms = dense_estimate(x, sketch, key)
            if sketch.bits is None and (sketch.sampling, sketch.draw) in PLAIN:
                error = error_over_bound(dw, dy.double(), estimate)
            else:
                copies = 1 if sketch.draw == "stratified" else MOST_COPIES
                error = within_roundings(dw, dy.double(), estimate, magnitude, terms, copies)
            assert error <= 1, (case, sketch)


# How often one index is drawn at most, with these keys and shapes.
MOST_COPIES = 8
# One rounding of each product and none of what enters it: the sharper bound holds.
PLAIN = [("rows", "stratified"), ("same", "stratified"), ("different", "stratified")]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_is_torchs_and_its_mask_the_cpus(dtype):
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")], dtype=dtype)
    for length in (1, 31, 32, 33, 257, 70_001):
        x = torch.cat([special, torch.randn(length).to(dtype)])
        y, mask = ops.relu(x.to(DEVICE))
        on_cpu, expected = ops.relu(x)
        assert same_bits(y.cpu(), on_cpu) and torch.equal(mask.cpu(), expected)
        dy = torch.randn(len(x)).to(dtype)
        dx = ops.masked(dy.to(DEVICE), mask, (1,)).cpu()
        assert same_bits(dx, ops.masked(dy, expected, (1,)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_masks_are_the_cpus_in_both_passes(dtype):
    for length in (1, 7, 64, 257, 70_001):
        x, key, threshold = torch.randn(length).to(dtype), key_of(length), 2**30
        y, saved = ops.dropout(x.to(DEVICE), threshold, key.to(DEVICE))
        assert same_bits(y.cpu(), ops.dropout(x, threshold, key)[0])
        assert same_bits(ops.dropout_backward(x.to(DEVICE), saved, threshold, (1,)), y)


# randomness

SAMPLINGS = ["rows", "same", "different"]


def one_step(weight, x, dy, sketch):
    """(saved buffer's key, dW) of one forward and backward."""
    y, saved = ops.linear(x, weight, None, sketch.spec)
    return saved[-64:-56], ops.linear_wgrad(dy, saved, x.shape[1], sketch.spec), y


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_replay_of_a_graph_has_its_own_consistent_sample(sampling):
    sketch, x, dy = Sketch(0.25, sampling), CODES.to(DEVICE), torch.eye(16, device=DEVICE)
    weight = torch.zeros(16, 16, device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        one_step(weight, x, dy, sketch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        key, dw, _ = one_step(weight, x, dy, sketch)
    seen, samples = set(), set()
    for _ in range(100):
        graph.replay()
        seen.add(bytes(key.cpu().tolist()))
        samples.add(bytes(revealed_sample(dw.cpu(), sketch).to(torch.uint8).flatten().tolist()))
    assert len(seen) == 100 and len(samples) > 50


def test_replays_through_autograd_are_consistent():
    sketch, x, dy = Sketch(0.25), CODES.to(DEVICE), torch.eye(16, device=DEVICE)
    layer = nn.Linear(16, 16, bias=False, sketch=sketch, device=DEVICE)

    def step():
        return torch.autograd.grad(layer(x), layer.weight, dy)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        dw = step()
    samples = set()
    for _ in range(100):
        graph.replay()
        samples.add(str(revealed_sample(dw.cpu(), sketch)[:, 0].tolist()))
    assert len(samples) > 50


def test_keys_come_from_the_devices_generator():
    sketch, x = Sketch(0.25), CODES.to(DEVICE)
    with rng_untouched():
        torch.cuda.manual_seed(5)
        first, second = ops.pack(x, sketch.spec), ops.pack(x, sketch.spec)
        torch.cuda.manual_seed(5)
        again = ops.pack(x, sketch.spec)
    assert torch.equal(first[-64:], again[-64:]) and not torch.equal(first[-64:], second[-64:])


# streams and devices


@pytest.mark.parametrize("kind", WITH_BITS, ids=str)
def test_work_is_on_the_current_stream(kind):
    """x and dy change late on a busy side stream: a kernel on another one would see the old values."""
    case, sketch, key = LinearCase(130, 300, 72), Sketch(0.3, *kind), key_of(7).to(DEVICE)
    x, dy = activation(case, sketch, torch.float32).to(DEVICE), torch.randn(130, 72, device=DEVICE)
    expected = ops.linear_wgrad(dy, ops.pack(x, sketch.spec, key), 300, sketch.spec)
    late_x, late_dy, side = torch.zeros_like(x), torch.zeros_like(dy), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)
        late_x.copy_(x)
        late_dy.copy_(dy)
        dw = ops.linear_wgrad(late_dy, ops.pack(late_x, sketch.spec, key), 300, sketch.spec)
    torch.cuda.synchronize()
    assert same_bits(dw, expected)


def test_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    other, sketch, key = torch.device("cuda:1"), Sketch(0.25, "different"), key_of(3)
    with torch.cuda.device(0):
        saved = ops.pack(CODES.to(other), sketch.spec, key.to(other))
        dw = ops.linear_wgrad(torch.eye(16, device=other), saved, 16, sketch.spec)
        assert saved.device == dw.device == other
    here = ops.linear_wgrad(torch.eye(16), ops.pack(CODES, sketch.spec, key), 16, sketch.spec)
    assert same_bits(dw.cpu(), here)


# memory


@pytest.mark.parametrize("kind", WITH_BITS, ids=str)
def test_the_allocator_holds_what_the_formula_says(kind):
    sketch, dtype = Sketch(0.1, *kind), torch.bfloat16
    layer = nn.Linear(1024, 768, sketch=sketch, device=DEVICE, dtype=dtype)
    x = torch.randn(4096, 1024, device=DEVICE).to(dtype).requires_grad_()
    layer(x).sum().backward()  # workspaces of the libraries are there from now on
    layer.zero_grad()
    x.grad = None
    before = torch.cuda.memory_allocated()
    y = layer(x)
    held = torch.cuda.memory_allocated() - before
    kept = saved_nbytes(4096, 1024, dtype, sketch)
    assert held == sum(-(-size // BLOCK) * BLOCK for size in (y.nbytes, kept))


@pytest.mark.parametrize("sampling", ["rows", "tile_rows", "same", "different"])
def test_peak_of_a_deep_network_is_below_torchs(sampling):
    def peak(make):
        layers = torch.nn.Sequential(*(make() for _ in range(4))).to(DEVICE, torch.bfloat16)
        x = torch.randn(8192, 1024, device=DEVICE, dtype=torch.bfloat16)

        def step():
            layers(x).sum().backward()

        step()
        layers.zero_grad()
        return step_peak(step, DEVICE)

    exact = peak(lambda: torch.nn.Linear(1024, 1024))
    assert peak(lambda: nn.Linear(1024, 1024, sketch=Sketch(0.1, sampling))) < exact


# composition


def test_autocast():
    sketch, layer = Sketch(0.25), nn.Linear(16, 16, sketch=Sketch(0.25), device=DEVICE)
    x = CODES.to(DEVICE).requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert same_bits(y, expected) and y.dtype == torch.bfloat16
    y.backward(torch.eye(16, device=DEVICE, dtype=torch.bfloat16))
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == x.grad.dtype == torch.float32
    revealed_sample(layer.weight.grad.cpu(), sketch)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_compiled_samples_are_consistent_and_fresh(sampling, backend):
    torch.compiler.reset()
    sketch, x, dy = Sketch(0.25, sampling), CODES.to(DEVICE), torch.eye(16, device=DEVICE)
    weights = [torch.zeros(16, 16, device=DEVICE, requires_grad=True) for _ in range(2)]

    @torch.compile(backend=backend, fullgraph=True)
    def two_layers(x, first, second):
        return functional.linear(x, first, None, sketch), functional.linear(x, second, None, sketch)

    samples = set()
    for _ in range(10):
        for dw in torch.autograd.grad(two_layers(x, *weights), weights, (dy, dy)):
            samples.add(str(revealed_sample(dw.cpu(), sketch).tolist()))
    assert len(samples) > 10  # of 20: layers and calls do not share one


def test_a_training_step_of_the_layers():
    """Sampled Linear, ReLU and Dropout together, eager: the loss falls."""
    torch.cuda.manual_seed(1)
    sketch = Sketch(0.25, "different", bits=4)
    network = torch.nn.Sequential(
        nn.Linear(64, 256, sketch=sketch), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 10, sketch=sketch)
    ).to(DEVICE)
    x, labels = torch.randn(512, 64, device=DEVICE), torch.randint(10, (512,), device=DEVICE)
    optimizer, losses = torch.optim.Adam(network.parameters(), 1e-3), []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sampling", ["rows", "same", "different"])
def test_convolutions(sampling, transposed):
    """Packs are the CPU's, dW keeps its bound, and dx is torch's but for the algorithm's sums."""
    case = conv_cases.ConvCase(3, 6, (9, 8), 10, (3, 2), 2, 1, groups=2, transposed=transposed)
    for dtype in DTYPES:
        for bits in (None, 4):
            sketch, by_channel = Sketch(0.3, sampling, bits=bits), sampling != "rows"
            x, weight, _ = case.data(dtype)
            saved = case.pack(x, weight, sketch, by_channel, conv_cases.KEY)
            there = case.pack(x.to(DEVICE), weight.to(DEVICE), sketch, by_channel, conv_cases.KEY)
            assert torch.equal(there.cpu(), saved)
            conv_cases.check(case, sketch, dtype, DEVICE)
    conv = functional.conv_transpose2d if transposed else functional.conv2d
    x, weight, dy = (t.to(DEVICE).requires_grad_() for t in case.data())
    y = conv(x, weight, None, 2, 1, groups=2, sketch=Sketch(0.3, sampling))
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected,) = torch.autograd.grad(case.forward(x, weight), x, dy)
    assert torch.allclose(dx, expected, rtol=1e-10, atol=1e-10)

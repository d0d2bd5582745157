"""Recurrent layers against torch's: values, states, gradients, every option, memory and random numbers.

With ``bits=None`` and EXACT (every hidden state kept, in a pack) the layers' gradients are torch's to
rounding, so that each option can be compared entry by entry; test_rnn_unbiased.py has the estimators.
"""

import copy
import io
import warnings

import pytest
import torch
from checks import draws, rng_untouched
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

from rad_kernels import Sketch, functional, memory, nn, ops
from rad_kernels.functional import SketchWarning, _rnn
from rad_kernels.ops.rnn import Layer

CELLS = {
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "tanh": ("RNN", {}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}
SKETCH = Sketch(0.25, "different")
# Sums of a few dozen products in another order, over a handful of steps: some thousand roundings at most.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5, torch.bfloat16: 0.1}
every_cell = pytest.mark.parametrize("cell", CELLS)


def pair(cell, *sizes, sketch=SKETCH, bits=8, return_sequence=True, **options):
    """A sampled layer and torch's with the same parameters."""
    name, extra = CELLS[cell]
    torch.manual_seed(5)
    layer = getattr(nn, name)(
        *sizes, sketch=sketch, bits=bits, return_sequence=return_sequence, **extra, **options
    )
    exact = getattr(torch.nn, name)(*sizes, **extra, **options)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


@pytest.fixture
def everything_kept(monkeypatch):
    """The op runs with all inputs packed whole, so that nothing is sampled."""
    whole = (1, 1, 0, 0, 0)

    def specs(layer, sketch, dtype, needs_ih, needs_hh):
        return layer._replace(spec_x=whole if needs_ih else (), spec_h=whole if needs_hh else ())

    monkeypatch.setattr(_rnn, "_planned", specs)
    monkeypatch.setattr(_rnn, "EXACT_SPEC", None)


def states_of(result):
    states = result[1]
    return states if isinstance(states, tuple) else (states,)


def data_of(y):
    return y.data if isinstance(y, PackedSequence) else y


def assert_close(actual, expected):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    scale = max(1.0, expected.abs().max().item())
    assert (actual - expected).abs().max().item() <= TOLERANCE[expected.dtype] * scale


def compare(layer, exact, x, hx=None, sequence=True):
    """Outputs, states and all gradients of both on the same data."""
    results = []
    for module in (layer, exact):
        own = copy.copy(x) if isinstance(x, PackedSequence) else x.detach().clone()
        leaf = data_of(own).detach().clone().requires_grad_()
        own = own._replace(data=leaf) if isinstance(x, PackedSequence) else leaf
        start = None if hx is None else [s.detach().clone().requires_grad_() for s in hx]
        given = None if start is None else tuple(start) if len(start) > 1 else start[0]
        module.zero_grad()
        out = module(own, given)
        loss = sum((s * (i + 1.5)).square().sum() for i, s in enumerate(states_of(out)))
        if sequence:
            y = data_of(out[0])
            loss = loss + (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum()
        loss.backward()
        outputs = [*([data_of(out[0])] if sequence else []), *states_of(out)]
        results.append(
            [*outputs, leaf.grad, *[s.grad for s in start or []], *[p.grad for p in module.parameters()]]
        )
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@every_cell
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "options",
    [{"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}],
    ids=["deep", "other"],
)
def test_gradients_are_torchs_where_all_is_kept(cell, dtype, options, everything_kept):
    layer, exact = pair(cell, 3, 5, bits=None, dtype=dtype, **options)
    x = torch.randn(4, 6, 3, dtype=dtype)
    batch = 4 if options.get("batch_first") else 6
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    hx = [torch.randn(rows, batch, 5, dtype=dtype) for _ in range(2 if cell == "lstm" else 1)]
    compare(layer, exact, x, hx)


@every_cell
@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_sequences(cell, bidirectional, everything_kept):
    layer, exact = pair(cell, 3, 5, 2, bits=None, dtype=torch.float64, bidirectional=bidirectional)
    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 1, 5)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    hx = [
        torch.randn(4 if bidirectional else 2, 4, 5, dtype=torch.float64) for _ in range(1 + (cell == "lstm"))
    ]
    compare(layer, exact, packed, hx)
    compare(layer, exact, pack_padded_sequence(torch.randn(4, 3, 3, dtype=torch.float64), [4, 4, 1]))
    out, _ = layer(packed)
    reference, _ = exact(packed)
    assert torch.equal(out.batch_sizes, reference.batch_sizes)
    assert torch.equal(out.unsorted_indices, reference.unsorted_indices)


@every_cell
def test_unbatched_and_strided_input(cell, everything_kept):
    layer, exact = pair(cell, 3, 5, bits=None, dtype=torch.float64)
    compare(layer, exact, torch.randn(4, 3, dtype=torch.float64))
    compare(layer, exact, torch.randn(3, 2, 4, dtype=torch.float64).permute(2, 1, 0))
    hx = [torch.randn(1, 5, dtype=torch.float64) for _ in range(1 + (cell == "lstm"))]
    compare(layer, exact, torch.randn(4, 3, dtype=torch.float64), hx)


@every_cell
def test_final_states_alone(cell, everything_kept):
    layer, exact = pair(cell, 3, 5, 2, bits=None, dtype=torch.float64, return_sequence=False)
    assert layer(torch.randn(4, 6, 3, dtype=torch.float64))[0] is None
    compare(layer, exact, torch.randn(4, 6, 3, dtype=torch.float64), sequence=False)
    layer.eval()
    assert layer(torch.randn(4, 6, 3, dtype=torch.float64))[0] is None


@every_cell
def test_values_are_torchs_loop_bit_for_bit(cell):
    """One direction in fp64, where torch runs its own loop, and not a library's fused one, for every cell."""
    layer, exact = pair(cell, 3, 40, 2, dtype=torch.float64, sketch=Sketch(0.5, "different"))
    x = torch.randn(7, 6, 3, dtype=torch.float64)
    assert torch.equal(layer(x)[0], exact(x)[0])


@every_cell
def test_eval_and_inference_are_torchs_own(cell):
    layer, exact = pair(cell, 8, 16, 2, dropout=0.5)
    x = torch.randn(5, 3, 8)
    for module in (layer, exact):
        module.eval()
    with rng_untouched():
        assert torch.equal(layer(x)[0], exact(x)[0])
        layer.train()
        layer.dropout = exact.dropout = 0.0
        with torch.inference_mode():
            assert torch.equal(layer(x)[0], exact(x)[0])
    torch.testing.assert_close(layer(x)[0], exact(x)[0])


@pytest.mark.parametrize("cell", ["relu", "gru"])
def test_random_numbers_do_not_depend_on_grad_mode(cell):
    layer, _ = pair(cell, 16, 16, 2, dropout=0.5, bidirectional=True, sketch=Sketch(0.25, "rows"))
    x = torch.randn(9, 3, 16)
    torch.manual_seed(1)
    layer(x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    with torch.no_grad():
        y, _ = layer(x)
    assert torch.equal(after, torch.get_rng_state()) and not y.requires_grad
    for p in layer.parameters():
        p.requires_grad_(False)
    torch.manual_seed(1)
    assert not layer(x)[0].requires_grad


def test_keys_of_a_call():
    x = torch.randn(3, 8, 64)
    for cell, options, expected in [
        ("lstm", {"sketch": Sketch(0.25, "same")}, 7),  # its factors; x and h, a pack each step
        ("gru", {"sketch": Sketch(0.25, "rows"), "bidirectional": True}, 4),  # of h one a direction
        ("lstm", {"sketch": Sketch(1.0), "bits": None}, 0),
        ("relu", {"sketch": Sketch(1.0)}, 0),
    ]:
        layer, _ = pair(cell, 64, 32, **options)
        assert draws(lambda: layer(x)) == expected  # noqa: B023


TEXTS = ["rows:0.1", "tile_rows:0.3:4bit", "same:0.2", "different:0.1:8bit", "project:0.2", "rows:0.1:norm"]
SPECS = [(), (1, 1, 0, 0, 0), *(Sketch.parse(text).spec for text in TEXTS)]


def test_saved_bytes_equal_the_formula():
    """The op's buffer, in several hundred layers; what the formula says is what is compiled in."""
    random = torch.Generator().manual_seed(3)
    for number in range(240):
        steps, batch, inputs, hidden, directions, i, j, bits = (
            int(torch.randint(low, high, (), generator=random))
            for low, high in ((1, 9), (1, 40), (1, 140), (1, 90), (1, 3), (0, 8), (0, 8), (0, 5))
        )
        cell, dtype = list(CELLS)[number % 4], list(TOLERANCE)[number // 4 % 3]
        sizes = torch.randint(1, batch + 1, (steps,), generator=random).sort(descending=True)[0]
        sizes[0] = batch
        batch_sizes = tuple(sizes.tolist()) if number % 5 == 0 else ()
        numbers = cell, steps, batch, inputs, hidden, directions, batch_sizes
        layer = Layer(*numbers, (0, 1, 2, 4, 8)[bits], SPECS[i], SPECS[j])
        gates = {"lstm": 4, "gru": 3}.get(cell, 1) * hidden
        x = torch.zeros((sum(batch_sizes), inputs) if batch_sizes else (steps, batch, inputs), dtype=dtype)
        state = x.new_zeros(directions, batch, hidden)
        weights = [x.new_zeros(gates, inputs)] * directions, [x.new_zeros(gates, hidden)] * directions
        saved = ops.rnn(x, state, state if cell == "lstm" else None, *weights, [], layer, False)[-1]
        assert saved.numel() == ops.rnn_saved_nbytes(layer, dtype), layer


@every_cell
def test_nothing_else_is_retained(cell):
    layer, _ = pair(cell, 64, 32, sketch=Sketch(0.25, "rows"), bidirectional=True)
    x = torch.randn(7, 8, 64)
    planned = Layer(cell, 7, 8, 64, 32, 2, (), 8, layer.sketch.spec, layer.sketch.spec)
    assert memory.saved_bytes(lambda: layer(x)[0].sum()).total == ops.rnn_saved_nbytes(planned, x.dtype)
    layer.sketch = Sketch(0.25, "different")
    with pytest.warns(SketchWarning, match=r"layer's input \[56, 1\]"):
        layer, _ = pair(cell, 1, 32, sketch=layer.sketch)
        total = memory.saved_bytes(lambda: layer(x[:, :, :1].contiguous())[0].sum()).total
    planned = Layer(cell, 7, 8, 1, 32, 1, (), 8, (), layer.sketch.spec)
    assert total == ops.rnn_saved_nbytes(planned, x.dtype) + 56 * 4


def test_packed_bytes_equal_the_formula():
    layer, _ = pair("gru", 16, 24)
    packed = pack_sequence([torch.randn(n, 16) for n in (5, 3, 1)])
    plan = Layer("gru", 5, 3, 16, 24, 1, (3, 2, 2, 1, 1), 8, SKETCH.spec, SKETCH.spec)
    total = memory.saved_bytes(lambda: layer(packed)[0].data.sum()).total
    assert total == ops.rnn_saved_nbytes(plan, torch.float32)


@every_cell
def test_what_is_not_needed_is_not_kept(cell):
    layer, exact = pair(cell, 16, 32, sketch=Sketch(0.25, "rows"), dtype=torch.float64)
    x = torch.randn(6, 8, 16, dtype=torch.float64)

    def kept():
        return memory.saved_bytes(lambda: layer(x)[0].sum()).total

    everything = kept()
    layer.weight_ih_l0.requires_grad_(False)
    assert everything - kept() == ops.rnn_packs_nbytes(
        Layer(cell, 6, 8, 16, 32, 1, (), 8, (), ()), 16, x.dtype, layer.sketch.spec
    )
    layer.weight_hh_l0.requires_grad_(False)
    factors = Layer(cell, 6, 8, 16, 32, 1, (), 8, (), ())
    assert kept() == ops.rnn_saved_nbytes(factors, x.dtype)
    for name in ("bias_ih_l0", "bias_hh_l0"):
        getattr(layer, name).requires_grad_(False)
    assert kept() == 0
    leaf = x.clone().requires_grad_()
    layer.bits = None
    layer(leaf)[0].sum().backward()  # frozen parameters: the gradient of x is exact
    for p in layer.parameters():
        assert p.grad is None
    other = x.clone().requires_grad_()
    exact(other)[0].sum().backward()
    assert_close(leaf.grad, other.grad)


def test_module_is_torchs():
    layer, exact = pair("lstm", 3, 5, 2, bidirectional=True)
    torch.manual_seed(9)
    ours = nn.LSTM(3, 5, 2, sketch=SKETCH)
    torch.manual_seed(9)
    theirs = torch.nn.LSTM(3, 5, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert list(layer.state_dict()) == list(exact.state_dict())
    assert repr(layer) == "LSTM(3, 5, num_layers=2, bidirectional=True, sketch=different:0.25, bits=8)"
    assert "return_sequence=False" in repr(nn.GRU(3, 5, sketch=SKETCH, return_sequence=False))
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert other.sketch == SKETCH and other.bits == 8
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), layer.parameters(), strict=True))
        other.double()(torch.randn(2, 3, 3).double())[0].sum().backward()
        assert all(p.grad is not None for p in other.parameters())


def test_errors_name_the_argument():
    layer = nn.LSTM(3, 5, sketch=SKETCH)
    x = torch.randn(4, 2, 3)
    state = torch.zeros(1, 2, 5)
    for error, match, action in [
        (TypeError, "sketch must be", lambda: nn.GRU(3, 5, sketch=0.5)),
        (ValueError, "bits must be .* got 3", lambda: nn.GRU(3, 5, sketch=SKETCH, bits=3)),
        (TypeError, "bits must be", lambda: nn.GRU(3, 5, sketch=SKETCH, bits=True)),
        (ValueError, "proj_size must be 0, got 2", lambda: nn.LSTM(3, 5, sketch=SKETCH, proj_size=2)),
        (ValueError, "proj_size", lambda: nn.LSTM(3, 5, 1, True, False, 0.0, False, 2, sketch=SKETCH)),
        (ValueError, r"hx must be \(h_0, c_0\)", lambda: layer(x, state)),
        (ValueError, r"hx\[1\] must have shape \[1, 2, 5\]", lambda: layer(x, (state, state[:, :1]))),
        (TypeError, "x must be a Tensor", lambda: functional.recurrent(3, state, [], "gru", SKETCH)),
        (ValueError, "cell must be one of", lambda: functional.recurrent(x, state, [], "elman", SKETCH)),
        (ValueError, "weights must be 4 tensors", lambda: functional.recurrent(x, state, [], "gru", SKETCH)),
        (ValueError, r"weights\[0\] must have shape \[20, 4\]", lambda: layer(torch.randn(4, 2, 4))),
        (TypeError, "one dtype", lambda: layer(x.double())),
        (TypeError, "input must have dtype", lambda: layer(torch.ones(4, 2, 3, dtype=torch.int64))),
        (ValueError, "2 or 3 dimensions", lambda: layer(torch.randn(3))),
    ]:
        with pytest.raises(error, match=match), rng_untouched():
            action()


def test_few_bits_over_many_steps_warn():
    layer, _ = pair("tanh", 16, 16, bits=4)
    with pytest.warns(SketchWarning, match="bits=4 over 65 steps"):
        layer(torch.randn(65, 2, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(torch.randn(64, 2, 16))


def test_a_pack_that_is_not_worthwhile_is_torchs_own_path():
    layer, exact = pair("tanh", 8, 2, sketch=Sketch(0.9, "different"))
    x = torch.randn(4, 3, 8)
    with pytest.warns(SketchWarning, match="hidden states"), rng_untouched():
        y, _ = layer(x)
    assert torch.equal(y, exact(x)[0])


PAPER_MEGABYTES = {1.0: 47.93, 0.8: 39.98, 0.5: 25.85, 0.3: 16.43, 0.1: 7.01, 0.05: 4.66}
LOOP_PEAK = 784 * 150 * 100 * 4  # bytes of hidden states that torch's own loop keeps alive


@pytest.mark.parametrize("keep", [1.0, 0.8, 0.1, 0.05])
def test_the_papers_network(keep):
    """Weights and all that is retained, batch 150: at or below the paper's figure; the step's peak below
    torch's."""
    torch.manual_seed(0)
    layer = nn.RNN(1, 100, nonlinearity="relu", sketch=Sketch(keep, "different"), return_sequence=False)
    torch.nn.init.eye_(layer.weight_hh_l0)
    head = torch.nn.Linear(100, 10)
    x, target = torch.rand(784, 150, 1), torch.randint(10, (150,))

    def loss():
        return torch.nn.functional.cross_entropy(head(layer(x)[1][0]), target)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SketchWarning)  # one feature cannot be sampled: x is kept as it is
        kept = memory.saved_bytes(loss).total
        peak = memory.step_peak(lambda: loss().backward()) if keep < 1 else 0
    weights = sum(p.numel() * p.element_size() for p in (*layer.parameters(), *head.parameters()))
    assert kept + weights <= PAPER_MEGABYTES[keep] * 1e6
    assert peak < LOOP_PEAK

"""Dropout from a key: which elements are dropped and how many, that backward drops the same ones in every
mode, and that compiled it is torch's (docs/maths.md, dropout)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from checks import draws, rng_untouched, same_bits, same_strides
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, memory, nn, ops, reference

KEY = 0x0123_4567_89AB_CDEF
HALF = 1 << 31

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# Memory formats: dense ones keep theirs, others become contiguous, as in torch.
FORMATS = {
    "contiguous": lambda x: x,
    "one element": lambda x: x[0, 0, 0, :1],
    "scalar": lambda x: x[0, 0, 0, 0],
    "transposed": lambda x: x.transpose(0, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, ::2, 1:],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
    "odd offset": lambda x: x.reshape(-1)[3:],
}


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype, requires_grad=True)


# ---- the mask


@every_dtype
@pytest.mark.parametrize("n", [1, 3, 4, 5, 63, 64, 65, 1027, 70_001])
def test_the_mask_is_numpys(n, dtype):
    x = torch.randn(n, dtype=torch.float64).to(dtype)
    for p in (2.0**-32, 0.1, 0.5, 0.9, 1 - 2.0**-32):
        threshold = round(p * 2**32)
        y, saved = ops.dropout(x, threshold, torch.tensor(KEY))
        kept = torch.from_numpy(reference.dropout_words(n, KEY, ops.rank_salt()) >= threshold)
        scale = torch.tensor(2**32 / (2**32 - threshold)).float()
        scaled = (x.double() * scale).to(dtype) if dtype == torch.float64 else (x.float() * scale).to(dtype)
        assert same_bits(y, torch.where(kept, scaled, 0))
        words = saved.view(torch.int64).tolist()
        assert words == [KEY, ops.rank_salt(), reference.FORMAT_VERSION, 0, 0, 0, 0, 0]


def test_salts_and_keys_have_masks_of_their_own(monkeypatch):
    masks = set()
    for salt in (0, 1, 2**32 - 1):
        monkeypatch.setattr(ops.salt, "resolved", salt)
        masks |= {
            ops.dropout(ones(256), HALF, torch.tensor(key))[0].detach().numpy().tobytes() for key in range(20)
        }
    assert len(masks) == 60


def test_the_mask_is_apart_from_other_streams():
    """Bits of one key's dropout words agree with those of its other streams in half of the places."""
    words = reference.dropout_words(2**18, KEY)
    for role in range(1, 6):
        other = reference.random_words(KEY, 0, role, 0, np.arange(2**16)).reshape(-1)
        agreement = (
            (np.bitwise_count(~(words ^ other)).sum() / (32 * words.size) - 0.5)
            * 2
            * math.sqrt(32 * words.size)
        )
        assert abs(agreement) <= 6  # standard normal


def test_keep_rate():
    """2^22 elements: at most 6 standard deviations off, as is the rate of pairs, near and a block apart.

    A chance of 6e-8 to fail, were the keys fresh."""
    n = 2**22
    for number, p in enumerate((0.01, 0.1, 0.5, 0.9, 0.99)):
        kept = ops.dropout(torch.ones(n), round(p * 2**32), torch.tensor(KEY + number))[0] != 0
        for distance, chance in ((0, 1 - p), *((d, (1 - p) ** 2) for d in (1, 2, 4, 64, 4096))):
            both = kept & kept.roll(distance)
            deviation = math.sqrt(
                n * chance * (1 - chance) * (3 if distance else 1)
            )  # neighbouring pairs overlap
            assert abs(both.sum().item() - n * chance) <= 6 * deviation, (p, distance)


@pytest.mark.parametrize("p", [1e-9, 0.1, 1 / 3, 0.5, 0.7, 0.999])
def test_the_expectation_is_exact(p):
    """P(kept) = (2^32 - threshold) / 2^32 exactly; times the scale it is 1 up to fp32's rounding."""
    threshold = round(p * 2**32)
    scale = functional.dropout(torch.ones(1 << 16, dtype=torch.float64), p).max().item()
    assert abs(scale * (2**32 - threshold) / 2**32 - 1) <= 2.0**-24
    assert abs(threshold / 2**32 - p) <= 2.0**-33


# ---- backward


@pytest.mark.parametrize("layout", FORMATS)
@every_dtype
def test_backward_drops_what_forward_dropped(dtype, layout):
    leaf = torch.randn(4, 6, 5, 8, dtype=torch.float64).to(dtype).abs().add(1).requires_grad_()
    x = FORMATS[layout](leaf)
    for p in (0.1, 0.5, 0.9):
        y = functional.dropout(x, p)
        assert y.shape == x.shape and same_strides(y, torch.empty_like(x))
        kept = y != 0
        for dy in (torch.ones_like(y), torch.ones((), dtype=dtype).expand(y.shape), torch.rand_like(y) + 1):
            dx = torch.autograd.grad(y, x, dy, retain_graph=True)[0]
            assert torch.equal(dx != 0, kept)
            expected, scale = dy.double(), torch.tensor(2**32 / (2**32 - round(p * 2**32))).float().double()
            assert torch.equal(dx, torch.where(kept, expected * scale, 0).to(dtype)), (p, dtype)
    if x.numel() > 100:
        assert 0 < kept.sum() < kept.numel()


def test_a_gradient_of_another_layout():
    """dy transposed in memory: elements are numbered by the memory of y, not by that of dy."""
    x = ones(64, 32)
    y = functional.dropout(x)
    dy = torch.rand(32, 64).t() + 1
    dx = torch.autograd.grad(y, x, dy)[0]
    assert torch.equal(dx, torch.where(y != 0, 2 * dy, 0)) and same_strides(dx, y)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("preserve_rng_state", [True, False])
def test_checkpoint(use_reentrant, preserve_rng_state):
    """Recomputed with the generator's state, the mask is the output's; without it, a mask of its own."""
    x = ones(50, 50)
    layer = nn.Dropout(0.5)
    options = {"use_reentrant": use_reentrant, "preserve_rng_state": preserve_rng_state}
    y = checkpoint(lambda x: layer(x) * 1, x, **options)
    y.sum().backward()
    assert ((x.grad == 0) | (x.grad == 2)).all()
    assert torch.equal(x.grad, y) == preserve_rng_state


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_alone(low):
    x = ones(40, 40)
    with torch.autocast("cpu", low):
        y = functional.dropout(x)
        assert y.dtype == F.dropout(x).dtype == torch.float32
    y.sum().backward()
    assert torch.equal(x.grad, y)


def test_func_transforms():
    x = torch.ones(40, 40)
    torch.manual_seed(5)
    grad, y = torch.func.grad_and_value(lambda x: functional.dropout(x).sum())(x)
    torch.manual_seed(5)
    assert torch.equal(grad, functional.dropout(x)) and y == grad.sum()
    torch.manual_seed(5)
    y, pull = torch.func.vjp(lambda x: functional.dropout(x), x)
    assert torch.equal(pull(torch.ones_like(y))[0], y)
    with pytest.raises(RuntimeError, match="does not have vmap support"):
        torch.func.vmap(functional.dropout)(x)


def test_double_backward():
    """Linear in dy: the second derivative has the same mask, and so has the third."""
    x, dy = ones(30, 30), ones(30, 30)
    y = functional.dropout(x * 1, 0.5)
    dx = torch.autograd.grad(y, x, dy, create_graph=True)[0]
    ddy = torch.autograd.grad(dx, dy, torch.ones_like(dx), create_graph=True)[0]
    assert torch.equal(dx, y) and torch.equal(ddy, y)
    weight = ones(20, 20).detach().double().requires_grad_()

    def dropped(x):
        torch.manual_seed(1)
        return functional.dropout(x, 0.3)

    assert torch.autograd.gradcheck(dropped, weight[:4, :5].detach().requires_grad_())
    assert torch.autograd.gradgradcheck(dropped, weight[:4, :5].detach().requires_grad_())


def test_inplace():
    for make in (lambda x: x * 1, lambda x: (x * 1).t(), lambda x: (x * 1)[:, ::2], lambda x: (x * 1)[3]):
        x = ones(40, 40)
        inner = make(x)
        y = functional.dropout(inner, 0.5, inplace=True)
        assert y is inner and ((y == 0) | (y == 2)).all() and 0 < (y == 0).sum() < y.numel()
        dropped = torch.autograd.grad(y, inner, torch.ones_like(y), retain_graph=True)[0]
        assert dropped.eq(1).all()  # of the modified tensor itself
        y.sum().backward()
        assert torch.equal(make(x.grad).detach(), y.detach())
    y = torch.ones(40)
    assert nn.Dropout(0.5, inplace=True)(y) is y and (y != 1).all()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        functional.dropout(ones(4), inplace=True)


# ---- randomness


def test_calls_and_layers_have_masks_of_their_own():
    layers = [nn.Dropout(0.5), nn.Dropout(0.5)]
    x = torch.ones(256)
    masks = [layer(x).numpy().tobytes() for _ in range(100) for layer in layers]
    assert len(set(masks)) == 200


def test_one_key_a_call_and_none_where_nothing_is_dropped():
    x, layer = ones(8, 8), nn.Dropout(0.5)
    for call in (lambda: layer(x), lambda: layer(x.detach()), lambda: functional.dropout(x, 1e-6)):
        assert draws(call) == 1
        with torch.no_grad():
            assert draws(call) == 1
    y = layer(x)
    with rng_untouched():
        y.sum().backward()
        for p in (0, 0.0, 1, 1.0, 1e-12):
            functional.dropout(x, p)
        functional.dropout(x[:0])
        layer.eval()
        assert same_bits(layer(x), x)


def test_manual_seed_and_fork_rng():
    x = torch.ones(256)
    torch.manual_seed(3)
    first = [functional.dropout(x) for _ in range(3)]
    torch.manual_seed(3)
    again = [functional.dropout(x)]
    with torch.random.fork_rng():
        functional.dropout(x)
    again += [functional.dropout(x) for _ in range(2)]
    assert all(map(torch.equal, first, again))


def test_a_linear_layer_behind_draws_as_behind_torchs():
    """One 64-bit integer a call: the same state of the generator as after one packing op."""
    assert draws(lambda: (functional.dropout(torch.ones(8)), ops.draw_key(torch.device("cpu")))) == 2


# ---- p, memory, errors


def test_p_of_zero_and_one():
    x = ones(5, 5)
    for p in (0, 0.0, 2.0**-34):  # the last is a threshold of 0
        y = functional.dropout(x, p)
        assert torch.equal(y, x) and torch.autograd.grad(y.sum(), x)[0].eq(1).all()
    for p in (1, 1.0):
        y = functional.dropout(x, p)
        assert not y.any() and not torch.autograd.grad(y.sum(), x)[0].any()
    weird = torch.tensor([float("nan"), float("inf"), 1.0])
    # A dropped element is zero whatever it was; torch multiplies by zero, which keeps NaN.
    y, _ = ops.dropout(weird.repeat(100), HALF, torch.tensor(KEY))
    assert set(y[2::3].tolist()) == {0.0, 2.0} and (y[0::3] == 0).any() and y[0::3].isnan().any()


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), -1, 2])
def test_p_outside_its_range(p):
    for training in (True, False):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got"):
            functional.dropout(torch.ones(3), p, training)


@pytest.mark.parametrize("p", ["0.5", None, True, 0.5j, [0.5], torch.tensor(0.5)], ids=repr)
def test_p_that_is_no_number(p):
    with pytest.raises(TypeError, match=r"p must be a real number in \[0, 1\], got"):
        functional.dropout(torch.ones(3), p)


def test_what_is_no_floating_tensor():
    for x in (torch.ones(3, dtype=torch.int32), torch.ones(3, dtype=torch.complex64), [1.0], 1.0,
              torch.ones(3, 3).to_sparse()):  # fmt: skip
        with pytest.raises(TypeError, match="x must"):
            functional.dropout(x)


@every_dtype
def test_64_bytes_are_kept(dtype):
    x = ones(300, 300, dtype=dtype)
    held = memory.saved_bytes(lambda: functional.dropout(x * 1, 0.3))
    assert held.total == 64
    assert memory.saved_bytes(lambda: functional.dropout(x, 0.0)).total == 0


def test_the_layer_is_torchs_but_for_the_mask():
    layer = nn.Dropout(0.25)
    assert isinstance(layer, torch.nn.Dropout) and repr(layer) == "Dropout(p=0.25, inplace=False)"
    assert not list(layer.parameters()) and not layer.state_dict()
    x = ones(1000)
    kept = layer(x)
    assert set(kept.tolist()) == {0.0, torch.tensor(4 / 3).item()}
    with pytest.raises(ValueError, match="between 0 and 1"):
        nn.Dropout(1.5)


def test_meta_tensors():
    x = torch.ones(3, 4, device="meta")
    assert functional.dropout(x).device.type == "meta"


# ---- ops


def test_opcheck():
    x, key = torch.randn(6, 7), torch.tensor(KEY)
    opcheck(torch.ops.rad_kernels.dropout, (x, HALF, 0, key))
    opcheck(torch.ops.rad_kernels.dropout, (x.t(), HALF, 7, key))
    y, saved = ops.dropout(x, HALF, key)
    opcheck(torch.ops.rad_kernels.dropout_backward, (x, saved, HALF, y.stride()))
    opcheck(torch.ops.rad_kernels.dropout_backward, (x.t().contiguous().t(), saved, HALF, y.stride()))


def test_ops_refuse_what_does_not_fit():
    x, key = torch.ones(4, 10), torch.tensor(KEY)
    _, saved = ops.dropout(x, HALF, key)
    for threshold in (-1, 2**32):
        with pytest.raises(RuntimeError, match=r"threshold must be in \[0, 2\^32\)"):
            ops.dropout(x, threshold, key)
    for wrong in (saved[:-1], saved.long()):
        with pytest.raises(RuntimeError, match="saved must be 64 bytes"):
            ops.dropout_backward(x, wrong, HALF, (10, 1))
    for stride in ((0, 1), (1, 1), (20, 1), (10, 0)):
        with pytest.raises(RuntimeError, match="stride must be that of a dense tensor"):
            ops.dropout_backward(x, saved, HALF, stride)


def test_any_number_of_threads_makes_one_mask():
    x, threads = torch.ones(100_003), torch.get_num_threads()
    try:
        masks = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            masks.append(ops.dropout(x, HALF, torch.tensor(KEY))[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


# ---- compiled


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_it_is_torchs(backend, dynamic):
    """One graph, no op of ours in it, backward's mask is forward's, and two calls on one x differ."""
    torch._dynamo.reset()
    layer, graphs = nn.Dropout(0.5), []

    def look(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(lambda x: (layer(x), layer(x)), fullgraph=True, backend=look, dynamic=dynamic)
    for n in (40, 56):
        x = ones(n, n)
        first, second = compiled(x)
        assert ((first == 0) | (first == 2)).all() and not torch.equal(first, second)
        (first + 10 * second).sum().backward()
        assert torch.equal(x.grad, first + 10 * second)
    assert not any("rad_kernels" in str(node.target) for graph in graphs for node in graph.graph.nodes)
    layer.eval()
    assert torch.equal(compiled(x)[0], x)

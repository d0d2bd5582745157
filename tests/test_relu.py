"""ReLU with one bit an element: torch's bits in y and dx, torch's errors, 4 * ceil(n / 32) bytes."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS
from checks import NoGradient, bits, rng_untouched, same_bits, same_strides

from rad_kernels import functional, nn, ops
from rad_kernels.memory import saved_bytes

SIZES = (0, 1, 2, 31, 32, 33, 63, 64, 65, 95, 127, 1000, 32 * 1024 - 1, 32 * 1024 + 33)
SHAPES = [(), *((n,) for n in SIZES), (3, 0, 2), (1, 1, 1), (2, 3, 4, 5, 2), (7, 33), (33, 7)]
both_ways = pytest.mark.parametrize("inplace", [False, True], ids=["apart", "inplace"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def special_values(dtype):
    """Zeros, infinities, NaNs, subnormals and the limits of the dtype, each with both signs."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    values = torch.tensor(
        [0.0, float("inf"), float("nan"), smallest, info.smallest_normal, info.eps, 1.0, info.max],
        dtype=torch.float64,
    )
    return torch.cat([values, -values]).to(dtype)


def values(shape, dtype):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    special = special_values(dtype)
    flat = x.view(-1)
    if len(flat) >= 2 * len(special):
        flat[: len(special)] = special
        flat[-len(special) :] = special
    return x


def gradients(x, inplace, dy, relu):
    """(y, dx, version of what relu was given), with y copied at once."""
    leaf = x.detach().requires_grad_()
    given = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(leaf) if inplace else leaf
    y = relu(given, inplace)
    return y.detach().clone(), torch.autograd.grad(y, leaf, dy)[0], given._version


@every_dtype
@both_ways
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torchs_bits(shape, inplace, dtype):
    x, dy = values(shape, dtype), values(shape, dtype).flatten().flip(0).view(shape)
    expected = gradients(x, inplace, dy, F.relu)
    got = gradients(x, inplace, dy, functional.relu)
    assert all(map(same_bits, got[:2], expected[:2]))
    assert got[2] == expected[2] or not x.numel()


@every_dtype
def test_special_values_at_every_position_of_a_word(dtype):
    special = special_values(dtype)
    x = torch.cat([torch.ones(n, dtype=dtype) if n else special for n in (0, 1, 0, 2, 0, 13, 0, 29, 0)])
    for dy in (torch.ones_like(x), special.repeat(len(x) // len(special) + 1)[: len(x)]):
        expected, got = (gradients(x, False, dy, relu)[:2] for relu in (F.relu, functional.relu))
        assert all(map(same_bits, got, expected))


DENSE_LAYOUTS = {
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels last, one image": lambda: torch.randn(1, 3, 4, 5).to(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(4, 5, 6).permute(2, 0, 1),
}
LOOSE_LAYOUTS = {
    "sliced": lambda: torch.randn(8, 10)[::2, 1:7],
    "sliced and permuted": lambda: torch.randn(8, 10, 4)[::2, 1:7].permute(2, 1, 0),
    "offset": lambda: torch.randn(47)[7:],
    "strides with gaps": lambda: torch.randn(100).as_strided((5, 4), (20, 3)),
}
SHARED_LAYOUTS = {
    "expanded rows": lambda: torch.randn(1, 6).expand(5, 6),
    "expanded columns": lambda: torch.randn(5, 1).expand(5, 6),
    "overlapping": lambda: torch.randn(40).as_strided((10, 4), (2, 1)),
}
GRADIENTS = {
    "contiguous": torch.randn,
    "expanded": lambda shape: torch.full((), 3.0).expand(shape),
    "transposed": lambda shape: torch.randn(shape[::-1]).permute(*range(len(shape))[::-1]),
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    "layout, inplace",
    [
        *((name, way) for name in DENSE_LAYOUTS | LOOSE_LAYOUTS for way in (False, True)),
        *((name, False) for name in SHARED_LAYOUTS),
    ],
)
def test_layouts(layout, inplace, gradient):
    x = (DENSE_LAYOUTS | LOOSE_LAYOUTS | SHARED_LAYOUTS)[layout]()
    dy = GRADIENTS[gradient](x.shape)
    expected, got = (gradients(x, inplace, dy, relu) for relu in (F.relu, functional.relu))
    assert all(map(same_bits, got[:2], expected[:2]))
    assert same_strides(functional.relu(x.detach().requires_grad_()), F.relu(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_activations(layout):
    x = LAYOUTS[layout](torch.randn(48, 33))
    expected, got = (gradients(x, False, torch.ones_like(x), relu) for relu in (F.relu, functional.relu))
    assert all(map(same_bits, got[:2], expected[:2]))


@both_ways
@every_dtype
def test_retained_bytes(dtype, inplace):
    for n in (1, 31, 32, 33, 64, 65, 4097):
        x = torch.randn(n, dtype=torch.float32).to(dtype).requires_grad_()
        layer = nn.ReLU(inplace)
        report = saved_bytes(lambda x=x, layer=layer: layer(x.clone()))
        assert report.total == 4 * ((n + 31) // 32)


def test_mask_bits():
    """Element i of y's memory is bit i % 32 of word i // 32; bits beyond the end are 0."""
    x = torch.randn(3, 5, 7).permute(2, 0, 1)
    y, mask = ops.relu(x)
    positive = y.permute(1, 2, 0).reshape(-1) > 0
    words = [sum(int(bit) << i for i, bit in enumerate(part)) for part in positive.split(32)]
    assert [word & 0xFFFFFFFF for word in mask.tolist()] == words


@both_ways
def test_without_gradients_nothing_is_retained(inplace):
    layer = nn.ReLU(inplace)
    x = torch.randn(100)
    with rng_untouched():
        assert saved_bytes(lambda: layer(x.clone())).total == 0
        with torch.no_grad():
            y = layer(x.clone().requires_grad_())
        with torch.inference_mode():
            z = layer(x.clone())
        expected = F.relu(x)
        layer(x)
    assert y.grad_fn is None and same_bits(y, expected) and same_bits(z, expected)
    assert torch.equal(x, expected) is inplace


def test_inplace_returns_its_argument():
    x = torch.randn(40, requires_grad=True)
    hidden = x * 1
    y = functional.relu(hidden, inplace=True)
    assert y is hidden and same_bits(hidden, F.relu(x.detach()))
    assert hidden._version == 1


def outcome(relu, make, where):
    """What an in-place relu on a part of make(x) does: values, gradient, or the beginning of the error."""
    torch.manual_seed(8)
    x = torch.randn(4, 6, requires_grad=True)
    before = x.detach().clone()
    try:
        whole = make(x)
        y = relu(where(whole), inplace=True)
        (whole.square().sum() + y.sum()).backward()
    except RuntimeError as error:
        assert torch.equal(x.detach(), before) and x._version == 0, "modified before it was refused"
        return type(error), str(error)[:110]
    return bits(whole).tolist(), bits(x.grad).tolist()


MADE = {
    "leaf": lambda x: x,
    "product": lambda x: x * 2,
    "sigmoid": torch.sigmoid,  # its backward needs its output
    "square": torch.square,  # its backward needs its input only
}
PARTS = {
    "all": lambda h: h,
    "view": lambda h: h.view(24),
    "columns": lambda h: h[:, 1:4],
    "rows": lambda h: h[::2],
    "transposed": lambda h: h.t(),
    "view of view": lambda h: h[1:].t()[2:],
    "chunk": lambda h: h.chunk(2)[1],
    "unbind": lambda h: h.unbind()[1],
    "expanded": lambda h: h[:, :1].expand(4, 6),
    "detached": lambda h: h.detach(),
    "view without grad mode": torch.no_grad()(lambda h: h.view(24)),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("made", MADE)
def test_inplace_does_what_torch_does(made, part):
    """On leaves, views, outputs that others need: the same values and gradients, or the same error before
    anything is modified."""
    expected, got = (outcome(relu, MADE[made], PARTS[part]) for relu in (F.relu, functional.relu))
    assert got == expected


def test_output_may_be_overwritten():
    """torch refuses, because its backward reads the output; the mask does not change with it."""
    for inplace in (False, True):
        x = torch.randn(40, requires_grad=True)
        y = functional.relu(x * 1, inplace)
        y.mul_(3)
        y.sum().backward()
        assert torch.equal(x.grad, 3.0 * (x > 0))


@both_ways
def test_all_derivatives(inplace):
    x = torch.randn(4, 6, dtype=torch.float64)
    results = []
    for relu in (F.relu, functional.relu):
        leaf = x.clone().requires_grad_()
        value, derivatives = relu(leaf * 1, inplace).pow(4).sum(), []
        for _ in range(3):
            value = torch.autograd.grad(value.sum(), leaf, create_graph=True)[0]
            derivatives.append(value.detach())
        results.append(derivatives)
    assert all(map(same_bits, *results))
    function = lambda x: functional.relu(x * 1, inplace)  # noqa: E731
    away_from_zero = torch.where(x.abs() < 0.01, 1.0, x).requires_grad_()
    assert torch.autograd.gradcheck(function, away_from_zero)
    assert torch.autograd.gradgradcheck(function, away_from_zero)


@both_ways
def test_functional_transforms(inplace):
    x = torch.randn(9, dtype=torch.float64)

    def derivatives(relu):
        loss = lambda x: relu(x * 2, inplace).pow(3).sum()  # noqa: E731
        gradient = torch.func.grad(loss)
        return (
            gradient(x),
            torch.func.grad(lambda x: gradient(x).square().sum())(x),
            torch.func.vjp(loss, x)[0],
        )

    assert all(map(same_bits, derivatives(functional.relu), derivatives(F.relu)))


@both_ways
def test_graph_twice_and_undefined_gradients(inplace):
    x = torch.randn(40, requires_grad=True)
    y, dy = functional.relu(x * 1, inplace), torch.randn(40)
    first = torch.autograd.grad(y, x, dy, retain_graph=True)
    assert same_bits(first[0], torch.autograd.grad(y, x, dy, retain_graph=True)[0])
    (NoGradient.apply(y).sum() + (0 * x).sum()).backward()
    assert not x.grad.any()


def test_module():
    layer = nn.ReLU(inplace=True)
    assert isinstance(layer, torch.nn.ReLU) and repr(layer) == "ReLU(inplace=True)"
    assert repr(nn.ReLU()) == "ReLU()" and nn.ReLU().inplace is False and not layer.state_dict()
    x = torch.randn(2, 3, device="meta", requires_grad=True)
    for inplace in (False, True):
        y = nn.ReLU(inplace)(x * 1)
        y.sum().backward()
        assert y.is_meta and x.grad.shape == x.shape


def test_lazy_negation():
    x = torch.randn(40, dtype=torch.complex64).conj().imag.requires_grad_()
    assert x.is_neg()
    results = []
    for relu in (F.relu, functional.relu):
        y = relu(x)
        results.append((y, torch.autograd.grad(y, x, torch.arange(40.0))[0]))
    assert all(map(same_bits, *results))


def test_masked_refuses_what_does_not_fit():
    dy, mask = torch.ones(4, 10), torch.zeros(2, dtype=torch.int32)
    for bad_mask in (mask[:1], mask.long(), mask.float()):
        with pytest.raises(RuntimeError, match="mask must hold 2 int32 words"):
            ops.masked(dy, bad_mask, (10, 1))
    for stride in ((0, 1), (1, 1), (20, 1), (10, 0)):  # writing 40 elements there would leave the memory
        with pytest.raises(RuntimeError, match="stride must be that of a dense tensor"):
            ops.masked(dy, mask, stride)

"""Coded derivatives: torch's y, codes of f' that are right and unbiased over all 2^16 noises, streams, bytes
and modes (docs/maths.md, derivatives)."""

import copy
import pickle

import numpy as np
import pytest
import torch
from cases import DTYPES
from checks import draws, rng_untouched, same_bits, same_strides
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, nn, ops, reference
from rad_kernels.memory import saved_bytes

KEY = 0x0123_4567_89AB_CDEF
BITS = (8, 4, 2, 1)
SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)
# name -> (function of the ops, parameters, layer, torch's layer)
CASES = {
    "gelu": ("gelu", (0, 0, 0), nn.GELU(), torch.nn.GELU()),
    "gelu tanh": ("gelu_tanh", (0, 0, 0), nn.GELU("tanh"), torch.nn.GELU("tanh")),
    "silu": ("silu", (0, 0, 0), nn.SiLU(), torch.nn.SiLU()),
    "mish": ("mish", (0, 0, 0), nn.Mish(), torch.nn.Mish()),
    "tanh": ("tanh", (0, 0, 0), nn.Tanh(), torch.nn.Tanh()),
    "sigmoid": ("sigmoid", (0, 0, 0), nn.Sigmoid(), torch.nn.Sigmoid()),
    "logsigmoid": ("logsigmoid", (0, 0, 0), nn.LogSigmoid(), torch.nn.LogSigmoid()),
    "softplus": ("softplus", (1, 20, 0), nn.Softplus(), torch.nn.Softplus()),
    "softplus 2": ("softplus", (2.5, 4, 0), nn.Softplus(2.5, 4), torch.nn.Softplus(2.5, 4)),
    "elu": ("elu", (1, 1, 1), nn.ELU(), torch.nn.ELU()),
    "elu -0.5": ("elu", (-0.5, 1, 1), nn.ELU(-0.5), torch.nn.ELU(-0.5)),
    "elu 3": ("elu", (3, 1, 1), nn.ELU(3.0), torch.nn.ELU(3.0)),
    "celu": ("elu", (0.7, 1, 1 / 0.7), nn.CELU(0.7), torch.nn.CELU(0.7)),
    "selu": ("elu", SELU, nn.SELU(), torch.nn.SELU()),
    "hardswish": ("hardswish", (0, 0, 0), nn.Hardswish(), torch.nn.Hardswish()),
}
every_case = pytest.mark.parametrize("case", CASES)


def layer_of(case, bits=4):
    layer = copy.deepcopy(CASES[case][2])
    layer.bits = bits
    return layer


def exact_derivative(case, x):
    """torch's, in float64; at infinities its limit, where torch has the NaN of infinity times zero."""
    wide = x.detach().double().nan_to_num(posinf=1e4, neginf=-1e4).requires_grad_()
    (d,) = torch.autograd.grad(CASES[case][3](wide).sum(), wide)
    return torch.where(x.isnan(), torch.nan, d)


def code_of(case, bits):
    """(lo, hi, step)"""
    lo, hi = reference.derivative_range(*CASES[case][:2])
    return lo, hi, float(reference.derivative_step(lo, hi, bits))


def decoded(case, x, bits, key=KEY):
    function, parameters = CASES[case][:2]
    y, saved = ops.activation(x, function, parameters, bits, torch.tensor(key))
    return ops.derivative_product(torch.ones_like(x), saved, function, parameters, bits, y.stride())


# ---- what is stored


def every_value(dtype):
    """All numbers of a 16-bit type but NaN; of wider ones a dense grid, limits and random numbers."""
    if dtype.itemsize == 2:
        x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
        return x[~x.isnan()]
    generator = torch.Generator().manual_seed(1)
    limits = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, 1e-300, 3, -3, 20, 88, -88, 710, -710], dtype=dtype
    )
    return torch.cat([torch.linspace(-30, 30, 100_001, dtype=dtype), limits,
                      torch.randn(50_000, dtype=dtype, generator=generator).mul(4)])  # fmt: skip


@every_case
def test_decoded_derivatives_are_within_half_a_step(case):
    """Of torch's float64 derivative, plus 1e-6 (float32) or 1e-14: the error of the evaluation and decoding.
    And so are codes those of the twin, but where the twin's value is that close to a change of codes."""
    for dtype in DTYPES:
        x = every_value(dtype)
        exact, error = exact_derivative(case, x), 1e-14 if dtype == torch.float64 else 2e-6
        for bits in (8, 1):
            lo, hi, step = code_of(case, bits)
            assert lo <= exact.min() and exact.max() <= hi
            q = decoded(case, x.reshape(-1), bits).double()
            rounding = q.abs() * torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0
            assert ((q - exact).abs() <= step / 2 + error + rounding).all(), (dtype, bits)
        real = np.float64 if dtype == torch.float64 else np.float32
        salt = ops.rank_salt()
        _, values = reference.derivative_codes(exact.numpy().astype(real), lo, hi, KEY, salt, bits)
        differs = torch.from_numpy(values).to(dtype) != q.to(dtype)
        assert differs.double().mean() <= 20 * error / step + 1e-4


def test_codes_lie_in_memory_as_documented():
    """Eight elements to `bits` bytes from the low end, zeros up to the trailer."""
    x = torch.randn(3, 5, 7).permute(2, 0, 1)
    derivative = exact_derivative("hardswish", x).permute(1, 2, 0).reshape(-1)
    for bits in BITS:
        lo, hi, _ = code_of("hardswish", bits)
        codes, _ = reference.derivative_codes(derivative.numpy(), lo, hi, KEY, 7, bits)
        number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
        saved = torch.ops.rad_kernels.derivative_codes(x, 9, (0, 0, 0), bits, 7, torch.tensor(KEY)).numpy()
        assert saved.nbytes == ops.derivative_nbytes(105, bits)
        assert saved[:-64].tobytes() == number.to_bytes(saved.nbytes - 64, "little")
        assert saved[-64:].view(np.uint64).tolist() == [KEY, 7, reference.FORMAT_VERSION, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("bits", BITS)
def test_all_noises(bits):
    """One element for each of the 2^16 noises: bias at most step 2^-17, variance step^2 / 12."""
    n = 2**20
    noise = reference.derivative_noise(KEY, ops.rank_salt(), n)
    place = torch.from_numpy(np.unique(noise, return_index=True)[1])
    assert len(place) == 2**16
    for case, value in [("gelu", -1.4142), ("gelu", 0.3), ("silu", 2.4), ("mish", -0.7), ("tanh", 0.0),
                        ("hardswish", -3.0), ("elu", 1.0), ("softplus", 0.123)]:  # fmt: skip
        x = torch.full((n,), value, dtype=torch.float64)
        error = (decoded(case, x, bits) - exact_derivative(case, x[:1]))[place]
        step = code_of(case, bits)[2]
        assert error.mean().abs() <= step * 2**-17 + 1e-14
        assert abs(error.square().mean() / (step**2 / 12) - 1) <= 1e-5


def test_a_product_with_an_activation_of_the_same_key_is_unbiased():
    """The derivative's stream is not the dither's. On one stream, with one bit, the bias is some 30 %."""
    n = 2**18
    x, t = torch.full((1, n), 0.3, dtype=torch.float64), torch.full((n,), -0.7, dtype=torch.float64)
    x[0, ::64], x[0, 1::64] = 0.0, 1.0  # the range of each group
    spec = (1, 1, 0, 0, 1)
    other = ops.unpack(ops.pack(x, spec, torch.tensor(KEY)), 1, n, torch.float64, spec)[0]
    d = exact_derivative("gelu", t)
    inner = torch.arange(n) % 64 > 1

    def error(derivative):
        product = ((derivative - d) * (other - x[0]))[inner]
        return product.mean().item(), product.std().item() / len(product) ** 0.5

    mean, sigma = error(decoded("gelu", t, 1))
    assert abs(mean) <= 6 * sigma
    lo, _, step = code_of("gelu", 1)
    noise = reference.dither_noise(KEY, ops.rank_salt(), 0, n)
    low, size = np.asarray(lo), np.asarray(np.float32(step))
    codes = reference.encode(d.numpy(), low, size, noise, 1)
    mean, sigma = error(torch.from_numpy(reference.decode(codes, low, size, noise)))
    assert abs(mean) > 20 * sigma and abs(mean) > 0.3 * abs(d[0] * 0.3)


def test_streams_are_apart():
    words = reference.random_words(KEY, 0, 7, 0, np.arange(2**12))
    for role in range(1, 7):
        other = reference.random_words(KEY, 0, role, 0, np.arange(2**12))
        agreement = np.bitwise_count(~(words ^ other)).sum() / (32 * words.size) - 0.5
        assert abs(agreement) * 2 * (32 * words.size) ** 0.5 <= 6  # standard normal


# ---- gradients


@every_case
def test_y_is_torchs_and_dx_is_dy_times_the_code(case):
    formats = (
        lambda t: t,
        lambda t: t.t(),
        lambda t: t[:, ::2],
        lambda t: t[:1].expand(5, -1),
        lambda t: t[0, 0],
    )
    for dtype, layout in zip((*DTYPES, torch.float32), formats, strict=True):
        leaf = torch.randn(9, 33, dtype=torch.float64).mul(3).to(dtype).requires_grad_()
        x = layout(leaf)
        y, expected = layer_of(case, 8)(x), CASES[case][3](x)
        assert same_bits(y, expected) and same_strides(y, torch.empty_like(x))
        dy = torch.randn_like(expected, memory_format=torch.contiguous_format)
        (dx,) = torch.autograd.grad(y, x, dy)
        assert dx.dtype == dtype and dx.shape == x.shape
        bound = dy.abs().double() * (code_of(case, 8)[2] / 2 + 2e-6) + 1e-2 * dx.abs() * (dtype.itemsize == 2)
        assert ((dx.double() - dy.double() * exact_derivative(case, x)).abs() <= bound).all(), dtype


def test_retained_bytes_are_the_formula():
    for case in CASES:
        x = torch.randn(4097, requires_grad=True)
        report = saved_bytes(lambda x=x, case=case: layer_of(case)(x * 1))
        assert report.total == ops.derivative_nbytes(4097, 4)
    for bits in BITS:
        for n in (1, 8, 9):
            x = torch.randn(n, requires_grad=True)
            report = saved_bytes(lambda x=x, bits=bits: layer_of("gelu", bits)(x * 1))
            assert report.total == ops.derivative_nbytes(n, bits)
    assert ops.derivative_nbytes(1 << 20, 4) == (1 << 19) + 64


def test_what_is_not_finite():
    x = torch.randn(300)
    x[7], x[8] = torch.inf, -torch.inf
    for case in CASES:
        q = decoded(case, x, 8)
        assert q.isfinite().all(), case
    x[100] = torch.nan
    for case in CASES:
        # torch's derivative of elu has the slope of positive numbers there.
        assert decoded(case, x, 8).isnan().all() != (CASES[case][0] == "elu"), case


def test_a_function_with_one_slope_is_exact():
    x = torch.randn(50, requires_grad=True)
    y = functional.elu(x, 0.0, bits=1)
    assert ((torch.autograd.grad(y.sum(), x)[0] - (x > 0).float()).abs() <= 0.51).all()


def test_bits_none_and_evaluation_are_torchs():
    for case, (_, _, _, exact) in CASES.items():
        x = torch.randn(40, requires_grad=True)
        layer = layer_of(case, None)
        with rng_untouched():
            results = [torch.autograd.grad(f(x).sum(), x)[0] for f in (layer, layer_of(case).eval(), exact)]
            with torch.inference_mode():
                layer_of(case)(x)
            layer_of(case)(x[:0])
        assert same_bits(results[0], results[2]) and same_bits(results[1], results[2])
        coded = layer_of(case)
        assert draws(lambda coded=coded, x=x: coded(x)) == 1
        assert draws(lambda coded=coded, x=x: coded(x.detach())) == 1
        with torch.no_grad():
            assert draws(lambda coded=coded, x=x: coded(x)) == 1
            assert same_bits(coded(x), exact(x))
        assert saved_bytes(lambda coded=coded, x=x: coded(x.detach())).total == 0


@pytest.mark.parametrize("name", ["SiLU", "Mish", "ELU", "CELU", "SELU", "Hardswish"])
def test_inplace(name):
    x = torch.randn(40, requires_grad=True)
    for bits in (8, None):
        layer, inner = getattr(nn, name)(inplace=True, bits=bits), (x * 1)[::2]
        assert layer(inner) is inner
        assert same_bits(inner, getattr(torch.nn, name)()(x[::2]))
        inner.sum().backward()
        assert (x.grad[1::2] == 0).all() and x.grad[::2].any()
        with torch.no_grad():
            other = x.detach().clone()
            expected = getattr(torch.nn, name)()(other)
            assert layer(other) is other and same_bits(other, expected)


def test_a_second_derivative_raises():
    x, dy = torch.randn(9, requires_grad=True), torch.randn(9, requires_grad=True)
    for cotangent in (dy, dy.detach()):
        (dx,) = torch.autograd.grad(functional.gelu(x), x, cotangent, create_graph=True)
        with pytest.raises(RuntimeError, match="coded derivative cannot be differentiated again"):
            dx.sum().backward()
    loss = lambda x: functional.gelu(x).sum()  # noqa: E731
    with pytest.raises(RuntimeError, match="coded derivative cannot be differentiated again"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x).sum())(x.detach())
    torch.manual_seed(3)
    first = torch.func.grad(loss)(x.detach())
    torch.manual_seed(3)
    assert same_bits(first, torch.autograd.grad(loss(x), x)[0])


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_gives_the_gradient_of_no_checkpoint(use_reentrant):
    """Dropout behind the layer: its mask would shift if the first pass, without gradients, drew less."""
    linear = torch.nn.Linear(20, 20)
    layers = torch.nn.Sequential(linear, nn.GELU(), torch.nn.Dropout(0.5), nn.SiLU())
    x, results = torch.randn(8, 20, requires_grad=True), []
    for run in (layers, lambda x: checkpoint(layers, x, use_reentrant=use_reentrant)):
        torch.manual_seed(11)
        y = run(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, linear.weight])
                        ] if not use_reentrant else [y.detach()])  # fmt: skip
        if use_reentrant:
            x.grad = linear.weight.grad = None
            y.square().sum().backward()
            results[-1] += [x.grad, linear.weight.grad]
    assert all(map(same_bits, *results))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend):
    torch._dynamo.reset()
    layers = torch.nn.Sequential(nn.GELU(bits=8), nn.ELU(0.5, bits=8), nn.Softplus(bits=8))
    exact = torch.nn.Sequential(torch.nn.GELU(), torch.nn.ELU(0.5), torch.nn.Softplus())
    compiled = torch.compile(layers, backend=backend, fullgraph=True, dynamic=True)
    for n in (40, 57):
        x = torch.randn(n, 9, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, exact(x))
        dx, expected = (torch.autograd.grad(out.sum(), x)[0] for out in (y, exact(x)))
        assert (dx - expected).abs().max() <= 0.012 and not torch.equal(dx, expected)
        assert not torch.equal(torch.autograd.grad(compiled(x).sum(), x)[0], dx)


def test_autocast_leaves_the_dtype_to_torch():
    x = torch.randn(40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        for case in CASES:
            for given in (x, x.bfloat16()):
                y, expected = layer_of(case)(given), CASES[case][3](given)
                assert same_bits(y, expected)
                assert torch.autograd.grad(y.sum(), x)[0].dtype == torch.float32


# ---- layers, errors, ops


def test_layers():
    for case, (_, _, layer, exact) in CASES.items():
        assert isinstance(layer, type(exact)) and not layer.state_dict(), case
        text = repr(exact)[:-1]
        assert repr(layer) == (f"{text}, bits=4)" if not text.endswith("(") else f"{text}bits=4)")
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert repr(other) == repr(layer) and other.bits == 4
    layer = nn.GELU(bits=2)
    for wrong, error in ((3, ValueError), (True, TypeError), ("4", TypeError), (4.0, TypeError)):
        with pytest.raises(error, match="bits must be None"):
            layer.bits = wrong
        with pytest.raises(error, match="bits must be None"):
            nn.SiLU(bits=wrong)
        with pytest.raises(error, match="bits must be None"):
            functional.tanh(torch.ones(3), bits=wrong)
    assert layer.bits == 2


def test_errors():
    x = torch.ones(3)
    for call, message in (
        (lambda: functional.gelu(x, "exact"), "approximate must be 'none' or 'tanh', got 'exact'"),
        (lambda: functional.elu(x, float("inf")), "alpha must be finite, got inf"),
        (lambda: functional.celu(x, 0), "alpha must be positive and finite, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call in (lambda: functional.gelu([1.0]), lambda: functional.silu(torch.ones(3, dtype=torch.int32))):
        with pytest.raises(TypeError, match="x must"):
            call()


def test_opcheck():
    key = torch.tensor(KEY)
    for x in (torch.randn(6, 7).t(), torch.randn(3, 5, dtype=torch.bfloat16)):
        opcheck(torch.ops.rad_kernels.activation, (x, 0, (0.0, 0.0, 0.0), 4, 0, key))
        opcheck(torch.ops.rad_kernels.derivative_codes, (x, 8, (1.0, 1.0, 1.0), 2, 3, key))
        y, saved = ops.activation(x, "softplus", (1, 20, 0), 4, key)
        opcheck(torch.ops.rad_kernels.derivative_product, (x, saved, 7, (1.0, 20.0, 0.0), 4, y.stride()))


def test_ops_refuse_what_does_not_fit():
    x = torch.ones(4, 10)
    _, saved = ops.activation(x, "gelu", (0, 0, 0), 4)
    raw = torch.ops.rad_kernels
    for call, message in (
        (lambda: raw.derivative_codes(x, 11, (0, 0, 0), 4, 0), "unknown function 11"),
        (lambda: raw.derivative_codes(x, 0, (0, 0), 4, 0), "parameters must be three numbers"),
        (lambda: raw.derivative_codes(x, 0, (0, 0, 0), 3, 0), "bits must be 1, 2, 4 or 8, got 3"),
        (lambda: raw.derivative_codes(x, 0, (0, 0, 0), 4, -1), "salt must be in"),
        (
            lambda: ops.derivative_product(x, saved[:-1], "gelu", (0, 0, 0), 4, (10, 1)),
            "saved must be 192 bytes",
        ),
        (
            lambda: ops.derivative_product(x, saved, "gelu", (0, 0, 0), 4, (0, 1)),
            "stride must be that of a dense",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


def test_any_number_of_threads_makes_the_same_codes():
    x, threads, results = torch.randn(100_003), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(decoded("gelu", x, 4))
    finally:
        torch.set_num_threads(threads)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2])

"""Bad input: a ValueError or TypeError that names the argument and shows its value, before any work is done.

Every case runs with the generator watched and with inputs that must come out untouched.
"""

import decimal
import fractions
import math
import re

import numpy as np
import pytest
import torch
from checks import rng_untouched

from rad_kernels import Sketch, functional, nn
from rad_kernels.sketch import saved_nbytes

NAN, INF = math.nan, math.inf
SKETCH = Sketch(0.25)
X, WEIGHT, BIAS = torch.ones(40, 8), torch.ones(5, 8, requires_grad=True), torch.ones(5)
INPUTS = (X, WEIGHT, BIAS)
CASES = []


def bad(call, error, *words, name=""):
    """Register ``call``: it must raise ``error`` (or one of several) whose message has all ``words``."""
    title = re.sub(r" at 0x\w*", "", name or " ".join(words))  # the same in every process
    CASES.append(pytest.param(call, error, words, id=f"{len(CASES)}-{title}"[:60]))


def short(value):
    return repr(value)[:30]


# ---- Sketch

for keep in (NAN, INF, -INF, 0, 0.0, -0.0, -0.1, -1, 1.0000001, 2, 1e300, 10**400, -(10**400), 5e-324, 4e-7):
    bad(lambda k=keep: Sketch(k), ValueError, "keep", short(keep))
for keep in (np.float64(NAN), np.float32(1.5), fractions.Fraction(3, 2), fractions.Fraction(0), np.int64(0)):
    bad(lambda k=keep: Sketch(k), ValueError, "keep", short(keep))
NO_NUMBERS = (
    *(
        True,
        False,
        None,
        "0.1",
        b"0.1",
        [0.1],
        (0.1,),
        {0.1},
        {},
        0.1j,
        decimal.Decimal("0.1"),
        object(),
        float,
    ),
    *(
        np.array(0.1),
        np.array([0.1]),
        np.bool_(True),
        torch.tensor(0.1),
        SKETCH,
        "",
        lambda: 0.1,
        slice(1),
        ...,
    ),
)
for keep in NO_NUMBERS:
    bad(lambda k=keep: Sketch(k), TypeError, "keep", short(keep))
bad(lambda: Sketch(), TypeError, "keep", name="Sketch()")
bad(lambda: Sketch(0.1, "rows", "stratified", None, None), TypeError, "positional")
bad(lambda: Sketch(ratio=0.1), TypeError, "ratio")
for value in ("", "Rows", "row", "rows ", "column", "rows\0", "all", "stratified", "rows:0.1", "ROWS"):
    bad(lambda v=value: Sketch(0.1, v), ValueError, "sampling", repr(value), "rows, same, different")
for value in ("", "Stratified", "stratify", "uniform", "with replacement", "rows", "WITH_REPLACEMENT"):
    bad(lambda v=value: Sketch(0.1, "rows", v), ValueError, "draw", repr(value), "stratified")
for value in (None, 0, 1.5, True, b"rows", ["rows"], ("rows",), {}, object(), str):
    bad(lambda v=value: Sketch(0.1, v), TypeError, "sampling", short(value))
    bad(lambda v=value: Sketch(0.1, "rows", v), TypeError, "draw", short(value))
for value in (0, 3, 5, 7, 16, 32, -1, 4.5, NAN, INF, "4", True, False, [4], object(), 10**30):
    bad(lambda v=value: Sketch(0.1, bits=v), (TypeError, ValueError), "bits", short(value))
PARSE_ERRORS = ("", "rows", "rows:", ":0.1", "rows:x", "rows:nan", "rows:inf", "rows:0", "rows:-1", "rows:2")
for text in (*PARSE_ERRORS, "0.1", "0.1:rows", "rows:0.1:x", "rows:0.1:stratified:8", "row:0.1", " rows:0.1"):
    bad(lambda t=text: Sketch.parse(t), ValueError, name=f"parse {text!r}")
for text in (None, 0.1, b"rows:0.1", ["rows", 0.1], SKETCH):
    bad(lambda t=text: Sketch.parse(t), TypeError, "sketch", short(text))
for dtype in (torch.int32, torch.bool, torch.complex64, torch.float8_e5m2):
    bad(lambda d=dtype: saved_nbytes(4, 4, d, SKETCH), TypeError, "dtype", str(dtype))

# ---- layers

NO_SKETCHES = (
    None,
    0.1,
    1,
    True,
    "rows:0.1",
    {"keep": 0.1},
    (0.1, "rows"),
    Sketch,
    object(),
    torch.ones(()),
    X,
)
for value in NO_SKETCHES:
    bad(lambda v=value: nn.Linear(8, 5, sketch=v), TypeError, "sketch", short(value))
    bad(lambda v=value: setattr(layer(), "sketch", v), TypeError, "sketch", short(value))
    bad(lambda v=value: functional.linear(X, WEIGHT, BIAS, v), TypeError, "sketch", short(value))
    bad(lambda v=value: functional.shared_linear(X, [WEIGHT], [BIAS], v), TypeError, "sketch", short(value))
bad(lambda: nn.Linear(8, 5), TypeError, "sketch", name="Linear without a sketch")
bad(lambda: nn.Linear(8, 5, True, None, None, SKETCH), TypeError, "positional", name="positional sketch")
bad(lambda: nn.ReLU()(None), TypeError, "x", "NoneType")


def layer():
    """A layer made without the generator."""
    return torch.nn.utils.skip_init(nn.Linear, 8, 5, sketch=SKETCH)


# ---- tensors

NO_TENSORS = (None, 1.0, "x", [[1.0] * 8], np.ones((40, 8)), (X,), object(), torch.float32)
for value in NO_TENSORS:
    kind = type(value).__name__
    bad(lambda v=value: functional.linear(v, WEIGHT, BIAS, SKETCH), TypeError, "x must be a Tensor", kind)
    bad(lambda v=value: functional.linear(X, v, BIAS, SKETCH), TypeError, "weight must be a Tensor", kind)
    bad(lambda v=value: functional.relu(v), TypeError, "x must be a Tensor", kind)
    bad(
        lambda v=value: functional.shared_linear(X, [WEIGHT, v], [None] * 2, SKETCH),
        TypeError,
        "weights[1]",
        kind,
    )
    if value is not None:
        bad(lambda v=value: functional.linear(X, WEIGHT, v, SKETCH), TypeError, "bias must be a Tensor", kind)
        bad(lambda v=value: functional.shared_linear(X, [WEIGHT], [v], SKETCH), TypeError, "biases[0]", kind)
bad(lambda: layer()(None), TypeError, "x must be a Tensor")

INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)
for dtype in (*INTEGERS, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2):
    bad(
        lambda d=dtype: functional.linear(X.to(d), WEIGHT, BIAS, SKETCH),
        TypeError,
        "x must have dtype",
        str(dtype),
    )
    bad(
        lambda d=dtype: functional.linear(X, WEIGHT.to(d), BIAS, SKETCH), TypeError, "weight must", str(dtype)
    )
    bad(lambda d=dtype: functional.linear(X, WEIGHT, BIAS.to(d), SKETCH), TypeError, "bias must", str(dtype))
    bad(lambda d=dtype: functional.relu(X.to(d)), TypeError, "x must have dtype", str(dtype))
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
for dtype in FLOATS[1:]:
    words = ("one dtype", "torch.float32", str(dtype))
    bad(lambda d=dtype: functional.linear(X.to(d), WEIGHT, BIAS, SKETCH), TypeError, "x and weight", *words)
    bad(lambda d=dtype: functional.linear(X, WEIGHT.to(d), BIAS, SKETCH), TypeError, "x and weight", *words)
    bad(lambda d=dtype: functional.linear(X, WEIGHT, BIAS.to(d), SKETCH), TypeError, "x and bias", *words)
    bad(
        lambda d=dtype: functional.shared_linear(X, [WEIGHT, WEIGHT.to(d)], [None] * 2, SKETCH),
        TypeError,
        *words,
    )

STRANGE = {
    "torch.sparse_coo": lambda t: t.to_sparse(),
    "torch.sparse_csr": lambda t: t.to_sparse_csr(),
    "torch.sparse_csc": lambda t: t.to_sparse_csc(),
    "torch.sparse_bsr": lambda t: t.to_sparse_bsr((1, 1)),
    "torch._mkldnn": lambda t: t.to_mkldnn(),
    "torch.quint8": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
    "nested": lambda t: torch.nested.nested_tensor([t, t[:3]]),
    "a nested one": lambda t: torch.nested.nested_tensor([t, t[:3]], layout=torch.jagged),
}
for what, make in STRANGE.items():
    strange_x, strange_weight = make(X), make(WEIGHT.detach())
    bad(lambda v=strange_x: functional.linear(v, WEIGHT, BIAS, SKETCH), TypeError, "x must", what)
    bad(lambda v=strange_x: functional.relu(v), TypeError, "x must", what)
    bad(lambda v=strange_x: layer()(v), TypeError, "x must", what)
    bad(lambda v=strange_weight: functional.linear(X, v, BIAS, SKETCH), TypeError, "weight must", what)

for name, tensors in {
    "x": (X.to("meta"), WEIGHT, BIAS),
    "weight": (X, WEIGHT.to("meta"), BIAS),
    "bias": (X, WEIGHT, BIAS.to("meta")),
}.items():
    words = ("one device", "cpu", "meta")
    bad(lambda t=tensors: functional.linear(*t, SKETCH), ValueError, *words, name=f"{name} on another device")
    bad(lambda t=tensors: functional.shared_linear(t[0], t[1:2], t[2:], SKETCH), ValueError, *words)

# ---- shapes

for shape in ((40, 7), (40, 9), (8, 40), (40, 1), (40, 0), (7,), (2, 40, 16)):
    words = ("weight must have shape", f"[outputs, {shape[-1]}]", str(shape), "(5, 8)")
    bad(lambda s=shape: functional.linear(torch.ones(s), WEIGHT, BIAS, SKETCH), ValueError, *words)
    bad(lambda s=shape: layer()(torch.ones(s)), ValueError, *words)
for shape in ((8,), (), (1, 5, 8), (5, 8, 1), (8, 5), (5, 16), (0, 0)):
    words = ("weight must have shape", "[outputs, 8]", str(shape))
    bad(lambda s=shape: functional.linear(X, torch.ones(s), None, SKETCH), ValueError, *words)
for shape in ((), (1,), (4,), (6,), (8,), (40,), (0,), (1, 5), (5, 1), (40, 5)):
    words = ("must have shape [5]", str(shape))
    bad(lambda s=shape: functional.linear(X, WEIGHT, torch.ones(s), SKETCH), ValueError, "bias", *words)
    bad(
        lambda s=shape: functional.shared_linear(X, [WEIGHT] * 2, [None, torch.ones(s)], SKETCH),
        ValueError,
        "[1]",
        *words,
    )
bad(
    lambda: functional.linear(torch.tensor(1.0), WEIGHT, None, SKETCH),
    ValueError,
    "x",
    "at least one dimension",
)
bad(lambda: layer()(torch.tensor(1.0)), ValueError, "x", "at least one dimension")
for weights, biases in (
    ([], []),
    ([WEIGHT], []),
    ([WEIGHT], [None, None]),
    ([], [None]),
    ([WEIGHT] * 3, [BIAS]),
):
    counts = f"{len(weights)} and {len(biases)}"
    bad(
        lambda w=weights, b=biases: functional.shared_linear(X, w, b, SKETCH),
        ValueError,
        "weights and biases",
        counts,
    )
for value in (None, 3, WEIGHT, object()):
    kind = type(value).__name__
    bad(
        lambda v=value: functional.shared_linear(X, v, [None], SKETCH),
        TypeError,
        "weights must be a list",
        kind,
    )
    bad(
        lambda v=value: functional.shared_linear(X, [WEIGHT], v, SKETCH),
        TypeError,
        "biases must be a list",
        kind,
    )


@pytest.mark.parametrize("call, error, words", CASES)
def test_bad_input(call, error, words):
    before = [(t.detach().clone(), t._version) for t in INPUTS]
    with rng_untouched(), pytest.raises(error) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {str(caught.value)!r}"
    for tensor, (values, version) in zip(INPUTS, before, strict=True):
        assert torch.equal(tensor, values) and tensor._version == version


def test_there_are_many_cases():
    assert len(CASES) >= 300


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_checks_do_not_depend_on_the_grad_mode(mode):
    with mode(), rng_untouched():
        with pytest.raises(TypeError, match="x must have dtype"):
            functional.linear(X.int(), WEIGHT, BIAS, SKETCH)
        with pytest.raises(ValueError, match="weight must have shape"):
            layer()(X[:, :3])


def test_a_refused_inplace_relu_leaves_its_argument_alone():
    for dtype in (torch.int32, torch.complex64):
        x = torch.full((4,), -1, dtype=dtype)
        with pytest.raises(TypeError, match="x must have dtype"):
            functional.relu(x, inplace=True)
        assert (x == -1).all() and x._version == 0


def test_the_next_step_after_an_error_is_that_of_a_clean_run():
    """Errors anywhere leave no trace: in arguments, in a hook, in the middle of a backward pass."""
    model = nn.Linear(8, 5, sketch=SKETCH)

    def step():
        torch.manual_seed(3)
        model.zero_grad()
        model(X).square().sum().backward()
        return model.weight.grad.clone()

    def fail(*_):
        raise KeyboardInterrupt

    expected = step()
    for register in (
        model.register_forward_hook,
        model.register_full_backward_hook,
        model.weight.register_hook,
    ):
        handle = register(fail)
        with pytest.raises(KeyboardInterrupt):
            step()
        handle.remove()
        assert torch.equal(step(), expected)
    with pytest.raises(TypeError):
        model(X.int())
    assert torch.equal(step(), expected)

"""Every layer in the modes of a training loop: evaluation, no_grad, inference, autocast, checkpoints, a
forked process, storage that is moved away; and what it refuses as input."""

import os
import signal

import pytest
import torch
from checks import draws, next_key, rng_untouched, same_bits
from families import (
    DROPOUTS,
    FAMILIES,
    NO_DROPOUTS,
    QUARTER,
    WITH_BITS,
    WITH_SKETCH,
    exact_of,
    near,
    step,
    values,
)
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from rad_kernels import functional, nn, ops

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
no_dropout = pytest.mark.parametrize("family", NO_DROPOUTS, ids=str)

LINEAR = FAMILIES[0]
ROUNDED = ("LSTM", "LinearCrossEntropy")  # summed in another order than torch's


def same_output(family, got, want):
    return near(got, want, 1e-5) if family.name in ROUNDED else same_bits(got, want)


# ---- training or not


@every_family
def test_evaluation_is_torchs(family):
    """Bit for bit, gradients included, whatever the grad mode; nothing is drawn."""
    layer = family.layer().eval()
    exact = exact_of(layer)
    torch.manual_seed(5)
    with rng_untouched():
        got = step(family, layer, family.x())
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert same_bits(family.call(layer, family.x()), got[0])
    want = step(family, exact, family.x())
    compare = (lambda a, b: near(a, b, 1e-5)) if family.name == "LinearCrossEntropy" else same_bits
    assert all(map(compare, got, want))


@no_dropout
def test_training_without_gradients(family):
    """no_grad: torch's output, and as many keys as with gradients. inference_mode: torch's output, no key."""
    layer = family.layer()
    exact, x = exact_of(layer), family.x()
    want = family.call(exact, x)
    with torch.no_grad():
        assert draws(lambda: family.call(layer, x)) == family.keys
        assert same_output(family, family.call(layer, x), want)
    with torch.inference_mode(), rng_untouched():
        assert same_output(family, family.call(layer, x), want)
    assert draws(lambda: family.call(layer, x.requires_grad_())) == family.keys


@every_family
def test_training_again(family):
    layer = family.layer()
    want = step(family, layer, family.x())
    layer.eval()
    family.call(layer, family.x())
    layer.train()
    assert all(map(same_bits, step(family, layer, family.x()), want))


# ---- autocast


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
@no_dropout
def test_autocast(family, low):
    """The output has torch's dtype and bits, gradients those of parameters and x; autocast around backward
    makes no difference."""
    if low == torch.float16 and family.name in ("RNN", "LSTM", "GRU"):
        low = torch.bfloat16  # the only one that torch's own takes on a CPU
    ours, exact = family.pair()
    results = []
    for layer, around in ((ours, False), (ours, True), (exact, False)):
        torch.manual_seed(5)
        x = family.x().requires_grad_()
        with torch.autocast("cpu", low):
            y = family.call(layer, x)
        dy = values(y.shape, y.dtype, 8)
        with torch.autocast("cpu", low, enabled=around):
            grads = torch.autograd.grad(y, [x, *layer.parameters()], dy)
        assert all(g.dtype == torch.float32 for g in grads)
        results.append((y, *grads))
    got, again, want = results
    # Torch's recurrent layers stay in float32 on a CPU, and compute in 16 bits on a GPU, as ours do on both.
    assert got[0].dtype == (low if family.name in ("RNN", "LSTM", "GRU") else want[0].dtype)
    assert near(got[0].float(), want[0].float(), 0.02)
    assert all(map(same_bits, got, again))
    assert all(near(a, b, 0.1) for a, b in zip(got[1:], want[1:], strict=True))


# ---- computed again, moved away, forked


@pytest.mark.parametrize("preserve_rng_state", [True, False], ids=["rng kept", "rng not kept"])
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@every_family
def test_checkpoint(family, use_reentrant, preserve_rng_state):
    """With the generator's state kept, the gradient of no checkpoint, bit for bit. Without, another sample,
    as near to torch's gradient; a dropout then has another mask, as torch's own."""
    ours, exact = family.pair()
    want = step(family, ours, family.x())
    ours = family.pair()[0]  # of a batch norm, the state of no call
    torch.manual_seed(5)
    x = family.x().requires_grad_()
    y = checkpoint(
        lambda x: family.call(ours, x),
        x,
        use_reentrant=use_reentrant,
        preserve_rng_state=preserve_rng_state,
    )
    dy = values(y.shape, y.dtype, 8)
    if use_reentrant:
        y.backward(dy)
        got = [y, x.grad, *(p.grad for p in ours.parameters())]
    else:
        got = [y, *torch.autograd.grad(y, [x, *ours.parameters()], dy)]
    if preserve_rng_state:
        assert same_output(family, got[0], want[0])  # the first of two passes needs no gradients
        assert all(map(same_bits, got[1:], want[1:]))
    elif family not in DROPOUTS:
        exact_step = step(family, exact, family.x())
        assert all(map(near, got, exact_step))


@every_family
def test_what_is_kept_may_be_moved_away(family):
    layer = family.layer()
    want = step(family, layer, family.x())
    with save_on_cpu():
        got = step(family, layer, family.x())
    assert all(map(same_bits, got, want))


def test_a_forked_process_draws_its_parents_keys():
    """fork copies the generator: what draws in a child must seed it, as torch's DataLoader does for its
    workers."""
    key = next_key()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os.write(writing, ops.draw_key(torch.device("cpu")).numpy().tobytes())
        os._exit(0)
    os.close(writing)
    drawn = os.read(reading, 8)
    os.waitpid(child, 0)
    assert drawn == key.numpy().tobytes()


# ---- refusals

STRANGE = {
    "int32": lambda x: x.int(),
    "bool": lambda x: x > 0,
    "complex64": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1]]),
    "no tensor": lambda x: x.tolist(),
}


@pytest.mark.parametrize("kind", STRANGE)
@every_family
def test_strange_inputs_are_refused(family, kind):
    """A TypeError before anything is drawn, that names the argument."""
    x = STRANGE[kind](family.x())
    if (family.name == "SwiGLU" and kind not in ("int32", "bool", "complex64", "float8")) or (
        "CrossEntropy" in family.name and kind in ("nested", "no tensor")
    ):
        return  # the test itself cuts x in two, or makes a target like it
    layer = family.layer()
    with rng_untouched(), pytest.raises(TypeError, match="must"):
        family.call(layer, x)


@pytest.mark.parametrize("family", [f for f in WITH_SKETCH if f not in WITH_BITS], ids=str)
def test_other_dtypes_and_devices_are_named(family):
    layer = family.layer()
    for x, error, words in (
        (family.x(torch.float64), TypeError, ("one dtype", "torch.float64", "torch.float32")),
        (family.x().to("meta"), ValueError, ("one device", "meta", "cpu")),
    ):
        with rng_untouched(), pytest.raises(error) as caught:
            family.call(layer, x)
        assert all(word in str(caught.value) for word in words)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="an older torch does not hand its words on")
def test_memory_that_runs_out_is_told():
    """Inside an op too, in the words that tools which look for a smaller batch know."""
    layer = nn.Linear(64, 4, sketch=QUARTER)
    want = step(LINEAR, layer, LINEAR.x())
    weight = torch.zeros(1, 1).expand(2**44, 64).requires_grad_()
    for call in (
        lambda: functional.linear(LINEAR.x(), weight, None, QUARTER),
        lambda: functional.relu(torch.zeros(1, requires_grad=True).expand(2**50)),
        lambda: functional.gelu(torch.zeros(1, requires_grad=True).expand(2**50)),
    ):
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            call()
    assert all(map(same_bits, step(LINEAR, layer, LINEAR.x()), want))


@pytest.mark.parametrize("backend", ["aot_eager", "aot_eager_decomp_partition"])
def test_compiled_attention(backend):
    """Each backward decodes what its forward packed: the gradients of eager, from the same generator. (Other
    layers: their own files.)"""
    family = next(f for f in FAMILIES if f.name == "MultiheadAttention")
    layer = family.layer()
    want = step(family, layer, family.x())
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    torch.manual_seed(5)
    x = family.x().requires_grad_()
    y = compiled(x, x, x)[0]
    got = torch.autograd.grad(y, [x, *layer.parameters()], values(y.shape, y.dtype, 8))
    assert all(near(a, b, 1e-4) for a, b in zip(got, want[1:], strict=True))

"""The sampled Linear as a citizen of autograd and torch.func."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import COMBINATIONS, ENTRYWISE
from checks import SKETCH, NoGradient, draws, next_key, pair, same_bits, sampled

from rad_kernels import Sketch, functional, nn, ops
from rad_kernels.memory import saved_bytes
from rad_kernels.sketch import SAMPLINGS, saved_nbytes

NO_SECOND_DERIVATIVE = "the sampled weight gradient cannot be differentiated again"
every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="-".join)


def leaf(*shape, **kwargs):
    return torch.randn(*shape, requires_grad=True, **kwargs)


@every_combination
@pytest.mark.parametrize("has_bias", [True, False])
def test_frozen_subsets(has_bias, combination):
    """A frozen weight packs nothing and draws no key; x is retained by nobody; exact gradients elsewhere."""
    sketch = Sketch(0.25, *combination)
    pack_bytes = saved_nbytes(40, 8, torch.float32, sketch)
    for needs_x, needs_weight, needs_bias in itertools.product((True, False), repeat=3):
        layer, exact = pair(sketch=sketch, bias=has_bias)
        values, dy = torch.randn(40, 8), torch.randn(40, 5)
        xs = []
        for module in (layer, exact):
            module.weight.requires_grad_(needs_weight)
            if has_bias:
                module.bias.requires_grad_(needs_bias)
            xs.append(values.clone().requires_grad_(needs_x))
        run = functools.partial(layer, xs[0])
        assert draws(run) == needs_weight
        assert saved_bytes(run).total == (pack_bytes if needs_weight else 0)
        key = next_key()
        ys = [module(x) for module, x in zip((layer, exact), xs, strict=True)]
        assert same_bits(*ys) and ys[0].requires_grad == ys[1].requires_grad
        if not ys[0].requires_grad:
            continue
        for y in ys:
            y.backward(dy)
        assert same_bits(xs[0].grad, xs[1].grad)
        if has_bias:
            assert same_bits(layer.bias.grad, exact.bias.grad)
        if needs_weight:
            expected = dy.double().t() @ sampled(values, sketch, key)
            torch.testing.assert_close(layer.weight.grad, expected.float())
        else:
            assert layer.weight.grad is None


@every_combination
def test_the_layer_uses_the_key_that_it_draws(combination):
    layer, _ = pair(sketch=Sketch(0.25, *combination))
    x, dy, key = torch.randn(40, 8), torch.randn(40, 5), next_key()
    layer(x).backward(dy)
    spec = layer.sketch.spec
    _, saved = ops.linear(x, layer.weight.detach(), layer.bias.detach(), spec, key)
    assert same_bits(layer.weight.grad, ops.linear_wgrad(dy, saved, 8, spec))


@every_combination
def test_the_graph_can_be_used_twice(combination):
    layer, _ = pair(sketch=Sketch(0.25, *combination))
    x = leaf(40, 8)
    y, dy = layer(x), torch.randn(40, 5)
    inputs = (x, layer.weight, layer.bias)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    layer(x).backward(dy)  # other work in between must not disturb the first graph's pack
    assert all(map(same_bits, first, torch.autograd.grad(y, inputs, dy)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, inputs, dy)


def test_partial_backward_passes():
    layer, _ = pair()
    x, dy = leaf(40, 8), torch.randn(40, 5)
    for subset in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        torch.manual_seed(3)
        inputs = [(x, layer.weight, layer.bias)[i] for i in subset]
        by_grad = torch.autograd.grad(layer(x), inputs, dy)
        torch.manual_seed(3)
        x.grad, layer.weight.grad, layer.bias.grad = None, None, None
        layer(x).backward(dy, inputs=inputs)
        assert all(map(same_bits, by_grad, [t.grad for t in inputs]))
        others = [t for i, t in enumerate((x, layer.weight, layer.bias)) if i not in subset]
        assert all(t.grad is None for t in others)


def test_gradients_accumulate_apart_from_dy():
    """db of a single row is dy itself: it must not become the bias's own gradient."""
    layer, _ = pair(64, 5, sketch=Sketch(0.25, "same"))
    dy = torch.randn(5)
    for _ in range(2):
        layer(torch.randn(64)).backward(dy)
    assert torch.equal(layer.bias.grad, 2 * dy)
    layer.bias.grad.zero_()
    assert dy.all()


def test_hooks_see_what_torchs_layer_shows():
    seen = {}
    layer, exact = pair()
    values = torch.randn(40, 8)
    for module in (layer, exact):
        log = seen[module] = []
        x = values.clone().requires_grad_()
        x.register_hook(log.append)
        module.weight.register_hook(lambda g, log=log: log.append(torch.tensor(g.shape)))
        module.bias.register_post_accumulate_grad_hook(lambda p, log=log: log.append(p.grad.clone()))
        module.register_forward_hook(lambda m, args, y, log=log: log.append(y.detach().clone()))
        module.register_full_backward_pre_hook(lambda m, dy, log=log: log.append(dy[0]))
        module.register_full_backward_hook(lambda m, dx, dy, log=log: log.extend((dx[0], dy[0])))
        module(x).square().sum().backward()
    assert len(seen[layer]) == len(seen[exact]) == 7
    assert all(any(same_bits(shown, expected) for shown in seen[layer]) for expected in seen[exact])


def test_undefined_gradients():
    grads = []
    for module in pair():
        x = leaf(40, 8)
        (NoGradient.apply(module(x)).sum() + 0 * x.sum()).backward()
        grads.append((x.grad.any().item(), module.weight.grad, module.bias.grad))
    assert grads[0] == grads[1] == (False, None, None)


def test_weight_changed_between_forward_and_backward():
    """An error where dx needs the weight; fine, as in torch, where only dW and db are computed."""
    for needs_x in (True, False):
        for module in pair():
            x = torch.randn(40, 8, requires_grad=needs_x)
            y = module(x)
            with torch.no_grad():
                module.weight.add_(1)
            if needs_x:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    y.sum().backward()
            else:
                y.sum().backward()
                assert module.weight.grad is not None


@every_combination
def test_input_changed_after_forward_is_allowed(combination):
    layer, exact = pair(sketch=Sketch(0.25, *combination))
    results = []
    for change in (False, True):
        torch.manual_seed(5)
        x = torch.linspace(-1, 1, 320).view(40, 8)
        y = layer(x)
        if change:
            x.fill_(float("nan"))
        results += torch.autograd.grad(y.sum(), layer.weight)
    assert same_bits(*results)
    y = exact(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_parameter_in_two_layers():
    first, _ = pair(8, 8)
    second, _ = pair(8, 8)
    second.weight = first.weight
    x, key = torch.randn(40, 8), next_key()
    y = first(x)
    key_of_second = next_key()
    second(y.detach()).sum().backward()
    y.sum().backward()
    ones = torch.ones(8, 40, dtype=torch.float64)
    expected = ones @ sampled(x, SKETCH, key) + ones @ sampled(y, SKETCH, key_of_second)
    torch.testing.assert_close(first.weight.grad, expected.float())


def test_gradcheck_of_the_exact_gradients():
    """dx and db, their own derivatives with respect to x and b, and that of dx with respect to the weight."""
    weight, x, bias = (leaf(*shape, dtype=torch.float64) for shape in ((3, 4), (12, 4), (3,)))
    for sampling in SAMPLINGS:
        layer = functools.partial(functional.linear, sketch=Sketch(0.25, sampling))

        def of_x_and_bias(x, bias, layer=layer):
            return layer(x, weight, bias).tanh()

        def penalty(weight, layer=layer):
            dx = torch.autograd.grad(layer(x, weight, bias).sum(), x, create_graph=True)[0]
            return dx.square().sum()

        assert torch.autograd.gradcheck(of_x_and_bias, (x, bias))
        assert torch.autograd.gradgradcheck(of_x_and_bias, (x, bias))
        assert torch.autograd.gradcheck(penalty, weight)


@every_combination
def test_gradient_penalty(combination):
    """P = |dx|^2 for L = sum tanh(y). dP/dW = 2 g^T dx + (dP/dy)^T x, of which only the last x is sampled."""
    layer, _ = pair(sketch=Sketch(0.25, *combination), bias=False, dtype=torch.float64)
    x, key = leaf(40, 8, dtype=torch.float64), next_key()
    y = layer(x)
    dx = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)[0]
    dx.square().sum().backward()
    weight, slope = layer.weight.detach(), 1 - y.detach().tanh().square()
    dx = slope @ weight
    dy = -4 * (dx @ weight.t()) * y.detach().tanh() * slope
    torch.testing.assert_close(layer.weight.grad, 2 * slope.t() @ dx + dy.t() @ sampled(x, layer.sketch, key))
    torch.testing.assert_close(x.grad, dy @ weight)


@pytest.mark.parametrize("loss", [torch.sum, torch.norm], ids=["linear", "curved"])
@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_second_derivative_of_dw_raises(wanted, loss):
    """Also for a loss that is linear in y: there dy is constant and dW depends on x alone, which is gone."""
    layer, _ = pair()
    x = leaf(40, 8)
    target = x if wanted == "x" else layer.weight

    def through_dw(retain):
        dw, dx = torch.autograd.grad(loss(layer(x)), (layer.weight, x), create_graph=True)
        return torch.autograd.grad(dw.square().sum() + dx.square().sum(), target, retain_graph=retain)

    with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
        through_dw(retain=False)

    def by_func(v):
        of_weight = lambda w: loss(functional.linear(v if wanted == "x" else x, w, None, SKETCH))  # noqa: E731
        return torch.func.grad(of_weight)(v if wanted == "weight" else layer.weight.detach()).sum()

    with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
        torch.func.grad(by_func)(target.detach())


def test_second_derivative_through_shared_linear_raises():
    x, weights = leaf(40, 8), [leaf(3, 8), leaf(4, 8)]
    ys = functional.shared_linear(x, weights, [None, None], SKETCH)
    dws = torch.autograd.grad(sum(y.sum() for y in ys), weights, create_graph=True)
    for dw in dws:
        with pytest.raises(RuntimeError, match=NO_SECOND_DERIVATIVE):
            torch.autograd.grad(dw.sum(), x, retain_graph=True)


def test_func_grad_and_functional_call():
    net = torch.nn.Sequential(
        nn.Linear(8, 6, sketch=SKETCH),
        nn.ReLU(),
        nn.Linear(6, 6, sketch=SKETCH),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3, sketch=SKETCH),
    )
    x = torch.randn(40, 8)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    torch.manual_seed(2)
    by_func = torch.func.grad(loss)(parameters)
    torch.manual_seed(2)
    net(x).square().sum().backward()
    assert all(same_bits(by_func[name], p.grad) for name, p in net.named_parameters())
    torch.manual_seed(2)
    _, pull = torch.func.vjp(loss, parameters)
    assert all(map(same_bits, pull(torch.ones(()))[0].values(), by_func.values()))


def test_transforms_without_a_rule_say_so():
    x, weight = torch.randn(6, 40, 8), leaf(5, 8)
    with pytest.raises(RuntimeError, match="does not have vmap support"):
        torch.func.vmap(lambda x: functional.linear(x, weight, None, SKETCH))(x)
    with pytest.raises(RuntimeError, match="does not have vmap support"):
        loss = lambda w, x: functional.linear(x, w, None, SKETCH).sum()  # noqa: E731
        torch.func.vmap(torch.func.grad(loss), (None, 0))(weight.detach(), x)
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        torch.func.jvp(lambda x: functional.linear(x, weight, None, SKETCH), (x[0],), (x[0],))


@pytest.mark.parametrize("combination", ENTRYWISE, ids="-".join)
def test_nan_and_inf(combination):
    """y, dx and db have them exactly; dW where they were sampled, and nowhere else."""
    sketch = Sketch(0.25, *combination)
    layer, exact = pair(sketch=sketch)
    values, dy = torch.randn(40, 8), torch.randn(40, 5)
    values[3, 2], values[17, 5], values[30] = float("nan"), float("inf"), -float("inf")
    dy[5, 1], dy[22, 3] = float("inf"), float("nan")
    xs, key = [values.clone().requires_grad_() for _ in range(2)], next_key()
    ys = [module(x) for module, x in zip((layer, exact), xs, strict=True)]
    for y in ys:
        y.backward(dy)
    assert (
        same_bits(*ys) and same_bits(xs[0].grad, xs[1].grad) and same_bits(layer.bias.grad, exact.bias.grad)
    )
    estimate = sampled(values, sketch, key)  # zero where nothing was sampled, whatever x holds there
    products = dy.double()[:, :, None] * estimate[:, None, :]
    products = torch.where(estimate[:, None, :] == 0, 0.0, products)
    torch.testing.assert_close(layer.weight.grad, products.sum(0).float(), equal_nan=True)


def test_inputs_made_in_inference_mode():
    """torch's layer refuses them, because it would have to keep them."""
    layer, exact = pair()
    with torch.inference_mode():
        x = torch.randn(40, 8)
    layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="Inference tensors"):
        exact(x)


def test_lazy_negation_and_lazy_zeros():
    """The imaginary part of a conjugate is negated lazily; autograd's zero tensors have no memory."""
    negated = torch.randn(40, 8, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    for x in (negated, torch._efficientzerotensor((40, 8))):
        weight, key = leaf(5, 8), next_key()
        y = functional.linear(x, weight, None, SKETCH)
        assert same_bits(y, F.linear(x, weight))
        y.sum().backward()
        expected = torch.ones(5, 40).double() @ sampled(x + 0.0, SKETCH, key)
        torch.testing.assert_close(weight.grad, expected.float())

"""Every layer as a citizen of autograd: graphs used twice or in part, second derivatives, frozen and shared
parameters, changes in place, hooks, function transforms."""

import pytest
import torch
from checks import NoGradient, draws, same_bits
from families import FAMILIES, FINE, NO_DROPOUTS, WITH_WEIGHTS, near, step, values
from torch.nn.utils import parametrizations

from rad_kernels.memory import saved_bytes

every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
no_dropout = pytest.mark.parametrize("family", NO_DROPOUTS, ids=str)
with_weights = pytest.mark.parametrize("family", WITH_WEIGHTS, ids=str)


def graph(family, layer=None):
    """(y, the leaves that it depends on, dy)"""
    layer = layer or family.layer()
    torch.manual_seed(5)
    x = family.x().requires_grad_()
    y = family.call(layer, x)
    return y, [x, *layer.parameters()], values(y.shape, y.dtype, 8)


@every_family
def test_a_graph_used_twice(family):
    y, inputs, dy = graph(family)
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    torch.manual_seed(99)  # what is drawn later does not matter
    assert all(map(same_bits, first, torch.autograd.grad(y, inputs, dy)))


@every_family
def test_a_part_of_a_graph(family):
    """grad, backward(inputs=...) and backward of each input alone have the bits of all together."""
    y, inputs, dy = graph(family)
    together = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    for leaf, want in zip(inputs, together, strict=True):
        (alone,) = torch.autograd.grad(y, leaf, dy, retain_graph=True)
        y.backward(dy, inputs=[leaf], retain_graph=True)
        assert same_bits(alone, want) and same_bits(leaf.grad, want)
        assert all(other.grad is None for other in inputs if other is not leaf)
        leaf.grad = None


def second_derivatives(family, layer, of_dy):
    """Of all gradients together; None where there is none. ``of_dy``: dy is a variable, else a constant."""
    y, inputs, dy = graph(family, layer)
    variables = [*inputs, dy.requires_grad_()] if of_dy else inputs
    firsts = torch.autograd.grad(y, inputs, dy, create_graph=True)
    total = sum(first.square().sum() for first in firsts)
    if not total.requires_grad:
        return [None] * len(variables)
    return torch.autograd.grad(total, variables, allow_unused=True)


@pytest.mark.parametrize("of_dy", [True, False], ids=["of dy", "of x"])
@every_family
def test_a_second_derivative_is_right_or_an_error(family, of_dy):
    ours, exact = family.pair(FINE)
    try:
        got = second_derivatives(family, ours, of_dy)
    except RuntimeError as refusal:
        assert not family.twice and "cannot be differentiated again" in str(refusal), refusal
        return
    assert family.twice or not of_dy
    if family.name == "Hardsigmoid" or "Dropout" in family.name:  # torch has none; has another mask
        assert all(g is None or g.isfinite().all() for g in got)
        return
    for mine, theirs in zip(got, second_derivatives(family, exact, of_dy), strict=True):
        if mine is None or theirs is None:  # zero either way
            assert all(g is None or not g.any() for g in (mine, theirs))
        else:
            assert near(mine, theirs)


@every_family
def test_undefined_gradients(family):
    y, inputs, _ = graph(family)
    NoGradient.apply(y).sum().backward()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in inputs)


@every_family
def test_x_changed_after_forward(family):
    """What is kept is a copy: changing x is allowed, and changes no gradient. A loss that keeps x itself
    notices."""
    layer = family.layer()
    want = step(family, layer, family.x())
    torch.manual_seed(5)
    leaf = family.x().requires_grad_()
    x = leaf * 1
    y = family.call(layer, x)
    with torch.no_grad():
        x.zero_()
    dy = values(y.shape, y.dtype, 8)
    if family.name == "LinearCrossEntropy":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(y, leaf, dy)
    else:
        assert all(map(same_bits, torch.autograd.grad(y, [leaf, *layer.parameters()], dy), want[1:]))


@with_weights
def test_parameters_changed_between_forward_and_backward(family):
    """An error where the gradient needs them as they were; elsewhere the gradient is what it would be."""
    noticed = set()
    for number, (name, _) in enumerate(family.layer().named_parameters()):
        layer = family.layer()
        want = step(family, layer, family.x())
        y, inputs, dy = graph(family, layer)
        with torch.no_grad():
            inputs[1 + number].add_(1)
        try:
            got = torch.autograd.grad(y, inputs, dy)
        except RuntimeError as error:
            assert "modified" in str(error) and "inplace" in str(error)
            noticed.add(name)
        else:
            assert all(map(same_bits, got, want[1:])), name
    assert any("weight" in name for name in noticed)


@every_family
def test_nothing_that_needs_a_gradient(family):
    """There is no graph that could retain anything; a layer with weights does not even draw."""
    layer = family.layer().requires_grad_(False)
    x = family.x()
    y = family.call(layer, x)
    assert not y.requires_grad and y.grad_fn is None
    if hasattr(layer, "sketch") and not hasattr(layer, "bits"):
        assert draws(lambda: family.call(layer, x)) == 0


@with_weights
def test_frozen_parameters(family):
    """dx alone is what it is among all gradients; less is retained than with them."""
    layer = family.layer()
    want = step(family, layer, family.x())
    leaf = family.x().requires_grad_()
    everything = saved_bytes(lambda: family.call(layer, leaf * 1)).total
    layer.requires_grad_(False)
    assert saved_bytes(lambda: family.call(layer, leaf * 1)).total <= everything
    y, inputs, dy = graph(family, layer)
    (dx,) = torch.autograd.grad(y, inputs[0], dy)
    assert same_bits(dx, want[1]) or (family.name == "MultiheadAttention" and near(dx, want[1], 1e-5))


@with_weights
def test_a_parameter_used_twice(family):
    """Gradients of two calls add, each from a sample of its own."""
    layer = family.layer()
    x, other = family.x(), family.x().flip(0)
    torch.manual_seed(5)
    ys = [family.call(layer, t) for t in (x, other)]
    dys = [values(y.shape, y.dtype, 8) for y in ys]
    parts = [torch.autograd.grad(y, [*layer.parameters()], dy) for y, dy in zip(ys, dys, strict=True)]
    torch.manual_seed(5)
    ys = [family.call(layer, t) for t in (x, other)]
    both = torch.autograd.grad(ys, [*layer.parameters()], dys)
    for total, *each in zip(both, *parts, strict=True):
        torch.testing.assert_close(total, sum(each))


@pytest.mark.parametrize("family", [f for f in WITH_WEIGHTS if "Norm" not in f.name], ids=str)
def test_weight_norm(family):
    ours, exact = family.pair()
    name = next(n for n, p in ours.named_parameters() if "weight" in n and "." not in n)
    for layer in (ours, exact):
        if family.name == "PReLU":  # a vector: one norm
            parametrizations.weight_norm(layer, name, dim=None)
        else:
            parametrizations.weight_norm(layer, name)
    got, want = step(family, ours, family.x()), step(family, exact, family.x())
    assert all(map(near, got, want))


@every_family
def test_hooks(family):
    """Module hooks see x, y, dx and dy once each, as those of torch's layer do."""
    layer, seen = family.layer(), []
    layer.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    layer.register_forward_hook(lambda m, args, y: seen.append("forward"))
    layer.register_full_backward_pre_hook(lambda m, dy: seen.append("backward pre"))
    layer.register_full_backward_hook(lambda m, dx, dy: seen.append("backward"))
    got = step(family, layer, family.x())
    # A hook makes tensors of their own of the three inputs of an attention, which then share no pack.
    same = same_bits if family.name != "MultiheadAttention" else lambda a, b: a.shape == b.shape
    assert seen == ["pre", "forward", "backward pre", "backward"]
    assert all(map(same, got, step(family, family.layer(), family.x())))


@every_family
def test_an_exception_leaves_no_trace(family):
    """Interrupted in forward or backward, the next step is that of a clean run."""
    layer = family.layer()
    want = step(family, layer, family.x())

    def fail(*_):
        raise KeyboardInterrupt

    for register in (layer.register_forward_hook, layer.register_full_backward_hook):
        layer.zero_grad()
        handle = register(fail)
        with pytest.raises(KeyboardInterrupt):
            step(family, layer, family.x())
        handle.remove()
        assert all(map(same_bits, step(family, layer, family.x()), want))


@every_family
def test_function_transforms(family):
    """torch.func.grad gives autograd's gradient; vmap works or says that it does not."""
    layer = family.layer()
    if "BatchNorm" in family.name:
        layer.track_running_stats = False  # a state that torch's transforms refuse to change
    y, (x, *_), dy = graph(family, layer)
    (want,) = torch.autograd.grad(y, x, dy)
    torch.manual_seed(5)
    got = torch.func.grad(lambda x: (family.call(layer, x) * dy).sum())(x.detach())
    assert near(got, want, 1e-5)
    batch = torch.stack([x.detach(), x.detach().flip(0)]).requires_grad_()
    try:
        mapped = torch.func.vmap(lambda x: family.call(layer, x), randomness="different")(batch)
    except RuntimeError as refusal:
        assert "vmap" in str(refusal) or "not have a batching rule" in str(refusal), refusal
    else:
        assert "Dropout" in family.name or near(mapped[1], family.call(layer, batch[1]), 1e-5)

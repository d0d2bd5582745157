"""The weight gradient's expectation and variance, by running the real ops once for every outcome there is.

Outcomes of the draws here are equally likely up to n / 2^64 (test_sampler checks the index map), so the mean
over one key per outcome is the expectation itself: no statistics, no false alarms.
"""

import formulas
import numpy as np
import pytest
import torch
from cases import COMBINATIONS
from enumeration import (
    BATCH,
    Design,
    batches,
    check_unbiased,
    estimates,
    mean,
    model,
    search_keys,
)

from rad_kernels import functional, ops

# rows, features, kept. Equal and unequal strata, one kept, all kept, and duplicates with replacement.
SIZES = {
    ("rows", "stratified"): [
        (32, 3, 16), (31, 2, 16), (26, 3, 9), (20, 1, 6), (11, 4, 3), (7, 3, 1), (6, 2, 6), (1, 3, 1),
    ],
    ("rows", "without_replacement"): [
        (12, 3, 6), (13, 2, 5), (11, 1, 9), (9, 4, 1), (4, 3, 4), (1, 3, 1),
    ],
    ("rows", "with_replacement"): [
        (10, 2, 5), (7, 2, 6), (200, 1, 2), (5, 3, 4), (9, 4, 1),
    ],
    ("rows", "norm"): [
        (6, 3, 3), (5, 2, 2), (4, 4, 3), (12, 2, 1),
    ],
    ("same", "stratified"): [
        (3, 32, 16), (2, 31, 16), (3, 26, 9), (1, 20, 6), (4, 11, 3), (3, 7, 1), (2, 6, 6), (3, 1, 1),
    ],
    ("same", "without_replacement"): [
        (3, 12, 6), (2, 13, 5), (1, 11, 9), (4, 9, 1), (3, 4, 4), (2, 1, 1),
    ],
    ("same", "with_replacement"): [
        (2, 10, 5), (1, 200, 2), (3, 5, 4), (4, 9, 1),
    ],
    ("different", "stratified"): [
        (8, 4, 2), (6, 5, 2), (15, 3, 2), (5, 9, 1), (4, 7, 3), (1, 31, 16), (2, 4, 4), (3, 1, 1),
    ],
    ("different", "with_replacement"): [
        (5, 3, 2), (8, 2, 1), (6, 6, 1), (3, 4, 2), (2, 4, 3),
    ],
    ("tile_rows", "stratified"): [
        (7, 130, 3), (6, 129, 2), (5, 260, 1), (8, 128, 4), (4, 130, 4),
    ],
    ("tile_rows", "without_replacement"): [
        (6, 130, 3), (5, 129, 2), (5, 260, 1), (7, 128, 4), (4, 130, 4),
    ],
    ("tile_rows", "with_replacement"): [
        (4, 130, 2), (3, 129, 2), (5, 260, 1),
    ],
    ("project", "stratified"): [
        (2, 4, 3), (3, 5, 2), (2, 4, 2), (3, 7, 1),
    ],
    ("project", "hadamard"): [
        (2, 4, 3), (3, 5, 2), (2, 4, 2), (3, 7, 1), (2, 6, 3),
    ],
}  # fmt: skip
DESIGNS = [
    Design(*names, rows, features, kept) for names, sizes in SIZES.items() for rows, features, kept in sizes
]
PROMISED = 1_000_000


@pytest.fixture(autouse=True)
def _one_thread():
    """A million products of a few elements each: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_table_of_designs_is_complete():
    assert list(SIZES) == COMBINATIONS
    assert sum(design.outcomes for design in DESIGNS) >= PROMISED
    for names, sizes in SIZES.items():
        shares = [(d.length, d.kept) for d in (Design(*names, *size) for size in sizes)]
        assert any(n % k for n, k in shares) and any(n % k == 0 for n, k in shares if 1 < k < n)
        assert any(1 == k < n for n, k in shares)
        # All kept is exact whatever the draw, so no outcome of these is left to enumerate.
        exact = names[1] in ("with_replacement", "norm") or names[0] == "project"
        assert any(1 < k == n for n, k in shares) != exact


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_every_outcome_in_float64(design, record_property):
    """Bias at most 1e-12, variance (in norm and along three directions) 1e-10 from its formula."""
    x, dy = design.data()
    keys = search_keys(design, ops.rank_salt())
    dw = estimates(design, keys, x, dy).numpy()
    record_property("outcomes", len(dw))
    assert len(dw) == design.outcomes
    probability = design.probability(design.outcome(np.arange(len(dw)))) if design.draw == "norm" else None
    formulas.check_estimates(design, dw, x.numpy(), dy.numpy(), probability)


# Of each combination, designs with uneven strata or duplicates that are enumerated in the narrower types.
NARROW = [Design(*names, *size) for names, size in [
    (("rows", "stratified"), (20, 3, 6)), (("rows", "with_replacement"), (5, 3, 4)),
    (("same", "stratified"), (3, 20, 6)), (("same", "with_replacement"), (3, 5, 4)),
    (("different", "stratified"), (4, 5, 2)), (("different", "with_replacement"), (3, 3, 2)),
    (("rows", "without_replacement"), (7, 3, 3)), (("same", "without_replacement"), (3, 7, 3)),
    (("tile_rows", "stratified"), (5, 130, 3)), (("tile_rows", "with_replacement"), (3, 129, 2)),
    (("tile_rows", "without_replacement"), (5, 129, 3)),
]]  # fmt: skip
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def rounding_bound(design, dtype, index, x, dy):
    """What rounding may do to each entry of each outcome's dW, given exact products.

    Sums of at most rows * kept terms, weights and factors in fp32; then one rounding of the sum to the dtype.
    Under `same` each kept column is rounded by the product already, and once more after duplicates are added.
    """
    magnitude = model(design, index, x.abs(), dy.abs())
    in_single = (design.rows * design.kept + 4) * UNIT[torch.float32] * magnitude
    if design.sampling == "same":
        return in_single + 2 * UNIT[dtype] * magnitude
    return in_single + UNIT[dtype] * abs(model(design, index, x, dy))


@pytest.mark.parametrize("dtype", UNIT, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("design", NARROW, ids=str)
def test_every_outcome_in_narrow_types(design, dtype):
    """Each outcome within its rounding bound of the definition, and so the mean within the mean bound."""
    x, dy = design.data(dtype)
    keys = search_keys(design, ops.rank_salt())
    dw = estimates(design, keys, x, dy).double().numpy()
    index = next(batches(design))
    assert len(index) == design.outcomes <= BATCH
    bound = rounding_bound(design, dtype, index, x, dy)
    assert (abs(dw - model(design, index, x, dy)) <= bound).all()
    exact = (dy.double().T @ x.double()).numpy()
    assert (abs(mean(dw) - exact) <= mean(bound)).all()


def drawn_key(seed: int) -> int:
    """The key that a layer draws first after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    return int(torch.empty(1, dtype=torch.int64).random_())


AUTOGRAD = [
    Design("rows", "stratified", 12, 12, 5), Design("rows", "with_replacement", 12, 12, 2),
    Design("same", "stratified", 12, 12, 5), Design("same", "with_replacement", 12, 12, 2),
    Design("different", "stratified", 4, 60, 25), Design("different", "with_replacement", 2, 40, 10),
    Design("rows", "without_replacement", 40, 12, 2), Design("same", "without_replacement", 12, 40, 2),
    Design("tile_rows", "without_replacement", 6, 130, 2), Design("rows", "norm", 12, 60, 2),
    Design("project", "stratified", 12, 6, 1),
]  # fmt: skip


@pytest.mark.parametrize("design", AUTOGRAD, ids=str)
def test_autograd_gives_the_gradient_of_the_op(design):
    """Under one seed, functional.linear's dW is bit for bit the op's with that key; dx and db are torch's."""
    x, dy = design.data()
    for seed in range(20):
        key = torch.tensor(drawn_key(seed))
        leaf = x.clone().requires_grad_()
        weight = torch.randn(design.outputs, design.features, dtype=x.dtype, requires_grad=True)
        bias = torch.randn(design.outputs, dtype=x.dtype, requires_grad=True)
        torch.manual_seed(seed)
        y = functional.linear(leaf, weight, bias, design.sketch)
        y.backward(dy)
        dw = estimates(design, key.numpy().view(np.uint64)[None], x, dy)[0]
        assert torch.equal(weight.grad, dw)
        plain = torch.nn.functional.linear(leaf, weight, bias)
        dx, db = torch.autograd.grad(plain, (leaf, bias), dy)
        assert torch.equal(y, plain) and torch.equal(leaf.grad, dx) and torch.equal(bias.grad, db)


@pytest.mark.parametrize("design", [d for d in AUTOGRAD if d.outcomes <= 200 and d.draw != "norm"], ids=str)
def test_every_outcome_through_autograd(design):
    """One seed of torch's generator per outcome: the layer itself is unbiased."""
    keys = np.array([drawn_key(seed) for seed in range(15 * design.outcomes)], np.uint64)
    number = design.number(design.drawn(keys, ops.rank_salt()))
    found, seeds = np.unique(number, return_index=True)
    assert len(found) == design.outcomes
    x, dy = design.data()
    weight = torch.zeros(design.outputs, design.features, dtype=x.dtype, requires_grad=True)
    gradients = []
    for seed in seeds.tolist():
        torch.manual_seed(seed)
        y = functional.linear(x, weight, None, design.sketch)
        gradients += torch.autograd.grad(y, weight, dy)
    check_unbiased(torch.stack(gradients).numpy(), (dy.T @ x).numpy())


@pytest.mark.parametrize("names", [names for names in COMBINATIONS if names[1] != "norm"], ids="-".join)
def test_one_pack_serves_several_weights(names):
    """linear_shared: every product is exact, every gradient unbiased, and all come from the same sample."""
    sizes = {"rows": (8, 3, 3), "same": (3, 8, 3), "different": (3, 5, 2), "tile_rows": (5, 130, 2),
             "project": (3, 4, 2)}  # fmt: skip
    design = Design(*names, *sizes[names[0]])
    x, dy = design.data()
    weights = [torch.randn(n, design.features, dtype=x.dtype) for n in (2, 5)]
    dys = [dy, torch.cat([dy, dy @ torch.ones(2, 3, dtype=x.dtype)], 1)]
    keys = search_keys(design, ops.rank_salt())
    found = [[], []]
    for key in torch.from_numpy(keys.view(np.int64)).unbind():
        ys, saved = ops.linear_shared(x, weights, [None, None], design.sketch.spec, key)
        for i in range(2):
            found[i].append(ops.linear_wgrad(dys[i], saved, design.features, design.sketch.spec))
    for y, weight in zip(ys, weights):
        assert torch.equal(y, torch.nn.functional.linear(x, weight))
    small, large = (torch.stack(dw).numpy() for dw in found)
    check_unbiased(small, (dy.T @ x).numpy())
    check_unbiased(large, (dys[1].T @ x).numpy())
    assert np.allclose(large[:, :2], small, rtol=1e-13, atol=1e-13)  # two products, summed in another order

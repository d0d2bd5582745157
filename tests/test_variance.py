"""The formulas of docs/maths.md against plain enumeration of the estimator, and mistakes planted in it: the
checks that test_enumeration puts to the real ops must reject each of them."""

import formulas
import numpy as np
import pytest
import torch
from cases import COMBINATIONS
from enumeration import Design, batches, check_unbiased, check_variance, estimates, model

from rad_kernels import ops, reference
from rad_kernels.reference import Float64s, Int64s

# Uneven strata, even strata, one kept, all kept.
SIZES = {
    "rows": [(7, 4, 3), (8, 3, 4), (5, 2, 1), (4, 3, 4)],
    "same": [(4, 7, 3), (3, 8, 4), (2, 5, 1), (3, 4, 4)],
    "different": [(3, 5, 2), (2, 6, 2), (3, 5, 1), (2, 3, 3)],
    "tile_rows": [(5, 130, 2), (4, 129, 2), (4, 257, 1), (3, 130, 3)],
    "project": [(3, 4, 2), (2, 3, 3), (3, 6, 1)],
}
DESIGNS = [Design(s, draw, *size, outputs=3) for s, draw in COMBINATIONS for size in SIZES[s]]


def data(design: Design) -> tuple[torch.Tensor, torch.Tensor, Float64s]:
    """x, dy and the exact gradient."""
    x, dy = design.data()
    return x, dy, (dy.T @ x).numpy()


def check_design(design: Design, dw: Float64s, probability: Float64s | None = None) -> None:
    x, dy = design.data()
    formulas.check_estimates(design, dw, x.numpy(), dy.numpy(), probability)


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_formulas_of_the_definition(design):
    """Every line of the table, by enumerating the definition itself in numpy."""
    x, dy, _ = data(design)
    outcomes = all_outcomes(design)
    check_design(design, model(design, outcomes, x, dy), design.probability(outcomes))


@pytest.mark.parametrize("draw", ["stratified", "with_replacement"])
def test_when_own_samples_beat_a_shared_one(draw):
    """`different` is N times better than `same` where all rows agree, equal where rows are orthogonal."""
    own, shared = (Design(sampling, draw, 6, 6, 2) for sampling in ("different", "same"))
    x, dy = (part.numpy() for part in own.data())

    def ratio(x, dy):
        totals = [formulas.VARIANCES[d.sampling, d.draw].total(d, x, dy) for d in (own, shared)]
        return totals[0] / totals[1]

    assert ratio(np.tile(x[:1], (6, 1)), np.tile(dy[:1], (6, 1))) == pytest.approx(1 / 6)
    assert ratio(np.eye(6), dy) == pytest.approx(1)


NOTHING_LEFT_OUT = [d for d in DESIGNS if d.kept == d.length]


@pytest.mark.parametrize("design", NOTHING_LEFT_OUT, ids=str)
def test_everything_kept_has_no_variance(design):
    x, dy, exact = data(design)
    for key in range(10):
        dw = estimates(design, np.array([key], np.uint64), x, dy)[0].numpy()
        assert np.allclose(dw, exact, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("names", [names for names in COMBINATIONS if names[1] != "norm"], ids="-".join)
def test_ranks_with_their_own_salt_average_independently(names, monkeypatch):
    """Two ranks, one key: every pair of outcomes occurs, and their mean has half of one rank's variance."""
    sizes = {"rows": (5, 3, 2), "same": (3, 5, 2), "different": (2, 3, 2), "tile_rows": (3, 129, 1),
             "project": (2, 4, 1)}  # fmt: skip
    design = Design(*names, *sizes[names[0]])
    x, dy, exact = data(design)
    rng = np.random.default_rng(8)
    candidates = rng.integers(1, 2**63, 40 * design.outcomes**2, dtype=np.uint64)
    number = [design.number(design.drawn(candidates, salt)) for salt in (0, 1)]
    pairs, first = np.unique(number[0] * design.outcomes + number[1], return_index=True)
    assert len(pairs) == design.outcomes**2
    ranks = []
    for salt in (0, 1):
        monkeypatch.setattr(ops.salt, "resolved", salt)
        ranks.append(estimates(design, candidates[first], x, dy).numpy())
    total = formulas.VARIANCES[names].total(design, x.numpy(), dy.numpy())
    check_unbiased((ranks[0] + ranks[1]) / 2, exact)
    check_variance((ranks[0] + ranks[1]) / 2, exact, total / 2)
    check_variance(ranks[0], exact, total)
    with pytest.raises(AssertionError, match="variance"):
        check_variance((ranks[0] + ranks[0]) / 2, exact, total / 2)  # one salt for all


# ---- planted mistakes ----

Outcomes = tuple[Float64s, Float64s | None]  # estimates and, where they are not equally likely, probabilities


def all_outcomes(design: Design) -> Int64s:
    return np.concatenate(list(batches(design)))


def honest(design: Design, factor: Float64s | float = 1.0) -> Outcomes:
    x, dy, _ = data(design)
    outcomes = all_outcomes(design)
    return model(design, outcomes, x, dy, factor), design.probability(outcomes)


def scale_of_degrees_of_freedom(design: Design) -> Outcomes:
    """(n - 1) / k instead of n / k."""
    return honest(design, (design.length - 1) / design.length)


def scale_off_by_three_thousandths(design: Design) -> Outcomes:
    """As a weight that is held in bfloat16 can be."""
    return honest(design, 1.003)


def uniform_weight(design: Design) -> Outcomes:
    """n / k although strata differ in length."""
    length = reference.weights(design.draw, design.length, design.kept)
    return honest(design, design.length / design.kept / length)


def without_norms(design: Design) -> Outcomes:
    """n / k although rows are drawn by their norms."""
    x, dy, _ = data(design)
    outcomes, uniform = all_outcomes(design), design.length / design.kept
    z = reference.multipliers(outcomes, np.full(design.kept, uniform), design.length).swapaxes(1, 2)
    return dy.numpy().T @ (x.numpy() * z), design.probability(outcomes)


def norms_of_another_activation(design: Design) -> Outcomes:
    """Weights and probabilities that do not belong together."""
    dw, _ = honest(design)
    return dw, reference.norm_probability(design.fixed_norms[::-1])[all_outcomes(design)].prod((-1, -2))


def one_column_of_signs(design: Design) -> Outcomes:
    """Unbiased, but all projections are the same one."""
    x, dy, _ = data(design)
    return model(
        design, np.broadcast_to(all_outcomes(design)[..., :1], all_outcomes(design).shape), x, dy
    ), None


def signs_of_two_values_in_three(design: Design) -> Outcomes:
    """+1 twice as likely as -1."""
    return only(design, 2.0 ** (all_outcomes(design) > 0).sum((1, 2)))


def one_sample_for_all_tiles(design: Design) -> Outcomes:
    """Unbiased, but `rows` where `tile_rows` was promised."""
    return honest(Design("rows", design.draw, *_sizes(design)))


def only(design: Design, likely: Float64s) -> Outcomes:
    """The right estimates with other probabilities."""
    dw, _ = honest(design)
    return dw, likely / likely.sum()


def last_index_never_drawn(design: Design) -> Outcomes:
    return only(design, (all_outcomes(design) != design.length - 1).all((1, 2)).astype(np.float64))


def uniforms_of_three_bits(design: Design) -> Outcomes:
    """Each index floor(n u) of its range with u a multiple of 1/8."""
    first, count = reference.index_ranges(design.draw, design.length, design.kept)
    index = all_outcomes(design) - first
    chance = [[np.mean(np.arange(8) * n // 8 == i) for i in range(n)] for n in count.tolist()]
    likely = np.ones(index.shape[0])
    for i in range(design.kept):
        likely *= np.array(chance[i])[index[..., i]].prod(-1)
    return only(design, likely)


def backward_redraws(design: Design) -> Outcomes:
    """Values of one sample put in the places of another."""
    x, dy, _ = data(design)
    index = all_outcomes(design)
    weight = reference.weights(design.draw, design.length, design.kept)
    entries = x.numpy() if design.sampling == "rows" else x.numpy().T
    found = []
    for stored in index[:, 0]:
        for read in index[:, 0]:
            places = np.zeros_like(entries)
            np.add.at(places, read, weight[:, None] * entries[stored])
            found.append(dy.numpy().T @ (places if design.sampling == "rows" else places.T))
    return np.stack(found), None


def with_replacement_after_all(design: Design) -> Outcomes:
    """Unbiased, but not the stratified draw that was promised."""
    return honest(Design(design.sampling, "with_replacement", *_sizes(design)))


def one_sample_for_all_rows(design: Design) -> Outcomes:
    """Unbiased, but `same` where `different` was promised."""
    return honest(Design("same", design.draw, *_sizes(design)))


def _sizes(design: Design) -> tuple[int, int, int, int]:
    return design.rows, design.features, design.kept, design.outputs


BY_ROW = Design("rows", "stratified", 7, 4, 3)
BY_COLUMN = Design("same", "stratified", 4, 7, 3)
OWN = Design("different", "stratified", 3, 5, 2)
REPLACED = Design("rows", "with_replacement", 5, 4, 3)
OWN_REPLACED = Design("different", "with_replacement", 2, 5, 2)
EVERY = [BY_ROW, BY_COLUMN, OWN, REPLACED, OWN_REPLACED]
DISTINCT = Design("rows", "without_replacement", 7, 4, 3)
DISTINCT_COLUMNS = Design("same", "without_replacement", 4, 7, 3)
TILED = Design("tile_rows", "stratified", 5, 130, 2)
TILED_DISTINCT = Design("tile_rows", "without_replacement", 4, 130, 2)
BY_NORM = Design("rows", "norm", 5, 4, 2)
PROJECTED = Design("project", "stratified", 3, 4, 2)
OTHERS = [DISTINCT, DISTINCT_COLUMNS, TILED, TILED_DISTINCT, BY_NORM, PROJECTED]

PLANTED = [
    *((scale_of_degrees_of_freedom, design, "bias") for design in EVERY),
    *((scale_off_by_three_thousandths, design, "bias") for design in EVERY),
    *((uniform_weight, design, "bias") for design in (BY_ROW, BY_COLUMN, OWN)),
    *((last_index_never_drawn, design, "bias") for design in EVERY),
    *((uniforms_of_three_bits, design, "bias") for design in EVERY),
    *((backward_redraws, design, "bias") for design in (BY_ROW, BY_COLUMN, REPLACED)),
    *((with_replacement_after_all, design, "variance") for design in (BY_ROW, BY_COLUMN, OWN)),
    *((one_sample_for_all_rows, design, "variance") for design in (OWN, OWN_REPLACED)),
    *((scale_of_degrees_of_freedom, design, "bias") for design in OTHERS),
    *((scale_off_by_three_thousandths, design, "bias") for design in OTHERS),
    *((last_index_never_drawn, design, "bias") for design in (DISTINCT, DISTINCT_COLUMNS, TILED_DISTINCT)),
    *((with_replacement_after_all, design, "variance") for design in (DISTINCT, DISTINCT_COLUMNS, TILED)),
    *((one_sample_for_all_tiles, design, "variance") for design in (TILED, TILED_DISTINCT)),
    (uniform_weight, TILED, "bias"),
    (without_norms, BY_NORM, "bias"),
    (norms_of_another_activation, BY_NORM, "bias"),
    (one_column_of_signs, PROJECTED, "variance"),
    (signs_of_two_values_in_three, PROJECTED, "bias"),
]


def _name(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("design", EVERY + OTHERS, ids=str)
def test_the_honest_estimator_passes(design):
    check_design(design, *honest(design))


@pytest.mark.parametrize(("mistake", "design", "broken"), PLANTED, ids=_name)
def test_planted_mistakes_are_rejected(mistake, design, broken):
    with pytest.raises(AssertionError, match=broken):
        check_design(design, *mistake(design))

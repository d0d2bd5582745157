"""The expectation and variance of a convolution's weight gradient, by running the real ops once for every
outcome there is (enumeration.py), zero padding included."""

import numpy as np
import pytest
import torch
from conv_cases import COMBINATIONS, ConvCase
from enumeration import Design, batches, check_unbiased, check_variance, multipliers, search_keys

from rad_kernels import ops
from rad_kernels.reference import strata

PADDED = ConvCase(1, 2, (8, 8), 2, (3, 3), padding=1)
# Each with the numbers of entries that are kept: uneven strata, one kept, duplicates with replacement.
CASES = [
    (PADDED, "same", "stratified", 2),
    (PADDED, "rows", "stratified", 2),
    (PADDED, "rows", "with_replacement", 2),
    (PADDED, "different", "stratified", 1),
    (ConvCase(1, 1, (8, 8), 2, (3, 3), padding=1), "different", "with_replacement", 2),
    (ConvCase(2, 4, (2, 3), 6, (3, 2), padding=1, groups=2), "same", "with_replacement", 4),
    (ConvCase(1, 4, (2, 3), 2, (2, 2), padding=1, groups=2), "different", "with_replacement", 1),
    (ConvCase(2, 3, (3, 5), 2, (2, 3), stride=2, padding=2, dilation=2), "rows", "stratified", 7),
    (ConvCase(1, 2, (3, 4), 3, (2, 3), stride=2, padding=1), "rows", "without_replacement", 5),
    (ConvCase(2, 2, (3, 4), 3, (3, 2), padding=1, dilation=2), "same", "without_replacement", 7),
    (ConvCase(1, 2, (3, 3), 2, (3, 3), stride=2, padding=1, transposed=True, output_padding=1), "different",
     "stratified", 4),
    (ConvCase(2, 4, (3, 3), 4, (2, 3), stride=2, padding=1, groups=2, transposed=True), "rows", "stratified",
     7),
    (ConvCase(2, 2, (3, 3), 2, (2, 2), stride=3, dilation=2, transposed=True), "same", "with_replacement", 3),
    (ConvCase(2, 2, (7,), 3, (3,), padding=1), "different", "stratified", 3),
    (ConvCase(1, 2, (2, 3, 4), 2, (2, 3, 2), padding=1), "same", "stratified", 7),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """Thousands of products of a few elements each: threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def design_of(case, sampling, draw, kept):
    rows, cols = case.matrix(sampling != "rows")
    return Design(sampling, draw, rows, cols, kept)


def contributions(case, x, dy, by_channel):
    """[rows, cols, weights]: the exact gradient that each entry of the packed matrix contributes."""
    rows, cols = case.matrix(by_channel)
    alone = torch.eye(rows * cols, dtype=x.dtype).view(-1, rows, cols)
    parts = torch.stack([case.wgrad(x * case.activation(one, by_channel), dy) for one in alone])
    return parts.view(rows, cols, -1).numpy()


def variance(design, parts):
    """A line of docs/maths.md, convolutions, for entries' contributions [n, ...] along one sample."""
    n, k = len(parts), design.kept
    squares = np.square(parts.reshape(n, -1)).sum(1)
    total = np.square(parts.sum(0)).sum()
    if design.draw == "stratified":
        pieces = [slice(begin, begin + size) for begin, size in zip(*strata(n, k), strict=True)]
        return sum((h.stop - h.start) * squares[h].sum() - np.square(parts[h].sum(0)).sum() for h in pieces)
    replaced = (n * squares.sum() - total) / k
    return replaced if draws_again(design) else replaced * (n - k) / (n - 1)


def draws_again(design):
    return design.draw == "with_replacement"


def samples(design, parts):
    """What each independent sample chooses from: [n, weights] of every one of them."""
    if design.sampling == "rows":
        return [parts.sum(1)]
    return [parts.sum(0)] if design.sampling == "same" else list(parts)


@pytest.mark.parametrize(
    ("case", "sampling", "draw", "kept"), CASES, ids=lambda value: str(value).replace("_", "-")
)
def test_every_outcome(case, sampling, draw, kept):
    """Each outcome is what its definition says; bias at most 1e-12, variances 1e-10 from their formulas."""
    design, by_channel = design_of(case, sampling, draw, kept), sampling != "rows"
    x, weight, dy = case.data()
    found = []
    for key in search_keys(design, ops.rank_salt()).tolist():
        saved = case.pack(x, weight, design.sketch, by_channel, key)
        found.append(case.sampled(dy, saved, design.sketch, by_channel).reshape(1, -1))
    dw = torch.stack(found).numpy()
    parts = contributions(case, x, dy, by_channel)
    exact = case.wgrad(x, dy).reshape(1, -1).numpy()
    z = np.concatenate([np.broadcast_to(multipliers(design, outcome), (len(outcome), *parts.shape[:2]))
                        for outcome in batches(design)])  # fmt: skip
    definition = np.einsum("nrc,rcw->nw", z, parts)
    assert np.abs(dw[:, 0] - definition).max() <= 1e-12 * np.abs(definition).max()
    check_unbiased(dw, exact)
    check_variance(dw, exact, sum(variance(design, chosen) for chosen in samples(design, parts)))
    for direction in (exact, np.ones_like(exact)):
        along = sum(variance(design, chosen @ direction[0]) for chosen in samples(design, parts))
        check_variance(dw, exact, along, direction)


def test_every_combination_is_enumerated():
    assert {names[1:3] for names in CASES} == set(COMBINATIONS)

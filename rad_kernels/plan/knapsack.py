"""Which option each item takes: the least total cost within a number of bytes, with few different
settings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STATES = 300  # sums of bytes that the search keeps apart; fewer items than it takes to need them are exact
BISECTIONS = 30

Reals = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """cost, nbytes: [items, settings], infinite where an item has no such option."""

    cost: Reals
    nbytes: Reals

    def smallest(self) -> float:
        """Bytes below which nothing fits."""
        return float(self.nbytes.min(1).sum())

    def limited(self, allowed: Collection[int]) -> Problem:
        """With only these settings, in their order."""
        return Problem(self.cost[:, list(allowed)], self.nbytes[:, list(allowed)])


def solve(problem: Problem, budget: float) -> list[int] | None:
    """The setting of each item: least cost with at most ``budget`` bytes; None if nothing fits.

    Item by item, the sums that no other sum beats in both bytes and cost are kept. Where these are more than
    STATES, the cheapest of each of STATES equal ranges of bytes is.
    """
    items = len(problem.cost)
    least = problem.nbytes.min(1) if items else np.zeros(0)
    rest = np.append(np.cumsum(least[::-1])[::-1], 0.0)
    if not np.isfinite(rest[0]) or rest[0] > budget:
        return None
    nbytes, cost = np.zeros(1), np.zeros(1)
    history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for item in range(items):
        options = np.flatnonzero(np.isfinite(problem.cost[item]) & np.isfinite(problem.nbytes[item]))
        sums = (nbytes[:, None] + problem.nbytes[item, options]).ravel()
        costs = (cost[:, None] + problem.cost[item, options]).ravel()
        kept = np.flatnonzero(sums + rest[item + 1] <= budget)
        kept = kept[np.lexsort((costs[kept], sums[kept]))]
        before = np.minimum.accumulate(np.append(np.inf, costs[kept]))[:-1]
        kept = kept[costs[kept] < before]
        kept = _thinned(kept, sums[kept], budget - rest[item + 1])
        nbytes, cost = sums[kept], costs[kept]
        history.append((kept // len(options), options[kept % len(options)]))
    chosen: list[int] = []
    state = len(cost) - 1  # sorted by bytes, hence falling in cost
    for parents, options in reversed(history):
        chosen.append(int(options[state]))
        state = int(parents[state])
    return chosen[::-1]


def _thinned(kept: NDArray[np.intp], nbytes: Reals, most: float) -> NDArray[np.intp]:
    if len(kept) <= STATES:
        return kept
    ranges = (nbytes * (STATES / max(most, 1.0))).astype(np.int64)
    last = np.append(ranges[1:] != ranges[:-1], True)
    last[0] = True  # the smallest sum, so that the rest always fits
    return kept[last]


def relaxed_cost(problem: Problem, budget: float) -> float:
    """Cost of a choice within the budget that a price for bytes finds; infinite if nothing fits. Fast, and
    off by at most what one item can save."""
    if not problem.smallest() <= budget:
        return float("inf")
    possible = np.isfinite(problem.cost) & np.isfinite(problem.nbytes)
    nbytes, cost = np.where(possible, problem.nbytes, 0.0), np.where(possible, problem.cost, np.inf)
    rows = np.arange(len(cost))

    def at(price: float) -> tuple[float, float]:
        chosen = (cost + price * nbytes).argmin(1)
        return float(nbytes[rows, chosen].sum()), float(cost[rows, chosen].sum())

    spent, best = at(0.0)
    if spent <= budget:
        return best
    scale = float(cost[possible].max()) or 1.0
    low, high = np.log(scale * 1e-18), np.log(scale)
    # At this price a byte costs as much as any item can save: the smallest options are taken.
    best = float(cost[rows, np.where(possible, problem.nbytes, np.inf).argmin(1)].sum())
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        spent, found = at(float(np.exp(middle)))
        if spent <= budget:
            high, best = middle, min(best, found)
        else:
            low = middle
    return best


def choose(problem: Problem, budget: float, limit: int) -> list[int] | None:
    """As ``solve``, with at most ``limit`` different settings: of those of the best choice without a limit,
    the one that is missed least is dropped, by relaxed costs, until they are few enough."""
    chosen = solve(problem, budget)
    if chosen is None:
        return None
    allowed = sorted(set(chosen))
    while len(allowed) > limit:
        without = [[s for s in allowed if s != dropped] for dropped in allowed]
        limits = [problem.limited(settings) for settings in without]
        ranked = [(relaxed_cost(p, budget), p.smallest(), number) for number, p in enumerate(limits)]
        allowed = without[min(ranked)[2]]
        chosen = None
    if chosen is None:
        within = solve(problem.limited(allowed), budget)
        chosen = None if within is None else [allowed[number] for number in within]
    return chosen

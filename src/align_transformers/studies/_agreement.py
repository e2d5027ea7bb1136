"""How well estimates agree with exact values: some cells are measured, those that are strongest and a random sample.

A cell of the sample stands for as many cells as there are of its kind for each one drawn; the strongest stand for
themselves. Intervals say what other samples would have given; they say nothing about other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import SpecError

_DRAWS = 1000
_FREEDOMS = (1, 2, 3, 5, 10, 30)


@dataclass(frozen=True)
class CellSample:
    """Which cells are measured.

    Args:
        strongest: numbers of cells, the strongest first.
        sample: numbers of cells drawn from the others.
        cells: how many there are in all.
    """

    strongest: tuple[int, ...]
    sample: tuple[int, ...]
    cells: int

    @property
    def each(self) -> tuple[int, ...]:
        """All of them, in order."""
        return tuple(sorted((*self.strongest, *self.sample)))

    @property
    def rest(self) -> int:
        """How many cells are not among the strongest."""
        return self.cells - len(self.strongest)


def check_seed(seed: int) -> None:
    """Refuse a seed that no drawing can have.

    Raises:
        SpecError: it is negative.
    """
    if seed < 0:
        raise SpecError(f"seed={seed} is a whole number from 0")


def draw(strengths: Sequence[float], strongest: int, sample: int, seed: int) -> CellSample:
    """Choose cells.

    Args:
        strengths: of all cells.
        strongest: so many of them, at most.
        sample: so many of the others, at most.
        seed: of the drawing.

    >>> draw([0.1, 0.9, 0.2, 0.8], 2, 1, 0).strongest
    (1, 3)
    """
    order = np.argsort(-np.asarray(strengths, dtype=float), kind="stable")
    top, others = order[:strongest], np.sort(order[strongest:])
    drawn = np.random.default_rng(seed).permutation(others)[:sample]
    return CellSample(tuple(map(int, top)), tuple(sorted(map(int, drawn))), len(order))


def agreement(drawn: CellSample, estimates: Sequence[float], exact: Sequence[float], seed: int) -> dict[str, Any]:
    """Return Pearson's and Spearman's correlation and the recall of the strongest, each with a 95 % interval.

    Args:
        drawn: which cells were measured.
        estimates: of the cells that `drawn.each` names, in that order.
        exact: likewise.
        seed: of the bootstrap over the sample.

    Returns:
        `pearson`, `spearman`, `recall` (of the top k, `None` without strongest cells), each with `_low` and `_high`;
        `k`, `n`, `sample`, `cells`.
    """
    pairs = np.column_stack([np.asarray(estimates, float), np.asarray(exact, float)])
    sampled = np.isin(np.asarray(drawn.each), np.asarray(drawn.sample))
    weight = drawn.rest / max(1, int(sampled.sum()))
    weights = np.where(sampled, weight, 1.0)
    found: dict[str, Any] = {"n": len(pairs), "sample": int(sampled.sum()), "cells": drawn.cells}
    again = np.tile(weights, (_DRAWS, 1))
    if len(pairs) < drawn.cells:
        places = np.flatnonzero(sampled)
        counts = np.random.default_rng(seed).multinomial(len(places), [1 / len(places)] * len(places), _DRAWS)
        again[:, places] = weight * counts
    for name, measure in (("pearson", _pearson), ("spearman", _spearman)):
        value, others = measure(pairs, weights[None])[0], measure(pairs, again)
        known = others[np.isfinite(others)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (math.nan, math.nan)
        found |= {name: _plain(value), f"{name}_low": _plain(low), f"{name}_high": _plain(high)}
    return found | _recall(drawn, np.abs(pairs[:, 1]), sampled, weights)


def missed(drawn: CellSample, estimates: Sequence[float], errors: Sequence[float], bound: float) -> float:
    """Return the probability that one of the cells that were not measured is stronger than some bound.

    Errors of estimates are taken to be as those of the sample, t distributed around 0, with the scale and the tails
    that make the sample most likely: the probability for a cell is that of an error that carries its estimate beyond
    the bound. Cells are taken to be independent. Rare large errors that a small sample does not show are not in it.

    Args:
        drawn: what was measured.
        estimates: of all cells.
        errors: exact minus estimate, of the sample.
        bound: a strength.

    >>> missed(CellSample((0,), (1,), 2), [1.0, 0.5], [0.1], 0.9)  # all were measured
    0.0
    """
    left = sorted(set(range(drawn.cells)) - set(drawn.each))
    if not left:
        return 0.0
    if not errors:
        return 1.0
    spread, freedom = _fitted(np.asarray(errors, dtype=float))
    none = 0.0
    for cell in left:
        ends = bound - estimates[cell], bound + estimates[cell]
        beyond, below = (_tail(end / spread, freedom) if spread else float(end < 0) for end in ends)
        if beyond + below >= 1:
            return 1.0
        none += math.log1p(-(beyond + below))
    return -math.expm1(none)


def _fitted(errors: Any) -> tuple[float, int]:
    """Return scale and freedom of the t distribution around 0 that makes errors most likely, by its fixed point."""
    squares = errors * errors
    if not squares.max():
        return 0.0, _FREEDOMS[0]
    found = []
    for freedom in _FREEDOMS:
        scale = squares.mean()
        for _ in range(200):
            scale = max(((freedom + 1) / (freedom + squares / scale) * squares).mean(), 1e-12 * squares.max())
        sizes = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * scale) / 2
        spread = (freedom + 1) / 2 * np.log1p(squares / (freedom * scale)).mean()
        found.append((float(sizes - spread), math.sqrt(scale), freedom))
    _, scale, freedom = max(found)
    return scale, freedom


def _tail(t: float, freedom: int) -> float:
    """Return the probability that a t distributed number is larger than t."""
    x = freedom / (freedom + t * t)
    half = 0.5 * _incomplete_beta(freedom / 2, 0.5, x)
    return half if t >= 0 else 1 - half


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function, by its continued fraction."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    value, c, d = 1.0, 1.0, 0.0
    for step in range(200):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / (1 + term * d or 1e-300)
        c = 1 + term / (c or 1e-300)
        value *= c * d
        if step and abs(1 - c * d) < 1e-12:
            break
    return front * (value - 1) / a


def _recall(drawn: CellSample, strengths: Any, sampled: Any, weights: Any) -> dict[str, Any]:
    """Return which share of the truly strongest k cells is among the k that are estimated to be so."""
    k = len(drawn.strongest)
    if not k:
        return {"k": 0, "recall": None, "recall_low": None, "recall_high": None}
    order = np.argsort(-strengths, kind="stable")
    left, right, above = float(k), 0.0, 0
    for cell in order:
        if left <= 0:
            break
        taken = min(left, weights[cell])
        right += 0.0 if sampled[cell] else taken
        above += int(sampled[cell])
        left -= taken
    count = int(sampled.sum())
    recall = right / k
    low, high = (1 - min(k, drawn.rest * share) / k for share in reversed(_wilson(above, count)))
    if count == drawn.rest:
        low = high = recall
    return {"k": k, "recall": recall, "recall_low": low, "recall_high": max(recall, high)}


def _wilson(found: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    z, share = 1.959964, found / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    around = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, middle - around), min(1.0, middle + around)


def _pearson(pairs: Any, weights: Any) -> Any:
    """Return the correlation under each line of weights; NaN where there is none."""
    return _correlation(pairs[None, :, 0], pairs[None, :, 1], weights)


def _spearman(pairs: Any, weights: Any) -> Any:
    """Return the correlation of the ranks, equal numbers at the middle of theirs."""
    return _correlation(_ranks(pairs[:, 0], weights), _ranks(pairs[:, 1], weights), weights)


def _correlation(one: Any, other: Any, weights: Any) -> Any:
    total = weights.sum(1, keepdims=True)
    first, second = (values - (weights * values).sum(1, keepdims=True) / total for values in (one, other))
    size = np.sqrt((weights * first * first).sum(1) * (weights * second * second).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * first * second).sum(1) / np.where(size > 0, size, np.nan)


def _ranks(values: Any, weights: Any) -> Any:
    """Return for each line of weights where each value stands: how much weighs less than it."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    group = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
    ranks = np.empty_like(weights)
    ranks[:, order] = (np.cumsum(sizes, 1) - sizes / 2)[:, group]
    return ranks


def _plain(number: Any) -> float | None:
    return None if math.isnan(number) else float(number)

"""Correlations, recall and probabilities of the check, against closed forms and drawings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from align_transformers.studies._agreement import CellSample, _tail, agreement, draw, missed


def told(drawn: CellSample, estimates: list[int], exact: list[int]) -> dict[str, Any]:
    return agreement(drawn, [float(one) for one in estimates], [float(one) for one in exact], 0)


def test_with_everything_measured_they_are_the_plain_ones():
    numbers = np.random.default_rng(0).normal(size=(40, 2))
    estimates, exact = numbers[:, 0], numbers[:, 0] + numbers[:, 1]
    drawn = draw(np.abs(estimates).tolist(), 10, 100, 0)
    assert drawn.each == tuple(range(40))
    found = agreement(drawn, estimates.tolist(), exact.tolist(), 0)
    assert found["pearson"] == pytest.approx(np.corrcoef(estimates, exact)[0, 1])
    ranks = [np.argsort(np.argsort(column)) for column in (estimates, exact)]
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    true, said = (set(np.argsort(-np.abs(column))[:10]) for column in (exact, estimates))
    assert found["recall"] == pytest.approx(len(true & said) / 10)
    assert found["recall_low"] == found["recall"] == found["recall_high"]


def test_the_sample_stands_for_the_others():
    """Weighted by how many each stands for, drawings give the correlation over all cells; without, too large a one."""
    generator = np.random.default_rng(1)
    estimates = generator.normal(size=600) ** 3
    exact = estimates + generator.normal(size=600)
    true = np.corrcoef(estimates, exact)[0, 1]
    weighted, plain, inside = [], [], 0
    for seed in range(40):
        drawn = draw(np.abs(estimates).tolist(), 16, 48, seed)
        each = list(drawn.each)
        found = agreement(drawn, estimates[each].tolist(), exact[each].tolist(), seed)
        weighted.append(found["pearson"])
        plain.append(np.corrcoef(estimates[each], exact[each])[0, 1])
        inside += found["pearson_low"] <= true <= found["pearson_high"]
    assert abs(np.mean(weighted) - true) < 0.02 < np.mean(plain) - true
    assert inside >= 32


def test_equal_numbers_share_a_rank_and_constants_have_no_correlation():
    drawn = CellSample((0, 1), (2, 3), 4)
    assert told(drawn, [1, 1, 2, 2], [3, 3, 5, 5])["spearman"] == pytest.approx(1)
    assert told(drawn, [1, 1, 1, 1], [3, 2, 5, 1])["pearson"] is None
    assert told(CellSample((), (0, 1), 9), [1, 2], [1, 2])["recall"] is None


def test_a_strong_cell_in_the_sample_lowers_the_recall():
    drawn = CellSample((0, 1), (2, 3), 22)
    weak = told(drawn, [5, 4, 1, 1], [5, 4, 1, 1])
    assert (weak["recall"], weak["recall_high"], weak["k"]) == (1, 1, 2)
    assert weak["recall_low"] < 0.5  # two of twenty tell little
    strong = told(drawn, [5, 4, 1, 1], [5, 4, 9, 1])
    assert strong["recall"] == 0


@pytest.mark.parametrize("t", [-3.0, -0.5, 0.0, 0.2, 1.0, 4.0, 30.0])
def test_the_tail_of_the_t_distribution(t):
    assert _tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, abs=1e-9)
    assert _tail(t, 2) == pytest.approx(0.5 - t / (2 * math.sqrt(2 + t * t)), abs=1e-9)
    normal = 0.5 * math.erfc(t / math.sqrt(2))
    assert _tail(t, 4000) == pytest.approx(normal, rel=2e-2 if t < 4 else 1, abs=1e-6)


def test_the_probability_of_a_missed_cell_is_that_of_large_errors():
    generator = np.random.default_rng(2)
    estimates = generator.normal(size=200)
    drawn = draw(np.abs(estimates).tolist(), 20, 60, 0)
    left = [cell for cell in range(200) if cell not in drawn.each]
    spread, bound = 0.3, 2.0
    happened = np.mean([
        (np.abs(estimates[left] + spread * np.random.default_rng(seed).normal(size=len(left))) > bound).any()
        for seed in range(2000)
    ])  # fmt: skip
    errors = (spread * np.random.default_rng(9).normal(size=60)).tolist()
    assert missed(drawn, estimates.tolist(), errors, bound) == pytest.approx(happened, abs=0.15)
    assert missed(drawn, estimates.tolist(), [0.0], 10.0) == 0
    assert missed(drawn, estimates.tolist(), [], 10.0) == 1


def test_heavy_tails_of_the_errors_are_seen():
    """Most errors are small, a few are large: the spread alone would say that nothing strong is ever missed."""
    drawn = draw([0.0] * 1000, 10, 100, 0)
    happened, told = [], []
    for seed in range(8):
        errors = 0.02 * np.random.default_rng(seed).standard_t(1.5, size=1000)
        rest = [cell for cell in range(1000) if cell not in drawn.each]
        happened.append(bool((np.abs(errors[rest]) > 1).any()))
        told.append(missed(drawn, [0.0] * 1000, errors[list(drawn.sample)].tolist(), 1.0))
    assert np.mean(happened) > 0.3
    assert np.mean(told) == pytest.approx(np.mean(happened), abs=0.35)
    quiet = (0.02 * np.random.default_rng(0).normal(size=100)).tolist()
    assert missed(drawn, [0.0] * 1000, quiet, 1.0) < 0.2

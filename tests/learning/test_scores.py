"""Losses, bootstrap and scores, against formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from align_transformers import SpecError, UnknownNameError
from align_transformers.learning import Scores, bootstrap, cross_entropy, iia, kl_divergence, label_difference

LOGITS = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 6, 3, 3, 1])


def test_cross_entropy():
    by_hand = [math.log(sum(math.exp(x) for x in row)) - row[y] for row, y in zip(LOGITS.tolist(), LABELS, strict=True)]
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), torch.tensor(by_hand))


def test_kl_divergence():
    target = torch.softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), -1)
    said = torch.softmax(LOGITS, -1)
    expected = [sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in
                zip(target.tolist(), said.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(kl_divergence(LOGITS, target), torch.tensor(expected))
    assert kl_divergence(LOGITS, torch.softmax(LOGITS, -1)).abs().max() < 1e-6
    with pytest.raises(SpecError, match="softmax"):
        kl_divergence(LOGITS, LOGITS)


def test_label_difference_and_iia():
    pairs = torch.tensor([[0, 1], [6, 2], [3, 4], [3, 0], [1, 2]])
    assert label_difference(LOGITS, pairs).tolist() == [LOGITS[n, a] - LOGITS[n, b] for n, (a, b) in enumerate(pairs)]
    assert iia(F.one_hot(LABELS, 7).float(), torch.tensor([0, 6, 3, 2, 2])).tolist() == [1, 1, 1, 0, 0]


def test_half_precision_is_measured_in_float32():
    assert cross_entropy(LOGITS.bfloat16(), LABELS).dtype == torch.float32


def test_the_bootstrap_is_the_percentile_one():
    values = torch.tensor(np.random.default_rng(0).normal(3.0, 2.0, size=400))
    found = bootstrap(values, resamples=4000)
    draws = np.random.default_rng(1).choice(values.numpy(), size=(4000, 400)).mean(1)
    assert found.mean == pytest.approx(values.mean().item(), abs=1e-9)
    # two Monte Carlo estimates of 4000 draws: their ends differ by a tenth of the standard error, 0.1
    assert found.low == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(draws, 0.975), abs=0.02)
    half = 1.96 * values.std().item() / 20  # what the central limit theorem says
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(0, 5))
def test_the_bootstrap_is_seeded_and_inside_the_values(values, seed):
    tensor = torch.tensor(values, dtype=torch.double)
    one, again = bootstrap(tensor, resamples=50, seed=seed), bootstrap(tensor, resamples=50, seed=seed)
    assert one == again
    assert min(values) - 1e-9 <= one.low <= one.high <= max(values) + 1e-9


def test_how_many_are_drawn_at_once_does_not_matter(monkeypatch):
    values = torch.arange(10.0)
    whole = bootstrap(values, resamples=30)
    monkeypatch.setattr("align_transformers.learning.scores._DRAWN_AT_ONCE", 70)
    assert bootstrap(values, resamples=30) == whole


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 0}])
def test_mistakes_are_told(wrong):
    with pytest.raises(SpecError, match="bootstrap"):
        bootstrap(torch.ones(3), **wrong)
    with pytest.raises(SpecError, match="bootstrap"):
        bootstrap(torch.ones(0))


def scores(values, **more):
    return Scores({"soft": {"iia": torch.tensor(values)}}, **more)


def test_subsets_and_rows():
    made = Scores(
        {"soft": {"iia": torch.tensor([1.0, 0.0, 1.0, 1.0]), "whole": torch.full((4,), 0.5)}},
        whole=frozenset({"whole"}),
        solved=torch.tensor([True, True, False, True]),
        changed=torch.tensor([True, False, False, True]),
    )
    assert dict(made) == {"iia": 0.75, "whole": 0.5}
    assert made.trivial == 0.5
    assert (made.interval("iia", subset="solved").mean, made.interval("iia", subset="solved").n) == (
        pytest.approx(2 / 3),
        3,
    )
    assert made.interval("iia", subset="changed").mean == 1.0
    rows = made.rows()
    assert [(row["metric"], row["subset"], row["n"]) for row in rows] == [
        ("iia", "all", 4), ("iia", "solved", 3), ("iia", "changed", 2), ("whole", "all", 4),
    ]  # fmt: skip
    assert rows[-1]["low"] is None
    assert made.to_frame()["mean"].tolist()[0] == 0.75
    with pytest.raises(SpecError, match="a batch"):
        made.interval("whole")
    with pytest.raises(UnknownNameError, match="solved"):
        made.interval("iia", subset="solvd")
    with pytest.raises(UnknownNameError, match="hard"):
        made.interval("iia", mask="hard")
    with pytest.raises(KeyError, match="iia"):
        made["iiaa"]


def test_an_empty_subset_has_no_mean():
    row = scores([1.0], changed=torch.tensor([False])).rows()[1]
    assert (row["subset"], row["n"], row["mean"]) == ("changed", 0, None)


def test_paired_scores_differ_by_less_than_unpaired_ones():
    generator = torch.Generator().manual_seed(0)
    hard = torch.rand(200, generator=generator)
    one, other = scores((hard > 0.3).float().tolist()), scores((hard > 0.35).float().tolist())
    found = one.minus(other, "iia")
    assert found.mean == pytest.approx(one["iia"] - other["iia"])
    assert found.low > 0
    assert one.interval("iia").low < other.interval("iia").high, "unpaired intervals overlap"
    with pytest.raises(SpecError, match="same examples"):
        one.minus(scores([1.0]), "iia")


@pytest.mark.parametrize("measure", [cross_entropy, iia, label_difference, kl_divergence])
def test_labels_of_another_shape_are_refused_and_never_stretched(measure):
    rows = {"cross_entropy": (5,), "iia": (5,), "label_difference": (5, 2), "kl_divergence": (5, 7)}
    right = rows[measure.__name__]
    for wrong in [(1, *right[1:]), (*right, 1), (4, *right[1:]), (), (5, 3)]:
        labels = torch.full(wrong, 1 / 7) if measure is kl_divergence else torch.zeros(wrong, dtype=torch.long)
        with pytest.raises(SpecError, match=measure.__name__):
            measure(LOGITS, labels)


def test_paired_scores_are_of_examples_and_of_a_metric_that_there_is():
    one, whole = scores([1.0, 0.0]), scores([1.0, 0.0], whole=frozenset({"iia"}))
    for first, second in ((one, whole), (whole, one)):
        with pytest.raises(SpecError, match="a batch"):
            first.minus(second, "iia")
    with pytest.raises(UnknownNameError, match="accuracy"):
        one.minus(one, "accuracy")

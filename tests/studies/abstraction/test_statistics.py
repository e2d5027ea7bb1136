"""Intervals over entities: against literal resampling of entities, by coverage; p-values and corrections by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.untyped import untyped

from align_transformers import Interval, SpecError
from align_transformers.studies.abstraction.statistics import (
    apart,
    corrected,
    entity_bootstrap,
    entity_bootstraps,
    p_value,
)


def drawn_pairs(count, pairs, generator):
    """Return pairs of different entities."""
    base = generator.integers(count, size=pairs)
    return base, (base + generator.integers(1, count, size=pairs)) % count


def over_pairs(values, resamples, generator):
    """Return the ends of the plain bootstrap: pairs are drawn."""
    means = values[generator.integers(len(values), size=(resamples, len(values)))].mean(1)
    return np.quantile(means, [0.025, 0.975])


def every_resample(values, base, source, count):
    """Return the means of all count ** count resamples, each pair repeated as often as copies of its entities stand."""
    means = []
    for drawn in itertools.product(range(count), repeat=count):
        copies = []
        for value, b, s in zip(values, base, source, strict=True):
            times = drawn.count(b) * (1 if b == s else drawn.count(s))
            copies += [value] * times
        if copies:
            means.append(np.mean(copies))
    return np.array(means)


def test_the_ends_are_those_of_all_resamples_written_out():
    generator = np.random.default_rng(1)
    base, source = np.array([0, 1, 2, 3, 0, 2, 1]), np.array([1, 2, 3, 0, 2, 2, 3])  # one pair of an entity with itself
    values = generator.normal(size=7)
    means = every_resample(values, base, source, 4)
    found = entity_bootstrap(values, base, source, resamples=40_000, confidence=0.8)
    assert found.mean == pytest.approx(values.mean())
    for end, share in ((found.low, 0.1), (found.high, 0.9)):  # there are gaps between the means
        assert (means < end - 1e-9).mean() - 0.01 <= share <= (means <= end + 1e-9).mean() + 0.01
    assert found.n == 7


def test_numbers_of_entities_do_not_matter_and_chunks_neither(monkeypatch):
    generator = np.random.default_rng(2)
    (base, source), values = drawn_pairs(9, 60, generator), generator.random(60) < 0.6
    found = entity_bootstrap(values, base, source, resamples=200)
    assert entity_bootstrap(values, base * 7 + 3, source * 7 + 3, resamples=200) == found
    monkeypatch.setattr("align_transformers.studies.abstraction.statistics._DRAWN_AT_ONCE", 60 * 50)
    assert entity_bootstrap(values, base, source, resamples=200) == found
    assert entity_bootstrap(values, base, source, resamples=200, seed=1) != found


def test_rows_have_the_same_draws_and_so_has_their_difference():
    generator = np.random.default_rng(3)
    base, source = drawn_pairs(12, 200, generator)
    first = generator.random(200)
    rows = np.stack([first, first - 0.03])
    high, low = entity_bootstraps(rows, base, source)
    assert high == entity_bootstrap(first, base, source)
    assert high.low - low.low == pytest.approx(0.03)
    assert entity_bootstrap(rows[0] - rows[1], base, source).low == pytest.approx(0.03)  # far apart though they overlap
    assert not apart(high, low)


def test_several_sources_and_none():
    generator = np.random.default_rng(4)
    (base, source), values = drawn_pairs(10, 80, generator), generator.random(80)
    none, one = np.full(80, -1), entity_bootstrap(values, base, source)
    assert entity_bootstrap(values, base, np.stack([none, source], 1)) == one
    assert entity_bootstrap(values, base, np.stack([source, source], 1)) == one  # both from one entity: it counts once
    assert entity_bootstrap(values, base, np.stack([source, base], 1)) == one
    third = (source + 1) % 10
    assert entity_bootstrap(values, base, np.stack([source, third], 1)) != one
    alone = entity_bootstrap(values, base, none)
    assert alone == entity_bootstrap(values, base, base)


def test_coverage_with_entity_effects():
    """Pairs share 20 entities that differ: of 200 worlds, how many of the intervals hold the true mean?"""
    generator, count, pairs, worlds = np.random.default_rng(5), 20, 300, 200
    by_entity = by_pair = 0
    for world in range(worlds):
        as_base, as_source = generator.normal(size=(2, count))
        base, source = drawn_pairs(count, pairs, generator)
        values = as_base[base] + as_source[source] + generator.normal(size=pairs)  # true mean: 0
        found = entity_bootstrap(values, base, source, resamples=200, seed=world)
        by_entity += found.low <= 0 <= found.high
        low, high = over_pairs(values, 200, generator)
        by_pair += low <= 0 <= high
    assert 0.88 <= by_entity / worlds <= 0.99
    assert by_pair / worlds <= 0.6


def test_coverage_without_entity_effects_is_too_large_and_known():
    """Independent pairs: wider than need be by sqrt(3), where few of the possible pairs are drawn."""
    generator = np.random.default_rng(6)
    ratios = []
    for _ in range(20):
        (base, source), values = drawn_pairs(200, 1000, generator), generator.normal(size=1000)
        found = entity_bootstrap(values, base, source, resamples=300)
        low, high = over_pairs(values, 300, generator)
        ratios.append((found.high - found.low) / (high - low))
    assert np.mean(ratios) == pytest.approx(3**0.5, abs=0.12)


def test_five_times_wider_where_some_entities_fail():
    """All pairs of 28 countries; those of 8 as source fail, as in a fit that knows 20 of them by heart."""
    base, source = np.nonzero(~np.eye(28, dtype=bool))
    hit = source < 20
    by_entity = entity_bootstrap(hit, base, source)
    low, high = over_pairs(hit, 1000, np.random.default_rng(0))
    assert by_entity.mean == pytest.approx(20 / 28)
    assert 4.5 <= (by_entity.high - by_entity.low) / (high - low) <= 6
    assert by_entity.low < 0.56 < 0.84 < by_entity.high


@pytest.mark.parametrize(
    ("base", "source", "values", "options", "message"),
    [
        ([0, 0], [0, 0], [1.0, 0.0], {}, "at least two"),
        ([0, 1], [1], [1.0, 0.0], {}, "shape"),
        ([0, 1, 2], [1, 0, 2], [1.0, 0.0], {}, "shape"),
        ([0, -1], [1, 0], [1.0, 0.0], {}, "from 0"),
        ([0, 1], [1, -2], [1.0, 0.0], {}, "from 0"),
        ([0, 1], [1, 0], [1.0, np.nan], {}, "finite"),
        ([0, 1], [1, 0], [1.0, 0.0], {"confidence": 1.0}, "confidence"),
        ([0, 1], [1, 0], [1.0, 0.0], {"resamples": 0}, "resamples"),
        ([], [], [], {}, "at least two"),
    ],
)
def test_what_has_no_interval_is_refused(base, source, values, options, message):
    arrays = np.array(values, dtype=float), np.array(base, dtype=int), np.array(source, dtype=int)
    with untyped(), pytest.raises(SpecError, match=message):
        entity_bootstrap(*arrays, **options)


def test_intervals_apart():
    middle = Interval(0.5, 0.4, 0.6, 10)
    assert apart(middle, Interval(0.8, 0.7, 0.9, 10))
    assert apart(Interval(0.8, 0.7, 0.9, 10), middle)
    assert not apart(middle, Interval(0.7, 0.6, 0.8, 10))  # a point in common
    assert not apart(middle, Interval(0.5, 0.0, 1.0, 10))


def test_p_values():
    assert p_value(0.9, [0.1] * 19) == 1 / 20
    assert p_value(0.1, [0.1, 0.05, 0.2]) == 3 / 4  # ties count
    assert p_value(0.0, np.linspace(0, 1, 99)) == 1.0
    for value, controls in ((0.5, []), (0.5, [0.1, float("nan")]), (float("nan"), [0.1])):
        with pytest.raises(SpecError, match="p-value"):
            p_value(value, controls)


def test_p_values_of_what_is_a_control_itself_are_even():
    scores = np.random.default_rng(1).normal(size=(4000, 20))
    found = np.array([p_value(one[0], one[1:]) for one in scores.tolist()])
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_corrections_by_hand():
    given = [0.04, 0.01, 0.03, 0.005]
    assert corrected(given) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert corrected(given, method="fdr") == pytest.approx([0.04, 0.02, 0.04, 0.02])
    assert corrected([0.6, 0.7]) == [1.0, 1.0]
    assert corrected([]) == []
    assert corrected([0.5], method="fdr") == [0.5]
    for wrong in ([1.1], [-0.1], [float("nan")]):
        with pytest.raises(SpecError, match="between 0 and 1"):
            corrected(wrong)
    with untyped(), pytest.raises(SpecError, match="holm"):
        corrected([0.5], method="bonferroni")


def test_the_corrections_agree_with_their_definitions():
    """What is found at level a: Holm's steps down, and the steps up of Benjamini and Hochberg, written as loops."""
    generator = np.random.default_rng(7)
    for _ in range(50):
        given = (generator.random(8) ** 3).tolist()
        ordered, level = sorted(given), generator.random() * 0.3
        down = next((i for i, p in enumerate(ordered) if p > level / (8 - i)), 8)
        up = max((i + 1 for i, p in enumerate(ordered) if p <= level * (i + 1) / 8), default=0)
        assert sum(p <= level for p in corrected(given)) == down
        assert sum(p <= level for p in corrected(given, method="fdr")) == up

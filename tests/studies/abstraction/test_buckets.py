"""Buckets: planted blocks, pure noise, a plain loop over blocks, and Fisher's test as another library has it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact
from tests.untyped import untyped

from align_transformers import SpecError
from align_transformers.studies.abstraction.buckets import find_buckets, shared_values


def all_pairs(count):
    """Return bases and sources of all pairs of entities, and whether they differ modulo 4."""
    base, source = np.divmod(np.arange(count**2), count)
    return base, source, base % 4 != source % 4


def planted(noise, seed, count=32):
    """Return all pairs, and a hit where both are of the first half; a share of the results is turned."""
    base, source, tells = all_pairs(count)
    turned = np.random.default_rng(seed).random(count**2) < noise
    return base, source, ((base < count // 2) & (source < count // 2)) ^ turned, tells


def log_likelihood(hits, n):
    return sum(x * np.log(x / n) for x in (hits, n - hits) if x > 0)


def peeled_by_loop(base, source, hit, tells):
    """Peel line by line and count the cells of every block anew; return the best block's pairs and its ratio."""
    alive = {("base", e) for e in base[tells]} | {("source", e) for e in source[tells]}

    def inside(lines):
        return [
            bool(t) and ("base", b) in lines and ("source", s) in lines
            for b, s, t in zip(base, source, tells, strict=True)
        ]

    best, pairs = 0.0, inside(alive)
    while any(block := np.array(inside(alive))):
        n, x, every_n, every_x = block.sum(), hit[block].sum(), tells.sum(), hit[tells].sum()
        if x / n > every_x / every_n + 1e-12:
            ratio = log_likelihood(x, n) + log_likelihood(every_x - x, every_n - n) - log_likelihood(every_x, every_n)
            if ratio > best + 1e-9:
                best, pairs = ratio, block
        means = {}
        for side, entity in sorted(alive):
            of_line = block & ((base if side == "base" else source) == entity)
            if of_line.any():
                means[side, entity] = hit[of_line].mean()
        alive.remove(min(means, key=means.get))
    return np.array(pairs), best


@pytest.mark.parametrize("seed", range(12))
def test_the_running_sums_give_what_a_loop_gives(seed):
    generator = np.random.default_rng(seed)
    base, source = generator.integers(3, 10, size=(2, 60))  # some pairs several times, some not at all
    hit, tells = generator.random(60) < 0.4, generator.random(60) < 0.8
    if seed % 2:
        hit |= (base < 6) & (source < 7)
    found = find_buckets(base, source, hit, tells, shuffles=1)
    pairs, ratio = peeled_by_loop(base, source, hit, tells)
    assert found.ratio == pytest.approx(ratio, abs=1e-9)
    assert found.well.pairs.tolist() == pairs.tolist()


@pytest.mark.parametrize(("noise", "ratio"), [(0.0, 400), (0.1, 150)])
@pytest.mark.parametrize("seed", [1, 2, 3])  # by chance one source in a thousand has too few hits to be told
def test_a_planted_half_is_found(noise, ratio, seed):
    base, source, hit, tells = planted(noise, seed)
    found = find_buckets(base, source, hit, tells)
    assert found.found
    assert found.well.bases == found.well.sources == tuple(range(16))
    assert found.badly.bases == found.badly.sources == tuple(range(16, 32))
    assert found.ratio > ratio
    assert 25 < max(found.null_ratios) < 50
    assert len(found.null_ratios) == 99
    assert (found.well.pairs | found.badly.pairs).tolist() == tells.tolist()
    assert not (found.well.pairs & found.badly.pairs).any()
    assert (found.well.n, found.badly.n) == (found.well.pairs.sum(), found.badly.pairs.sum())
    assert found.well.mean == pytest.approx(hit[found.well.pairs].mean())
    assert found.badly.mean == pytest.approx(hit[found.badly.pairs].mean())


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_half_is_nearly_found_where_a_fifth_is_turned(seed):
    found = find_buckets(*planted(0.2, seed))
    assert found.found
    for side in (found.well.bases, found.well.sources):
        assert len(set(side) & set(range(16))) >= 14
        assert len(set(side) - set(range(16))) <= 1


def test_pairs_that_cannot_tell_do_not_count():
    base, source, hit, tells = planted(0.1, 0)
    found = find_buckets(base, source, hit, tells)
    other = find_buckets(base, source, np.where(tells, hit, 1), tells)
    assert (other.ratio, other.well.bases, other.well.n) == (found.ratio, found.well.bases, found.well.n)


def test_nothing_is_found_in_noise():
    base, source, tells = all_pairs(16)
    found = [
        find_buckets(base, source, np.random.default_rng(seed).random(256) < 0.5, tells, shuffles=19, seed=seed).found
        for seed in range(40)
    ]
    assert sum(found) <= 6  # one in twenty by chance: 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_is_found_where_all_is_the_same(share):
    base, source, tells = all_pairs(8)
    found = find_buckets(base, source, np.full(64, share), tells, shuffles=5)
    assert (found.found, found.ratio, found.well.n, found.well.mean) == (False, 0.0, tells.sum(), share)
    assert (found.badly.n, found.badly.mean, found.badly.bases) == (0, None, ())
    assert shared_values(found, base, source, {"x": np.arange(8)}) == []


def test_shuffles_have_a_seed():
    first, again, other = (find_buckets(*planted(0.2, 0), shuffles=4, seed=seed).null_ratios for seed in (0, 0, 1))
    assert first == again != other


def test_what_members_share_is_named():
    base, source, hit, tells = planted(0.1, 1)
    values = {"half": np.array(["first"] * 16 + ["second"] * 16), "mod 4": np.arange(32) % 4, "own": np.arange(32)}
    found = shared_values(find_buckets(base, source, hit, tells), base, source, values)
    assert {(one.bucket, one.side, one.variable, one.value) for one in found} == {
        (bucket, side, "half", value)
        for bucket, value in (("well", "first"), ("badly", "second"))
        for side in ("base", "source")
    }
    assert {(one.inside, one.of_inside, one.outside, one.of_outside) for one in found} == {(16, 16, 0, 16)}


def test_the_chance_is_that_of_fishers_test():
    """20 bases of which 8 work; 7 of these and 2 others are red. 12 values are looked at in all."""
    base, source = np.divmod(np.arange(400), 20)
    red = np.array([True] * 7 + [False] + [True] * 2 + [False] * 10)
    buckets = find_buckets(base, source, base < 8, np.ones(400, dtype=bool))
    found = shared_values(buckets, base, source, {"red": red}, level=1.0)
    chosen = next(one for one in found if (one.bucket, one.side, one.value) == ("well", "base", True))
    assert (chosen.inside, chosen.of_inside, chosen.outside, chosen.of_outside) == (7, 8, 2, 12)
    assert chosen.value is True
    chance = fisher_exact([[7, 1], [2, 10]], alternative="greater").pvalue
    tests = 2 * 2 * 2  # buckets, sides, values
    assert chosen.p == pytest.approx(tests * chance)
    assert found[0].p == chosen.p
    assert [one for one in shared_values(buckets, base, source, {"red": red}, level=0.01) if one.value] == []


def test_chance_finds_are_rare():
    generator = np.random.default_rng(0)
    base, source = np.divmod(np.arange(400), 20)
    buckets = find_buckets(base, source, base < 8, base != source)
    named = [
        bool(shared_values(buckets, base, source, {f"x{i}": generator.integers(3, size=20) for i in range(4)}))
        for _ in range(60)
    ]
    assert sum(named) <= 6


def test_what_cannot_be_split_is_refused():
    base, source, hit, tells = planted(0.0, 0, 8)
    for wrong, message in (
        ((base[:3], source, hit, tells), "3, 64, 64 and 64"),
        ((base, source, hit * 2, tells), "0 or 1"),
        ((base, source, hit, np.zeros(64, dtype=bool)), "0 of 64"),
    ):
        with untyped(), pytest.raises(SpecError, match=message):
            find_buckets(*wrong)
    with pytest.raises(SpecError, match="shuffles"):
        find_buckets(base, source, hit, tells, shuffles=0)
    with pytest.raises(SpecError, match="'x' has 5 values"):
        shared_values(find_buckets(base, source, hit, tells), base, source, {"x": np.arange(5)})

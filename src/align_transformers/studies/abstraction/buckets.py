"""Where an alignment works: the inputs split into well and badly explained ones by results of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, lgamma
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Integer, Shaped

from ..._checked import checked
from ..._errors import SpecError
from .statistics import corrected


@dataclass(frozen=True, eq=False)
class Bucket:
    """Some of the pairs that can tell.

    Args:
        pairs: which of the pairs, `(n,)` booleans.
        bases: entities of the bases that make it up.
        sources: entities of the sources that make it up.
        n: how many pairs.
        mean: share of them with the label of the causal model; `None` if there are none.
    """

    pairs: Bool[np.ndarray, " pairs"]
    bases: tuple[int, ...]
    sources: tuple[int, ...]
    n: int
    mean: float | None


@dataclass(frozen=True)
class Buckets:
    """The inputs split in two.

    Args:
        well: bases x sources between which the interchange works.
        badly: all other pairs that can tell; its bases and sources are those that are not in `well`.
        ratio: log-likelihood of one rate in `well` and one in `badly`, less that of one rate in all.
        null_ratios: the same for the results of pairs shuffled.
        found: whether `ratio` is above all of `null_ratios`: if not, the split says nothing.
    """

    well: Bucket
    badly: Bucket
    ratio: float
    null_ratios: tuple[float, ...]
    found: bool


class Shared(NamedTuple):
    """A value of a variable that a bucket has more often than the other entities of its side.

    Args:
        bucket: `well` or `badly`.
        side: `base` or `source`.
        variable: name of the variable.
        value: its value.
        inside: how many entities of the bucket have it, of `of_inside`.
        of_inside: how many entities there are in the bucket.
        outside: how many of the other entities of that side have it.
        of_outside: how many others there are.
        p: chance of so many among as many entities at random, corrected for all values that were looked at.
    """

    bucket: Literal["well", "badly"]
    side: Literal["base", "source"]
    variable: str
    value: Any
    inside: int
    of_inside: int
    outside: int
    of_outside: int
    p: float


@checked
def find_buckets(
    base_entities: Integer[np.ndarray, " pairs"],
    source_entities: Integer[np.ndarray, " pairs"],
    hit: Shaped[np.ndarray, " pairs"],
    tells: Bool[np.ndarray, " pairs"],
    *,
    shuffles: int = 99,
    seed: int = 0,
) -> Buckets:
    """Return the bases x sources between which interchanges work, and the rest.

    Bases and sources fail for different reasons, so a block is looked for. The base or source with the lowest share of
    hits among those left is peeled off until none is left; of all blocks on the way that is taken whose log-likelihood
    ratio is the highest: l(hits in, pairs in) + l(hits out, pairs out) - l(hits, pairs), where
    l(h, n) = h log(h / n) + (n - h) log(1 - h / n), and the share of hits is higher inside. There is no threshold.

    Args:
        base_entities: which entity the base is, `(n,)` whole numbers.
        source_entities: which entity the source is, `(n,)`.
        hit: whether the answer is the label of the causal model, `(n,)` of 0 and 1.
        tells: whether that label is another than the base's, `(n,)`: other pairs are left out.
        shuffles: how often the results are shuffled among the pairs and split again.
        seed: of the shuffles.

    Raises:
        SpecError: no pair tells, a result is not 0 or 1, or the numbers of pairs differ.

    Bucketing of inputs by pairwise interchanges: arXiv:2605.02234; scan statistic: Kulldorff 1997,
    doi:10.1080/03610929708831995.

    >>> base, source = np.divmod(np.arange(64), 8)
    >>> found = find_buckets(base, source, (base < 4) & (source < 6), base != source)
    >>> found.well.bases, found.well.sources, found.well.mean, found.badly.mean, found.found
    ((0, 1, 2, 3), (0, 1, 2, 3, 4, 5), 1.0, 0.0, True)
    """
    if not base_entities.shape == source_entities.shape == hit.shape == tells.shape or not np.isin(hit, (0, 1)).all():
        raise SpecError(f"buckets need a base, a source, a result of 0 or 1, and whether it tells, of each pair; found "
                        f"{len(base_entities)}, {len(source_entities)}, {len(hit)} and {len(tells)}")  # fmt: skip
    if not tells.any() or shuffles < 1:
        raise SpecError(f"buckets need pairs whose label is not the base's, and shuffles; found {tells.sum()} of "
                        f"{len(tells)} pairs and {shuffles}")  # fmt: skip
    lines = _Cells(base_entities[tells], source_entities[tells])
    results = hit[tells].astype(np.float64)
    ratio, order, peeled = lines.peel(results)
    generator = np.random.default_rng(seed)
    null = tuple(lines.peel(generator.permutation(results))[0] for _ in range(shuffles))
    left = np.ones(lines.count, dtype=bool)
    left[order[:peeled]] = False
    inside = np.zeros(len(tells), dtype=bool)
    inside[tells] = left[lines.base] & left[lines.source]
    outside, chosen = tells & ~inside, (base_entities, source_entities)
    of_well = [np.unique(side[inside]) for side in chosen]
    of_rest = [np.setdiff1d(side[tells], members) for side, members in zip(chosen, of_well, strict=True)]
    well, badly = _bucket(inside, of_well, hit), _bucket(outside, of_rest, hit)
    return Buckets(well, badly, ratio, null, ratio > max(null))


def _bucket(pairs: np.ndarray, sides: list[np.ndarray], hit: np.ndarray) -> Bucket:
    """Return the bucket of these pairs, whose bases and sources are `sides`."""
    (bases, sources), n = (tuple(side.tolist()) for side in sides), int(pairs.sum())
    return Bucket(pairs, bases, sources, n, float(hit[pairs].mean()) if n else None)


class _Cells:
    """Pairs as cells of a matrix whose lines are bases, then sources.

    Args:
        base: entity of the base of each pair.
        source: entity of the source of each pair.
    """

    def __init__(self, base: np.ndarray, source: np.ndarray) -> None:
        bases, self.base = np.unique(base, return_inverse=True)
        sources, column = np.unique(source, return_inverse=True)
        self.source = len(bases) + column
        self.count = len(bases) + len(sources)
        cells, self.cell = np.unique(self.base * self.count + self.source, return_inverse=True)
        ends = np.divmod(cells, self.count)
        line = np.concatenate(ends)
        order = np.argsort(line, kind="stable")
        self.starts = np.searchsorted(line[order], np.arange(self.count + 1)).tolist()
        self.across = np.concatenate(ends[::-1])[order]  # the lines that cross line 0, line 1, ...
        self.cells = order % len(cells)

    def peel(self, results: np.ndarray) -> tuple[float, list[int], int]:
        """Return the best ratio, the lines in the order in which they are peeled off, and after how many it was.

        Sums of the lines are kept up to date: all of it takes time of lines^2 + cells.

        Args:
            results: 0 or 1 of each pair.
        """
        pairs_in, hits_in = np.bincount(self.cell) * 1.0, np.bincount(self.cell, results)
        pairs_in, hits_in = pairs_in[self.cells], hits_in[self.cells]
        line = np.repeat(np.arange(self.count), np.diff(self.starts))
        pairs_of, hits_of = (np.bincount(line, of, self.count) for of in (pairs_in, hits_in))
        steps, order, means = [(float(len(results)), float(results.sum()))], list[int](), hits_of / pairs_of
        while steps[-1][0]:
            worst = int(means.argmin())
            order.append(worst)
            steps.append((steps[-1][0] - float(pairs_of[worst]), steps[-1][1] - float(hits_of[worst])))
            pairs_of[worst], means[worst] = -np.inf, np.inf  # what is peeled off stays so
            its = slice(self.starts[worst], self.starts[worst + 1])
            across = self.across[its]
            pairs_of[across] -= pairs_in[its]
            hits_of[across] -= hits_in[its]
            left, now = pairs_of[across], np.full(len(across), np.inf)  # without pairs nothing is known of a line
            means[across] = np.divide(hits_of[across], left, out=now, where=left > 0)
        n, x = np.array(steps).T
        ratios = _fit(x, n) + _fit(x[0] - x, n[0] - n) - _fit(x[0], n[0])
        ratios[x * n[0] <= x[0] * n] = 0.0  # not better than all are
        best = int(ratios.argmax())
        return float(ratios[best]), order, best


def _fit(hits: Any, n: Any) -> Any:
    """Return the log-likelihood of so many hits at the best rate; 0 log 0 is 0."""
    return sum(x * np.log(np.where(x > 0, x, 1) / np.where(n > 0, n, 1)) * (x > 0) for x in (hits, n - hits))


@checked
def shared_values(
    buckets: Buckets,
    base_entities: Integer[np.ndarray, " pairs"],
    source_entities: Integer[np.ndarray, " pairs"],
    variables: Mapping[str, Any],
    *,
    level: float = 0.05,
) -> list[Shared]:
    """Return what the members of a bucket have in common: values that are more frequent in it than outside.

    Fisher's exact test, one-sided, for each value of each variable, on both sides and in both buckets; of all these
    tests together those are returned whose p-value after Holm's correction is at most `level`. A variable with a
    different value for every entity can never be found.

    Args:
        buckets: of these pairs.
        base_entities: which entity the base is, `(n,)`.
        source_entities: which entity the source is, `(n,)`.
        variables: by name, the value for each entity: an array whose entry e is of entity e.
        level: largest corrected p-value.

    Returns:
        The values, the least likely first; none if no buckets were found.

    Raises:
        SpecError: a variable has no value for some entity.

    >>> base, source = np.divmod(np.arange(400), 20)
    >>> found = find_buckets(base, source, base < 10, base != source)
    >>> values = {"half": np.arange(20) // 10, "parity": np.arange(20) % 2}
    >>> [(one.bucket, one.side, one.variable, one.value) for one in shared_values(found, base, source, values)]
    [('well', 'base', 'half', 0), ('badly', 'base', 'half', 1)]
    """
    entities = {"base": base_entities, "source": source_entities}
    pairs = buckets.well.pairs | buckets.badly.pairs
    for name, values in variables.items():
        if len(values) <= max(int(side.max()) for side in entities.values()):
            raise SpecError(f"{name!r} has {len(values)} values, and there are more entities")
    rows = []
    for bucket in ("well", "badly") if buckets.found else ():
        for side in ("base", "source"):
            everyone = np.unique(entities[side][pairs]).tolist()
            members = set(getattr(getattr(buckets, bucket), f"{side}s"))
            for name, values in variables.items():
                counts: dict[Any, list[int]] = {}
                for entity in everyone:
                    counts.setdefault(_plain(values[entity]), [0, 0])[entity not in members] += 1
                for value, (inside, outside) in counts.items():
                    of = len(members), len(everyone) - len(members)
                    p = _chance(inside, of[0], inside + outside, len(everyone))
                    rows.append(Shared(bucket, side, name, value, inside, of[0], outside, of[1], p))
    adjusted = corrected([row.p for row in rows])
    kept = [row._replace(p=p) for row, p in zip(rows, adjusted, strict=True) if p <= level]
    return sorted(kept, key=lambda row: row.p)


def _plain(value: Any) -> Any:
    """Return a NumPy number as a plain one."""
    return value.item() if isinstance(value, np.generic) else value


def _chance(inside: int, drawn: int, of_value: int, entities: int) -> float:
    """Return the chance that at least `inside` of `drawn` entities have a value that `of_value` of all have."""

    def ways(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    most = min(drawn, of_value)
    lowest = max(inside, drawn + of_value - entities)
    chances = (
        exp(ways(of_value, k) + ways(entities - of_value, drawn - k) - ways(entities, drawn))
        for k in range(lowest, most + 1)
    )
    return min(1.0, sum(chances))

"""How sure a score is: intervals over entities, p-values against controls, corrections over a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, Shaped

from ..._checked import checked
from ..._errors import SpecError
from ...learning.scores import Interval

_DRAWN_AT_ONCE = 2_000_000  # weights of pairs of a chunk of resamples


@checked
def entity_bootstrap(
    values: Shaped[np.ndarray, " pairs"],
    base_entities: Integer[np.ndarray, " pairs"],
    source_entities: Integer[np.ndarray, " pairs *sources"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the mean over pairs with its interval, where pairs share entities: the pigeonhole bootstrap.

    As many entities as there are, are drawn with replacement, once for both sides. Entity e is drawn w_e times, and a
    pair weighs the product of w_e over the different entities in it: w_base * w_source, or w where both are one.
    The ends are quantiles of the weighted means. Where entities make no difference the interval is too wide, by a
    factor of up to sqrt(3) (the pairs are few among all that there could be), never too narrow.

    Two metrics of the same pairs are compared by the bootstrap of their difference, pair by pair.

    Args:
        values: one number or truth value a pair, `(n,)`.
        base_entities: which entity the base is, `(n,)` whole numbers from 0.
        source_entities: which entity the source is, numbered as on the side of the base, `(n,)`; or `(n, k)` where
            there are several sources, -1 where a pair has none.
        resamples: how often the entities are drawn.
        confidence: share of the resamples inside the interval.
        seed: of the draws; equal seeds and entities draw the same.

    Raises:
        SpecError: there are fewer than two entities, the numbers of pairs differ, a value is not finite, or
            `confidence` is not between 0 and 1.

    Owen 2007, "The pigeonhole bootstrap", arXiv:0712.1111.

    >>> hit, base, source = np.array([1, 1, 0, 0]), np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2])
    >>> entity_bootstrap(hit, base, source)
    Interval(mean=0.5, low=0.0, high=1.0, n=4)
    """
    options = {"resamples": resamples, "confidence": confidence, "seed": seed}
    return entity_bootstraps(values[None], base_entities, source_entities, **options)[0]  # type: ignore[arg-type]


@checked
def entity_bootstraps(
    rows: Shaped[np.ndarray, "rows pairs"],
    base_entities: Integer[np.ndarray, " pairs"],
    source_entities: Integer[np.ndarray, " pairs *sources"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Return `entity_bootstrap` of each of many rows, all with the same draws.

    Args:
        rows: values of the same pairs, `(rows, n)`.
        base_entities: which entity the base is, `(n,)`.
        source_entities: which entity each source is, `(n,)` or `(n, k)`.
        resamples: how often the entities are drawn.
        confidence: share of the resamples inside the interval.
        seed: of the draws.

    Raises:
        SpecError: as in `entity_bootstrap`.

    >>> pairs = np.arange(4)
    >>> entity_bootstraps(np.ones((2, 4)), pairs, pairs[::-1])[1]
    Interval(mean=1.0, low=1.0, high=1.0, n=4)
    """
    pairs = rows.shape[1]
    if not 0 < confidence < 1 or resamples < 1:
        raise SpecError(
            f"a bootstrap needs resamples and a confidence between 0 and 1; found {resamples} and {confidence}"
        )
    known = rows.astype(np.float64)
    if not np.isfinite(known).all():
        raise SpecError("values are finite numbers; found NaN or infinity: leave out pairs without a value")
    count, places = _numbered(base_entities, source_entities, pairs)
    generator, means = np.random.default_rng(seed), []
    at_once = max(1, _DRAWN_AT_ONCE // max(pairs, count))
    for start in range(0, resamples, at_once):
        drawn = min(at_once, resamples - start)
        weights = np.ones((drawn, count + 1))  # the last column is for what is no entity
        index = generator.integers(count, size=(drawn, count)) + (count + 1) * np.arange(drawn)[:, None]
        weights[:, :-1] = np.bincount(index.ravel(), minlength=weights.size).reshape(weights.shape)[:, :-1]
        of_pairs = np.prod([weights[:, place] for place in places], axis=0)
        total = of_pairs.sum(1)
        of_rows = np.stack([of_pairs @ row for row in known], axis=1)  # the same numbers whatever rows are beside it
        means.append(of_rows[total > 0] / total[total > 0, None])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return [
        Interval(mean, lowest, highest, pairs)
        for mean, lowest, highest in zip(known.mean(1).tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def _numbered(base: np.ndarray, sources: np.ndarray, pairs: int) -> tuple[int, np.ndarray]:
    """Return how many entities there are, and which are in each pair: `(sides, pairs)`, each once.

    Where there is none, or it stands in the pair before, the number is one past the last entity.

    Raises:
        SpecError: the numbers of pairs differ, an entity is negative, or there are fewer than two.
    """
    if sources.ndim not in (1, 2) or base.shape != (pairs,) or sources.shape[:1] != (pairs,):
        raise SpecError(
            f"each of the {pairs} values is of a pair; found base_entities of shape {tuple(base.shape)} and "
            f"source_entities of shape {tuple(sources.shape)}"
        )
    sides = np.sort(np.column_stack([base, sources]).astype(np.int64), axis=1).T
    if (base < 0).any() or (sources < -1).any():
        raise SpecError("entities are whole numbers from 0, and -1 stands for a source that there is not")
    repeated = np.zeros(sides.shape, dtype=bool)
    repeated[1:] = sides[1:] == sides[:-1]
    absent = repeated | (sides < 0)
    entities, place = np.unique(sides[~absent], return_inverse=True)
    if len(entities) < 2:
        raise SpecError(f"an interval over entities needs at least two of them; found {len(entities)}")
    numbers = np.full(sides.shape, len(entities))
    numbers[~absent] = place
    return len(entities), numbers


def apart(first: Interval, second: Interval) -> bool:
    """Return whether two intervals have no point in common.

    Args:
        first: one.
        second: the other.

    >>> pairs = np.arange(4)
    >>> never, always = entity_bootstraps(np.array([[0] * 4, [1] * 4]), pairs, pairs[::-1])
    >>> apart(never, always)
    True
    """
    return first.high < second.low or second.high < first.low


@checked
def p_value(value: float, controls: Sequence[float]) -> float:
    """Return the chance of a score this high if it were one of the controls: (1 + #{c >= value}) / (1 + #controls).

    With n controls it is at least 1 / (1 + n).

    Args:
        value: the score.
        controls: scores of the same kind where there is nothing to find.

    Raises:
        SpecError: there is no control, or a number is NaN.

    Phipson and Smyth 2010, arXiv:1603.05766.

    >>> p_value(0.9, [0.4, 0.5, 0.9])
    0.5
    """
    known = np.asarray(controls, dtype=np.float64)
    if not len(known) or np.isnan(known).any() or np.isnan(value):
        raise SpecError(f"a p-value needs a score and controls, none of them NaN; found {value} and {list(controls)}")
    return float((1 + (known >= value).sum()) / (1 + len(known)))


@checked
def corrected(p_values: Sequence[float], *, method: Literal["holm", "fdr"] = "holm") -> list[float]:
    """Return p-values corrected for how many there are.

    `holm`: with p in ascending order, max over j <= i of (m - j + 1) p_j: the chance of any false find.
    `fdr`: min over j >= i of m p_j / j: the expected share of false finds among all finds.

    Args:
        p_values: between 0 and 1, in any order.
        method: `holm` or `fdr`.

    Returns:
        Corrected ones in the same order, at most 1.

    Raises:
        SpecError: one is not between 0 and 1.

    Holm 1979, jstor.org/stable/4615733; Benjamini and Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.

    >>> corrected([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    >>> corrected([0.01, 0.5, 0.02], method="fdr")
    [0.03, 0.5, 0.03]
    """
    known: Float[np.ndarray, " p"] = np.asarray(p_values, dtype=np.float64)
    if not ((known >= 0) & (known <= 1)).all():
        raise SpecError(f"p-values are between 0 and 1; found {list(p_values)}")
    count, order = len(known), np.argsort(known, kind="stable")
    ranks, found = np.arange(1, count + 1), np.empty(count)
    if method == "holm":
        found[order] = np.maximum.accumulate((count - ranks + 1) * known[order])
    else:
        found[order] = np.minimum.accumulate((count * known[order] / ranks)[::-1])[::-1]
    return np.minimum(found, 1.0).tolist()

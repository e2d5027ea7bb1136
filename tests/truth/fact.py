"""A fact: a number that is known beforehand and must be found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from align_transformers.learning import Scores


@dataclass(frozen=True)
class Fact:
    """A number that is known beforehand.

    Args:
        name: what it is.
        find: computes it.
        low: the least that it may be.
        high: the most that it may be.
        needs: a package without which it cannot be computed.
    """

    name: str
    find: Callable[[], float]
    low: float
    high: float
    needs: str | None = None


def rows(title: str, scores: Mapping[str, Scores]) -> str:
    """Return a table of IIAs: each with the number of pairs, its 95 % interval, and what an inert swap would score."""
    lines = [f"{title:<66}{'IIA':>7}{'from':>7}{'to':>7}{'n':>6}{'inert':>7}"]
    for name, one in scores.items():
        of, inert = one.interval("iia"), one.trivial or 0.0
        lines.append(f"  {name:<64}{of.mean:>7.3f}{of.low:>7.3f}{of.high:>7.3f}{of.n:>6}{inert:>7.3f}")
    return "\n".join(lines)

"""What a search knows of one hypothesis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from .hypothesis import Candidate, Hypothesis
from .regions import Regions
from .subspace_checks import Check
from .task import CounterfactualPairs

Hits = Float[np.ndarray, " _"]
"""For each pair 1 where the network says what the causal model does, else 0."""


@dataclass(eq=False)
class Finding:
    """What is known of one hypothesis.

    Args:
        hypothesis: which one.
        candidate: with its intervention; `None` where it was skipped.
        width: of all units at the container, side by side.
        status: `fitted`, `dropped` on the way, or `skipped`: base and source are the same there.
        hits: by part, one number a pair.
        soft: of the test, under the soft mask; `None` where there is none.
        full: of the test, the whole vector swapped; `None` where several variables are at one container.
        random: of random subspaces, their IIA on the first test pairs.
        first: of the same pairs its own.
        again: the same fit in networks with new weights: by part the hits in each.
        by_heart: of a fit to permuted labels, its hits on these; `None` where it was not measured.
        permuted: the pairs with these labels.
        audited: whether it was fitted though its container was not nominated.
        steps: that were made.
        checks: what is to be kept in mind.
        regions: where it works; of the chosen ones.
        self_swap: share of the test pairs whose answer a swap with the base itself leaves; of the chosen ones.
    """

    hypothesis: Hypothesis
    candidate: Candidate | None = None
    width: int = 0
    status: str = "fitted"
    hits: dict[str, Hits] = field(default_factory=dict)
    soft: Hits | None = None
    full: Hits | None = None
    random: list[float] = field(default_factory=list)
    first: float | None = None
    again: dict[str, list[Hits]] = field(default_factory=dict)
    by_heart: Hits | None = None
    permuted: CounterfactualPairs | None = None
    audited: bool = False
    steps: int = 0
    checks: tuple[Check, ...] = ()
    regions: Regions | None = None
    self_swap: float | None = None

    @property
    def size(self) -> int:
        """How many dimensions are swapped."""
        one = None if self.candidate is None else self.candidate.intervention
        ranks = [(part.rank or 0) * len(part.variables) for part in self.hypothesis.alone]
        return getattr(one, "dimensions", None) or (sum(ranks) if all(ranks) else self.width)

    def mean(self, part: str) -> float | None:
        """Return the IIA on a part; `None` where it was not measured."""
        return float(self.hits[part].mean()) if part in self.hits else None


def best_of_each(findings: Sequence[Finding], *, methods: bool = True) -> list[Finding]:
    """Return of each set of variables (and method) what is best on the validation pairs; of equals the smaller one.

    Args:
        findings: what was fitted.
        methods: of each method, too.
    """
    groups: dict[Any, list[Finding]] = defaultdict(list)
    for one in findings:
        if "validation" in one.hits:
            hypothesis = one.hypothesis
            groups[hypothesis.variables, hypothesis.method if methods else None].append(one)
    return [max(group, key=lambda one: (one.mean("validation"), -one.size)) for group in groups.values()]

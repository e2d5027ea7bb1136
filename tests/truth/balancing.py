"""Balanced draws have the frequencies that are said of them: chi-square over its degrees of freedom is about 1."""

from __future__ import annotations

from functools import cache

import numpy as np

from align_transformers import CounterfactualDataset

from .addition import add_three_numbers
from .fact import Fact

SIZE = 50_000


def chi_square(counts: np.ndarray) -> float:
    """Return the chi-square of counts that should be equal, over its degrees of freedom."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2).sum() / expected / (len(counts) - 1))


@cache
def drawn(balanced: str | None) -> dict[str, np.ndarray]:
    """Return a and b of many inputs."""
    return add_three_numbers.sample_inputs(SIZE, np.random.default_rng(0), balanced=balanced)


def of_sum(balanced: str | None) -> float:
    """Return the chi-square of the 19 values of a + b."""
    found = drawn(balanced)
    return chi_square(np.bincount(found["a"] + found["b"], minlength=19))


def of_parents() -> float:
    """Return the chi-square of the ten settings of a and b that make 9."""
    found = drawn("var_x")
    return chi_square(np.bincount(found["a"][found["a"] + found["b"] == 9], minlength=10))


def of_labels() -> int:
    """Return by how many pairs a label differs at most from another one in a data set that is balanced by label."""
    data = CounterfactualDataset.sample(add_three_numbers, SIZE, variables="var_x", balanced="label", seed=0)
    counts = np.bincount(data.labels.astype(int), minlength=28)
    return int(counts.max() - counts.min())


FACTS = [
    Fact("balancing: chi-square / df, a + b, balanced", lambda: of_sum("var_x"), 0.2, 2.2),
    Fact("balancing: the same, each input as likely (not balanced)", lambda: of_sum(None), 100, 1e6),
    Fact("balancing: chi-square / df, the settings that make 9", of_parents, 0.1, 2.9),
    Fact("balancing: most minus fewest pairs of a label, by label", of_labels, 0, 1),
]

"""Counterfactuals of a small causal model: arrays of ours, and the loop through dictionaries that one writes by hand.

Both get pairs of inputs of a + b + c, swap x = a + b, and say the sum: ours of a million, the loop of the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from work import Task

PAIRS = 1_000_000
VALUES = {**dict.fromkeys("abc", range(10)), "x": range(19), "sum": range(28)}
PARENTS = {"x": ["a", "b"], "sum": ["x", "c"]}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"x": lambda a, b: a + b, "sum": lambda x, c: x + c}
SHOWN = 1000
"""Labels that are compared."""


def inputs(seed: int) -> dict[str, np.ndarray]:
    """Return the inputs of all pairs."""
    generator = np.random.default_rng(seed)
    return {name: generator.integers(10, size=PAIRS) for name in "abc"}


def ours(task: Task) -> Callable[..., Tensor]:
    """All pairs in one call."""
    import align_transformers as at

    model = at.CausalModel(list(VALUES), VALUES, PARENTS, FUNCTIONS)
    base, source = inputs(0), inputs(1)

    def once() -> Tensor:
        return torch.from_numpy(model.run_many(base, {"x": source})["sum"][:SHOWN])

    return once


def drawn(task: Task) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """A whole data set: as many pairs drawn, labelled, the trivial ones left out, the different ones counted."""
    import align_transformers as at

    model = at.CausalModel(list(VALUES), VALUES, PARENTS, FUNCTIONS)

    def once() -> tuple[Tensor, dict[str, Any]]:
        data = at.CounterfactualDataset.sample(model, PAIRS, variables=["x", {"x", "c"}], seed=0)
        return torch.tensor([]), {"pairs": len(data)}

    return once


def forward(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all variables by name, where some are given."""
    found: dict[str, Any] = {}
    for name in VALUES:
        found[name] = given[name] if name in given else FUNCTIONS[name](*[found[one] for one in PARENTS[name]])
    return found


def loop(task: Task) -> Callable[..., Tensor]:
    """The first `count` pairs, one by one; their dictionaries are there before."""

    def rows(seed: int, count: int) -> list[dict[str, int]]:
        columns = inputs(seed)
        listed = zip(*(columns[name][:count].tolist() for name in "abc"), strict=True)
        return [dict(zip("abc", row, strict=True)) for row in listed]

    known: dict[int, Any] = {}

    def once(count: int) -> Tensor:
        if count not in known:  # in the round that does not count
            known[count] = list(zip(rows(0, count), rows(1, count), strict=True))
        labels = [forward({**base, "x": forward(source)["x"]})["sum"] for base, source in known[count]]
        return torch.tensor(labels[:SHOWN])

    return once

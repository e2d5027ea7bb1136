"""In which regions of the inputs an alignment works and in which it does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .buckets import Buckets, Shared, find_buckets, shared_values
from .hypothesis import Candidate
from .runner import Runner, hits

_PAIRS = 4096


@dataclass(frozen=True, eq=False)
class Regions:
    """The inputs, split into those between which an interchange works and the rest.

    Args:
        buckets: of the pairs; `found` says whether the split is better than that of shuffled results.
        entities: of each number in them what it is, by input variable.
        shared: values that are more frequent in a bucket than outside of it.
    """

    buckets: Buckets
    entities: tuple[Mapping[str, Any], ...]
    shared: tuple[Shared, ...]

    def members(self, bucket: Literal["well", "badly"], side: Literal["base", "source"]) -> list[Mapping[str, Any]]:
        """Return the entities on one side of a bucket.

        Args:
            bucket: what is explained well, or badly.
            side: of the pairs.
        """
        one = getattr(self.buckets, bucket)
        return [self.entities[number] for number in (one.bases if side == "base" else one.sources)]

    def summary(self) -> dict[str, Any]:
        """Return it in numbers and words, as JSON-able data."""
        found: dict[str, Any] = {}
        for name in ("well", "badly"):
            one = getattr(self.buckets, name)
            found[name] = {"n": one.n, "iia": one.mean, "bases": len(one.bases), "sources": len(one.sources)}
        return {
            **found,
            "found": self.buckets.found,
            "ratio": self.buckets.ratio,
            "null_ratio": max(self.buckets.null_ratios, default=None),
            "common": [dict(one._asdict()) for one in self.shared],
        }


def regions_of(runner: Runner, candidate: Candidate, seed: int) -> Regions | None:
    """Measure an interchange on pairs of all parts, and split the inputs by what came of it.

    Args:
        runner: of the task.
        candidate: which interchange.
        seed: of the shuffles.

    Returns:
        The regions; `None` where no pair can tell, since no interchange changes the label.
    """
    task, variables = runner.task, candidate.hypothesis.variables
    numbers: list[Any] = []
    hit, tells = [], []
    for pairs in task.parts.values():
        rows = pairs.of(variables)[:_PAIRS]
        hit.append(hits(runner, [candidate], pairs, _PAIRS)[0])
        tells.append((pairs.labels != pairs.base_labels).cpu().numpy()[rows])
        numbers.append(np.stack([pairs.base[rows], pairs.source_numbers(variables)[rows]]))
    if not np.concatenate(tells).any():
        return None
    keys = [tuple(setting[name] for name in task.entity) for setting in task.settings]
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    entity = np.array([known[key] for key in keys], np.int64)
    base, source = entity[np.concatenate(numbers, axis=1)]
    found = find_buckets(base, source, np.concatenate(hit), np.concatenate(tells), seed=seed)
    values = {}
    for name in task.causal_model.variables:
        each: dict[int, set[Any]] = {}
        for number, value in zip(entity.tolist(), task.values(name), strict=True):
            each.setdefault(number, set()).add(value)
        if all(len(several) == 1 for several in each.values()):
            values[name] = np.array([*(each[number].pop() for number in range(len(known)))], dtype=object)
    entities = tuple(dict(zip(task.entity, key, strict=True)) for key in known)
    return Regions(found, entities, tuple(shared_values(found, base, source, values)))

"""What is to be kept in mind of a hypothesis: checks that are shown with their numbers, and decide nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ...models import find_slot
from .finding import Finding
from .hypothesis import Candidate
from .methods import hard, swap_of
from .null_space import null_space_split
from .runner import Runner, hits
from .subspace_checks import (
    Check,
    against_container,
    against_random_network,
    base_alone,
    by_heart,
    memorised,
    off_manifold,
    self_swap,
    trivial,
)
from .task import CounterfactualPairs, Indices

if TYPE_CHECKING:
    from .search import Search


class Checks:
    """Makes the checks of what a search fitted.

    Args:
        search: what was asked.
        runner: of its task.
    """

    def __init__(self, search: Search, runner: Runner) -> None:
        self._search, self._runner, self._task = search, runner, search.task

    def of(self, one: Finding) -> tuple[Check, ...]:
        """Return all checks that can be made of a hypothesis."""
        return tuple(self._each(one))

    def _each(self, one: Finding) -> Iterator[Check]:
        assert one.candidate is not None
        test, names = self._task.parts["test"], one.hypothesis.variables
        rows = test.of(names)
        score = self._search.interval(names, test, one.hits["test"])
        train = self._search.interval(names, self._task.parts["train"], one.hits["train"])
        yield trivial((test.labels == test.base_labels).cpu().numpy()[rows], score)
        yield base_alone(_guessed(self._task.parts["train"], test, names), score)
        if one.self_swap is not None:
            yield self_swap(one.self_swap)
        if one.hypothesis.method == "swap":
            return
        if one.full is not None:
            entities = test.entities[0][rows], test.source_entities(one.hypothesis.variables)[rows]
            yield against_container(one.hits["test"], one.full, *entities, seed=self._search.seed)
        yield memorised(train, score)
        if one.by_heart is not None and one.permuted is not None:
            yield by_heart(train, self._search.interval(names, one.permuted, one.by_heart))
        if one.again:
            others = [self._search.interval(names, test, found) for found in one.again["test"]]
            yield against_random_network(score, *others, chance=_chance(test, rows))
        if one.hypothesis.parts:
            return  # what is at the second place is another activation after the first edit
        clean, patched = self._states(one)
        if len(clean) >= 4 and clean.var(0).sum() > 0:
            yield off_manifold(clean, patched, seed=self._search.seed)
        yield from self._unread(one.candidate, clean)

    @torch.no_grad()
    def _states(self, one: Finding) -> tuple[Tensor, Tensor]:
        """Return the activations at a container: of inputs as they are, and of test pairs after the edit."""
        assert one.candidate is not None
        states, test = self._task.states(one.hypothesis.container), self._task.parts["test"]
        intervention = hard(one.candidate).intervention
        if not intervention.keep_last_dim:
            states = states.flatten(1)  # it spans all tokens of the place
        rows = test.of(one.hypothesis.variables)
        edited, several = states[test.base[rows]], len(one.hypothesis.variables) > 1
        for part, variable in enumerate(one.hypothesis.variables):
            chosen = ((part,),) * len(rows) if several else None
            edited = intervention(edited, states[test.sources[variable][rows]], chosen)
        return states.flatten(1), edited.flatten(1)

    def _unread(self, candidate: Candidate, clean: Tensor) -> Iterator[Check]:
        """Yield what the layer that reads a container cannot see of its subspace, and what each part does by itself."""
        container, rotation = candidate.hypothesis.container, getattr(candidate.intervention, "rotation", None)
        slot = find_slot(self._task.model, container.site)
        if not isinstance(slot.module, nn.Linear) or slot.side != "input" or container.head is not None:
            return
        weight = slot.module.weight
        if not isinstance(rotation, Tensor) or len(rotation) != weight.shape[1]:
            return
        split = null_space_split(rotation.detach(), weight.detach(), clean)
        test, numbers = self._task.parts["test"], {"kernel_share": float(split.kernel_share.mean())}
        for name, basis in (("connected", split.connected), ("disconnected", split.disconnected)):
            if basis.shape[1]:
                (found,) = hits(self._runner, [swap_of(candidate, basis)], test)
                numbers[f"iia_{name}"] = float(found.mean())
        said = "; ".join(f"{name} {value:.2f}" for name, value in numbers.items())
        yield Check("unread", numbers["kernel_share"] > 0.5, numbers, f"{split.explanation} ({said})")


def _guessed(train: CounterfactualPairs, test: CounterfactualPairs, variables: Sequence[str]) -> np.ndarray:
    """Return for each test pair whether its label is the most frequent one of training pairs with its base's answer."""
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    rows = torch.from_numpy(train.of(variables)).to(train.labels.device)
    for base, label in zip(train.base_labels[rows].tolist(), train.labels[rows].tolist(), strict=True):
        seen[base][label] += 1
    most = {base: counts.most_common(1)[0][0] for base, counts in seen.items()}
    rows = torch.from_numpy(test.of(variables)).to(test.labels.device)
    each = zip(test.base_labels[rows].tolist(), test.labels[rows].tolist(), strict=True)
    return np.array([most.get(base) == label for base, label in each])


def _chance(pairs: CounterfactualPairs, rows: Indices) -> float:
    """Return the share of the most frequent label."""
    return float(pairs.labels.cpu()[torch.from_numpy(rows)].unique(return_counts=True)[1].max()) / len(rows)

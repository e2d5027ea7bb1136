"""A hypothesis: some variables of the causal model are carried at one container, in a subspace of some kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..._errors import SpecError, UnknownNameError, near_misses
from ...interventions import Intervention
from ...plan import Constant, Edit, Run
from .task import Container, CounterfactualPairs, Indices, Task


@dataclass(frozen=True)
class Hypothesis:
    """Some variables are carried at one container.

    Args:
        variables: names; of several each has a part of the subspace of its own, and those that are interchanged in an
            example are so at once.
        container: where.
        method: how the subspace is found.
        rank: dimensions of it for each variable; `None` where the method has none.
        seed: of what is drawn for it.
    """

    variables: tuple[str, ...]
    container: Container
    method: str
    rank: int | None = None
    seed: int = 0

    def __str__(self) -> str:
        rank = "" if self.rank is None else f", rank {self.rank}"
        seed = "" if not self.seed else f", seed {self.seed}"
        return f"{', '.join(self.variables)}: {self.container} ({self.method}{rank}{seed})"

    def cell(self) -> dict[str, Any]:
        """Return the columns that tell which one it is."""
        site = self.container.site
        return {
            "variables": ", ".join(self.variables),
            "component": site.component,
            "layer": site.layer,
            "head": self.container.head,
            "place": self.container.place,
            "method": self.method,
            "rank": self.rank,
            "seed": self.seed,
        }


@dataclass(frozen=True, eq=False)
class Candidate:
    """A hypothesis with the intervention that makes the interchange.

    Args:
        hypothesis: what is claimed.
        intervention: swaps what carries the variables.
    """

    hypothesis: Hypothesis
    intervention: Intervention


@dataclass(frozen=True, eq=False)
class Interchanges:
    """The pairs of one candidate as copies in one run.

    Args:
        run: a copy a pair.
        constants: by name the sources' activations, `(pairs, units, width)`.
        interventions: by the name that edits have for it.
        labels: `(pairs,)` what the causal model says of them.
    """

    run: Run
    constants: Mapping[str, Tensor]
    interventions: Mapping[str, Intervention]
    labels: Tensor


def copies_of(name: str, candidate: Candidate, task: Task, pairs: CounterfactualPairs, chosen: Indices) -> Interchanges:
    """Return the interchanges of some pairs as one run on the task's inputs.

    Args:
        name: of the run.
        candidate: which interchange.
        task: the inputs.
        pairs: of one part.
        chosen: `(n,)` which of them.
    """
    hypothesis = candidate.hypothesis
    container, base = hypothesis.container, pairs.base[chosen].tolist()
    positions, states = task.positions(container, base), task.states(container)
    several = len(hypothesis.variables) > 1
    edits, constants = [], {}
    for part, variable in enumerate(hypothesis.variables):
        edit = f"{name} {variable}"
        constants[edit] = states[pairs.sources[variable][chosen]]
        subspace: Any = ((part,),) * len(base) if several else None
        edits.append(Edit(edit, container.site, name, positions, subspace, Constant(edit)))
    run = Run(name, "inputs", tuple(edits), tuple(base))
    return Interchanges(run, constants, {name: candidate.intervention}, pairs.labels[chosen])


def variable_sets(asked: Any, data: Sequence[frozenset[str]], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of variables that hypotheses are about.

    Args:
        asked: names, each alone, or tuples of names; `None`: each alone, and all at once where the data interchanges
            several at once.
        data: which variables are interchanged in each pair.
        names: of the variables that are interchanged in some pair.

    Raises:
        UnknownNameError: a variable is interchanged in no pair.
        SpecError: none is named.
    """
    if asked is not None:
        found = tuple(dict.fromkeys((one,) if isinstance(one, str) else tuple(dict.fromkeys(one)) for one in asked))
        for name in (name for one in found for name in one):
            if name not in names:
                raise UnknownNameError(f"variables: the data interchanges no {name!r}; {near_misses(name, names)}")
        if not found or not all(found):
            raise SpecError(f"variables are names, or tuples of names; found {asked!r}")
        return found
    alone = [(name,) for name in names if frozenset((name,)) in set(data)]
    joint = [tuple(names)] if any(len(found) > 1 for found in data) else []
    return tuple(alone + joint)

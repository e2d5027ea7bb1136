"""A hypothesis: some variables of the causal model are carried at one container, in a subspace of some kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..._errors import SpecError, UnknownNameError, near_misses
from ...interventions import Intervention
from ...plan import Constant, Edit, Run
from .several import SeveralInterventions
from .task import Container, CounterfactualPairs, Indices, Task


@dataclass(frozen=True)
class Hypothesis:
    """Some variables are carried at one container, or each at one of its own.

    Args:
        variables: names; of several each has a part of the subspace of its own, and those that are interchanged in an
            example are so at once.
        container: where; of several the one that a pass comes to first.
        method: how the subspace is found.
        rank: dimensions of it for each variable; `None` where the method has none.
        seed: of what is drawn for it.
        parts: the hypothesis at each container, where there are several.
    """

    variables: tuple[str, ...]
    container: Container
    method: str
    rank: int | None = None
    seed: int = 0
    parts: tuple[Hypothesis, ...] = ()

    @classmethod
    def at_several(cls, parts: Sequence[Hypothesis]) -> Hypothesis:
        """Return the hypothesis that all of some hold at once."""
        if len(parts) == 1:
            return parts[0]
        first = min(parts, key=lambda one: -1 if one.container.site.layer is None else one.container.site.layer)
        methods, ranks = (list(dict.fromkeys(getattr(one, name) for one in parts)) for name in ("method", "rank"))
        variables = tuple(name for one in parts for name in one.variables)
        rank = ranks[0] if len(ranks) == 1 else None
        return cls(variables, first.container, " + ".join(methods), rank, first.seed, tuple(parts))

    def __str__(self) -> str:
        if self.parts:
            return "; ".join(map(str, self.parts))
        rank = "" if self.rank is None else f", rank {self.rank}"
        seed = "" if not self.seed else f", seed {self.seed}"
        return f"{', '.join(self.variables)}: {self.container} ({self.method}{rank}{seed})"

    @property
    def alone(self) -> tuple[Hypothesis, ...]:
        """The hypothesis at each container."""
        return self.parts or (self,)

    @property
    def containers(self) -> tuple[Container, ...]:
        """All containers."""
        return tuple(one.container for one in self.alone)

    def whole(self) -> Hypothesis:
        """Return the hypothesis that it is the whole vectors."""
        parts = tuple(one.whole() for one in self.parts)
        return replace(self, method="swap", rank=None, seed=0, parts=parts)

    def cell(self) -> dict[str, Any]:
        """Return the columns that tell which one it is."""
        site = self.container.site
        where = {"component": site.component, "layer": site.layer, "head": self.container.head}
        where["place"] = self.container.place
        if self.parts:
            told = "; ".join(f"{', '.join(one.variables)} in {one.container}" for one in self.parts)
            where = {"component": told, **dict.fromkeys(("layer", "head", "place"))}
        named = {"method": self.method, "rank": self.rank, "seed": self.seed}
        return {"variables": ", ".join(self.variables), **where, **named}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A hypothesis with the intervention that makes the interchange.

    Args:
        hypothesis: what is claimed.
        intervention: swaps what carries the variables.
    """

    hypothesis: Hypothesis
    intervention: Intervention

    @classmethod
    def at_several(cls, hypothesis: Hypothesis, parts: Sequence[Candidate]) -> Candidate:
        """Return what makes the interchanges of all parts of a hypothesis at once."""
        if not hypothesis.parts:
            return replace(parts[0], hypothesis=hypothesis)
        return cls(hypothesis, SeveralInterventions([one.intervention for one in parts]))

    @property
    def parts(self) -> tuple[Candidate, ...]:
        """What makes the interchange at each container."""
        if not isinstance(self.intervention, SeveralInterventions):
            return (self,)
        each = zip(self.hypothesis.parts, self.intervention, strict=True)
        return tuple(Candidate(one, intervention) for one, intervention in each)


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
    base, sets = pairs.base[chosen].tolist(), [pairs.sets[number] for number in chosen]
    edits, constants, interventions = list[Edit](), dict[str, Tensor](), dict[str, Intervention]()
    for number, one in enumerate(candidate.parts):
        key, container, variables = f"{name}.{number}", one.hypothesis.container, one.hypothesis.variables
        interventions[key] = one.intervention
        positions, states = task.positions(container, base), task.states(container)
        for part, variable in enumerate(variables):
            own = (part,) if len(variables) > 1 else None
            subspace: Any = None if own is None else (own,) * len(base)
            if candidate.hypothesis.parts:  # what an edit before has changed here stays, unless it is interchanged
                subspace = tuple(own if variable in one_set else () for one_set in sets)
                subspace = None if set(subspace) == {None} else subspace
            edit = f"{key} {variable}"
            constants[edit] = states[pairs.sources[variable][chosen]]
            edits.append(Edit(edit, container.site, key, positions, subspace, Constant(edit)))
    run = Run(name, "inputs", tuple(edits), tuple(base))
    return Interchanges(run, constants, interventions, pairs.labels[chosen])


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

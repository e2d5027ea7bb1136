"""What a search works on: the distinct inputs of a data set as the model gets them, and pairs as numbers of these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ..._errors import SpecError
from ...causal import CausalModel
from ...causal.domain import Column
from ...causal.rendering import RenderedText
from ...engine import Inputs, batch_size, bind
from ...models.sequence import examples_of
from ...plan import Logits, Plan, Read, Run
from ...planners import execute
from ...positions import Positions
from ...sites import Site
from .._places import tokens_of_each
from .._prompts import Prompts

LabelWriter = Callable[[Any], Tensor]
"""From `n` values of the output to numbers of tokens or classes, `(n,)`."""

Indices = Int64[np.ndarray, " _"]
"""Indices of inputs or pairs, from 0."""
PlaceName = str | None
"""The name of tokens that are swapped together; `None` is the whole input."""

_READ_AT_ONCE = 64


@dataclass(frozen=True)
class Container:
    """One vector (or one of each token of a place) of a network, in every input.

    Args:
        site: where in the network.
        head: its number; `None` is the whole vector.
        place: at which tokens.
    """

    site: Site
    head: int | None = None
    place: PlaceName = None

    def __str__(self) -> str:
        at = "" if self.place is None else f" at {self.place}"
        return f"{self.site}{'' if self.head is None else f' head {self.head}'}{at}"


@dataclass(frozen=True, eq=False)
class CounterfactualPairs:
    """Bases with their sources, as numbers of distinct inputs.

    Args:
        base: `(n,)`.
        sources: by variable `(n,)`; the base itself where the variable is not interchanged.
        sets: which variables are interchanged.
        labels: `(n,)` tokens or classes that the causal model says under the interchange.
        base_labels: `(n,)` without it.
        entities: `(n,)` of the base, and by variable of its source.
    """

    base: Indices
    sources: Mapping[str, Indices]
    sets: tuple[frozenset[str], ...]
    labels: Tensor
    base_labels: Tensor
    entities: tuple[Indices, Mapping[str, Indices]]

    def __len__(self) -> int:
        return len(self.base)

    def take(self, which: Indices) -> CounterfactualPairs:
        """Return some of the pairs."""
        some = torch.from_numpy(which).to(self.labels.device)
        entities = self.entities[0][which], {name: of[which] for name, of in self.entities[1].items()}
        sources = {name: of[which] for name, of in self.sources.items()}
        sets = tuple(self.sets[number] for number in which)
        return CounterfactualPairs(self.base[which], sources, sets, self.labels[some], self.base_labels[some], entities)

    def of(self, variables: Sequence[str]) -> Indices:
        """Return the numbers of the pairs in which some of these variables are interchanged, and no others."""
        wanted = frozenset(variables)
        return np.array([number for number, found in enumerate(self.sets) if found and found <= wanted], np.int64)

    def source_numbers(self, variables: Sequence[str]) -> Indices:
        """Return the number of each pair's source: that of the first of some variables which is interchanged."""
        first = [next((name for name in variables if name in found), variables[0]) for found in self.sets]
        return np.array([self.sources[name][number] for number, name in enumerate(first)], np.int64)

    def source_entities(self, variables: Sequence[str]) -> Int64[np.ndarray, "pairs k"]:
        """Return the entity of each pair's source of each of some variables, `(n, k)`; -1 if it is not interchanged."""
        columns = [np.where([name in own for own in self.sets], self.entities[1][name], -1) for name in variables]
        return np.stack(columns, axis=1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Task:
    """A data set as a model gets it.

    Args:
        model: the user's.
        causal_model: what it is supposed to compute.
        inputs: the distinct inputs, an example each.
        settings: of the causal model's inputs, one an example.
        prompts: the inputs in words; `None` where they are none.
        texts: the inputs' texts, with where in each its fields stand; empty where there is no template.
        places: spots by name, as the caller wrote them; `None` is the whole input.
        parts: pairs by the name of the part (`train`, `validation`, `test`).
        writer: from a label to the token or class that it is.
        output: the variable that the labels are of.
        entity: inputs whose joint value is an entity.
    """

    model: nn.Module
    causal_model: CausalModel
    inputs: Inputs
    settings: tuple[Mapping[str, Any], ...]
    prompts: Prompts | None
    texts: tuple[RenderedText, ...]
    places: Mapping[PlaceName, Any]
    parts: Mapping[str, CounterfactualPairs]
    writer: LabelWriter
    output: str
    entity: tuple[str, ...]
    _rows: dict[tuple[str, PlaceName], tuple[tuple[int, ...], ...] | None] = field(default_factory=dict)
    _states: dict[Container, Tensor] = field(default_factory=dict)
    _values: dict[str, Column] = field(default_factory=dict)

    def rows(self, container: Container) -> tuple[tuple[int, ...], ...] | None:
        """Return the columns of a container in every input; `None` for all of them."""
        key = container.site.sequence, container.place
        if key not in self._rows:
            self._rows[key] = None if container.place is None else self._found(*key)
        return self._rows[key]

    def _found(self, stack: str, place: PlaceName) -> tuple[tuple[int, ...], ...]:
        spots = self.places[place]
        if self.prompts is None:
            return (tuple(spots),) * len(self.settings)
        if self.texts and spots != "all":
            listed = list(spots) if isinstance(spots, list | tuple) else [spots]
            spots = [[text.meant(spot) for spot in listed] for text in self.texts]
        tokens = tokens_of_each(self.prompts, stack, {str(place): spots})
        counts = sorted({len(own) for own in tokens})
        if len(counts) > 1 or not counts[0]:
            raise SpecError(
                f"positions: the place {place!r} has {counts[0]} tokens in some inputs and {counts[-1]} in others, and "
                "each is swapped for its like: write first_token(...) or last_token(...)"
            )
        starts = self.prompts.tokens(stack).starts
        return tuple(tuple(start + token for token in own) for start, own in zip(starts, tokens, strict=True))

    def positions(self, container: Container, examples: Sequence[int]) -> Positions:
        """Return the places of a container in some examples."""
        rows = self.rows(container)
        heads = None if container.head is None else ((container.head,),) * len(examples)
        return Positions(None if rows is None else tuple(rows[number] for number in examples), heads)

    def width(self, container: Container) -> tuple[int, int]:
        """Return how many units a container has, and of which width."""
        shape = self.states(container).shape
        return (int(shape[1]) if len(shape) > 2 else 1), int(shape[-1])

    def states(self, container: Container) -> Tensor:
        """Return the activations in a container, `(inputs, units, width)`; of vectors `(inputs, width)`."""
        if container not in self._states:
            self.read([container])
        return self._states[container]

    @torch.no_grad()
    def read(self, containers: Sequence[Container]) -> None:
        """Read the activations of some containers, all in one pass over the inputs."""
        missing = [container for container in dict.fromkeys(containers) if container not in self._states]
        count = batch_size(self.inputs)
        found: dict[Container, list[Tensor]] = {container: [] for container in missing}
        for start in range(0, count, _READ_AT_ONCE) if missing else ():
            picked = range(start, min(count, start + _READ_AT_ONCE))
            reads = {
                container: Read("clean", container.site, self.positions(container, picked)) for container in missing
            }
            plan = Plan((Run("clean", "inputs"),), (), None, tuple(dict.fromkeys(reads.values())))
            values = execute(bind(self.model, plan, {"inputs": examples_of(self.inputs, tuple(picked))}, {})).values
            for container, read in reads.items():
                found[container].append(values[read])
        self._states.update({container: torch.cat(several) for container, several in found.items()})

    @torch.no_grad()
    def plain(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is made of the logits of every input as it is.

        Args:
            reduce: from logits `(n, vocabulary)` to `(n, ...)`.
        """
        found = []
        for start in range(0, batch_size(self.inputs), _READ_AT_ONCE):
            picked = tuple(range(start, min(batch_size(self.inputs), start + _READ_AT_ONCE)))
            plan = Plan((Run("clean", "inputs"),), ("clean",), Logits())
            bound = bind(self.model, plan, {"inputs": examples_of(self.inputs, picked)}, {})
            logits = execute(bound).outputs["clean"]
            self.check_labels(logits.shape[-1])
            found.append(reduce(logits))
        return torch.cat(found)

    def answers(self) -> Tensor:
        """Return the token or class that the model itself gives each input, `(inputs,)`."""
        return self.plain(lambda logits: logits.argmax(-1))

    def columns(self) -> dict[str, list[Any]]:
        """Return the values of the causal model's inputs in every input, by name."""
        return {name: [setting[name] for setting in self.settings] for name in self.causal_model.inputs}

    def values(self, variable: str) -> tuple[Any, ...]:
        """Return the value of a variable of the causal model in every input."""
        if not self._values:
            self._values.update(self.causal_model.run_many(self.columns()))
        return tuple(self._values[variable].tolist())

    def check_labels(self, outputs: int | None) -> None:
        """Refuse labels that the model has no logit for.

        Args:
            outputs: how many logits it has; `None` where that is not known.

        Raises:
            SpecError: it has none for a label.
        """
        numbers = [pairs.labels for pairs in self.parts.values()] + [self.writer(self.values(self.output))]
        largest = int(torch.cat(numbers).max())
        if outputs is not None and largest >= outputs:
            raise SpecError(
                f"label: a value of {self.output!r} is the class {largest}, and the model has {outputs} outputs, from "
                "0: give label=, a function from a value to a number of these"
            )

    def solved(self) -> Bool[np.ndarray, " inputs"]:
        """Return for every input whether the model says what the causal model says."""
        found: Bool[np.ndarray, " inputs"] = (self.answers() == self.writer(self.values(self.output))).cpu().numpy()
        return found

    def relabelled(self, part: str, sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> CounterfactualPairs:
        """Return the pairs of a part with the labels that other sources would give them.

        Args:
            part: its name.
            sources: by variable the setting of each pair's other source.
        """
        pairs, columns = self.parts[part], self.columns()
        base = {name: [values[number] for number in pairs.base] for name, values in columns.items()}
        others = {
            variable: {name: [setting[name] for setting in settings] for name in columns}
            for variable, settings in sources.items()
        }
        masks = {variable: [variable in found for found in pairs.sets] for variable in sources}
        said = self.causal_model.run_many(base, others, masks)[self.output]
        return replace(pairs, labels=self.writer(said))

    def labels_under(self, base: Sequence[int], source: Sequence[int], variables: Collection[str]) -> Tensor:
        """Return what the causal model says of bases in which some variables have the values that they have in sources.

        Args:
            base: `(n,)` numbers of inputs.
            source: `(n,)` likewise.
            variables: names.
        """
        columns = self.columns()
        bases, sources = ({name: [of[n] for n in side] for name, of in columns.items()} for side in (base, source))
        said = self.causal_model.run_many(bases, dict.fromkeys(variables, sources))[self.output]
        return self.writer(said)

    def with_model(self, model: nn.Module) -> Task:
        """Return the same task for another model of the same kind."""
        return replace(self, model=model, _rows={}, _states={})

    def differs(self, container: Container, pairs: CounterfactualPairs, variable: str) -> bool:
        """Whether the activation at a container is another one in the source than in the base, in any of some pairs."""
        states = self.states(container)
        base, source = pairs.base, pairs.sources[variable]
        for start in range(0, len(base), 1024):
            some = slice(start, start + 1024)
            if not torch.equal(states[base[some]], states[source[some]]):
                return True
        return False

"""What a counterfactual data set holds: columns, an example a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from .._checked import checked, checked_class
from .._errors import SpecError, UnknownNameError, near_misses
from .causal_model import CausalModel
from .distinct import DistinctInputs, distinct_inputs, stable_numbers
from .domain import Column, as_column

Self = TypeVar("Self", bound="CounterfactualExamples")
InputColumns = Mapping[str, Column]
"""Many examples: by variable `(n,)`."""


@checked_class
@dataclass(frozen=True, eq=False, repr=False)
class CounterfactualExamples:
    """The examples of a `CounterfactualDataset`, which explains the fields.

    Raises:
        SpecError: columns are missing, or of another length than others.
    """

    causal_model: CausalModel
    base: InputColumns
    sources: Mapping[str, InputColumns]
    where: Mapping[str, Column]
    output: str
    labels: Column
    base_labels: Column
    entity: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.causal_model._evaluation.known
        inputs, size = self.causal_model.inputs, len(self.labels)
        if set(self.where) != set(self.sources):
            raise SpecError(
                f"where tells of {list(self.where)}, and sources of {list(self.sources)}: the same is needed"
            )
        for name in (*self.sources, self.output):
            known(name)
        sides: dict[str, InputColumns] = {
            "base": self.base,
            **{f"sources[{name!r}]": of for name, of in self.sources.items()},
        }
        for side, of in sides.items():
            if set(of) != set(inputs):
                raise SpecError(f"{side} has {sorted(of)}, where the inputs of the model are {sorted(inputs)}")
        columns = {f"{side}[{name!r}]": of[name] for side, of in sides.items() for name in inputs}
        columns |= {f"where[{name!r}]": of for name, of in self.where.items()}
        for column, values in {**columns, "base_labels": self.base_labels}.items():
            if len(values) != size:
                raise SpecError(f"{column} has {len(values)} examples, where labels has {size}")
        _check_entity(self.entity, inputs)
        held: dict[str, Any] = {
            "base": _held(self.base, inputs),
            "sources": MappingProxyType({name: _held(of, inputs) for name, of in self.sources.items()}),
            "where": _held({name: np.asarray(of, bool) for name, of in self.where.items()}, tuple(self.sources)),
            "labels": _fixed(self.labels),
            "base_labels": _fixed(self.base_labels),
            "facts": MappingProxyType(dict(self.facts)),
        }
        for name, value in held.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for one in self.sets():
            said = f"{next(iter(one))} alone" if len(one) == 1 else " and ".join(n for n in self.variables if n in one)
            counts[said] = counts.get(said, 0) + 1
        parts = ", ".join(f"{said or 'none'} {count}" for said, count in sorted(counts.items()))
        return f"{type(self).__name__}({len(self)} pairs; {parts or 'none'}; labels: {self.output})"

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one pair: base, the sources of its interchanged variables, label and base_label, as plain values."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"there are {len(self)} pairs, and no number {number}")
        row = number % len(self)
        return {
            "base": _row(self.base, row),
            "sources": {name: _row(of, row) for name, of in self.sources.items() if self.where[name][row]},
            "label": _value(self.labels, row),
            "base_label": _value(self.base_labels, row),
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that have sources; each is interchanged in some examples."""
        return tuple(self.sources)

    def sets(self) -> list[frozenset[str]]:
        """Return for each example which variables are interchanged in it."""
        if not self.where:
            return [frozenset()] * len(self)
        masks = np.stack(list(self.where.values()), axis=1)
        kinds, places = np.unique(masks, axis=0, return_inverse=True)
        named = [frozenset(np.array(self.variables)[kind].tolist()) for kind in kinds]
        return [named[place] for place in places.reshape(-1)]

    @checked
    def take(self: Self, which: Any) -> Self:
        """Return some of the examples.

        Args:
            which: numbers in the wanted order, or `(n,)` booleans.

        Raises:
            SpecError: there are no such examples.
        """
        rows = np.asarray(which)
        if rows.size == 0 and rows.dtype != bool:
            rows = rows.astype(np.int64)
        right = rows.shape == (len(self),) if rows.dtype == bool else rows.dtype.kind in "iu"
        if rows.ndim != 1 or not right or (rows.dtype != bool and (np.abs(rows + 0.5) > len(self)).any()):
            raise SpecError(f"take: numbers below {len(self)}, or {len(self)} booleans; found {which!r:.80}")

        def of(columns: InputColumns) -> InputColumns:
            return {name: column[rows] for name, column in columns.items()}

        return replace(
            self,
            base=of(self.base),
            sources={name: of(source) for name, source in self.sources.items()},
            where=of(self.where),
            labels=self.labels[rows],
            base_labels=self.base_labels[rows],
        )

    @checked
    def distinct_inputs(self) -> DistinctInputs:
        """Return each input once, with the numbers of those that are each example's base and sources."""
        return distinct_inputs(self.base, self.sources)

    @checked
    def entities(self, side: str = "base", *, by: str | Sequence[str] | None = None) -> Column:
        """Return the entity of each base, or of each source of a variable, as a whole number.

        An entity has the same number in every side and in every data set.

        Args:
            side: `"base"` or a variable.
            by: input variables whose joint value is the entity; default: those of `entity`.

        Raises:
            UnknownNameError: there is no such side or input.
        """
        if side != "base" and side not in self.sources:
            raise UnknownNameError(f"there is no side {side!r}; {near_misses(side, ['base', *self.sources])}")
        names = self.entity if by is None else names_of(by)
        _check_entity(names, self.causal_model.inputs)
        columns = self.base if side == "base" else self.sources[side]
        return stable_numbers({name: columns[name] for name in names})

    def told(self: Self, **facts: Any) -> Self:
        """Return the same examples with more facts.

        Args:
            **facts: JSON-able.
        """
        return replace(self, facts={**self.facts, **facts})


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def _check_entity(names: Sequence[str], inputs: Sequence[str]) -> None:
    for name in names:
        if name not in inputs:
            raise UnknownNameError(f"an entity is told by inputs; {name!r} is none, {near_misses(name, inputs)}")
    if not names:
        raise SpecError("an entity is the joint value of at least one input; found none")


def _held(columns: InputColumns, names: Sequence[str]) -> InputColumns:
    return MappingProxyType({name: _fixed(columns[name]) for name in names})


def _fixed(column: Any) -> Column:
    """Return a column that cannot be written to; what was handed in stays as it is."""
    found = (column if isinstance(column, np.ndarray) else as_column(column)).view()
    found.flags.writeable = False
    return found


def _row(columns: InputColumns, number: int) -> dict[str, Any]:
    return {name: _value(column, number) for name, column in columns.items()}


def _value(column: Column, number: int) -> Any:
    return column[number : number + 1].tolist()[0]

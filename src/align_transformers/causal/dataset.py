"""Counterfactual pairs: inputs, where some variables take the values that they have in other inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from .._checked import checked, checked_class
from .._errors import SpecError, UnknownNameError, near_misses
from .causal_model import CausalModel
from .distinct import DistinctInputs, distinct_inputs, stable_numbers
from .domain import Column, as_column
from .drawing import DrawnPairs, drawn_pairs, output_of, sets_of
from .sampling import generator_of
from .splitting import shares_of, split

InputColumns = Mapping[str, Column]
"""Many examples: by variable `(n,)`."""


@checked_class
@dataclass(frozen=True, eq=False, repr=False)
class CounterfactualDataset:
    """Pairs of a base and sources, and what the causal model says after an interchange.

    The label of an example is `output` in the base, where each interchanged variable has the value that it has in its
    own source: A(b | V := V(s)). Made with `sample`, `of` or `pairs`; never changed.

    Args:
        causal_model: what the labels are of.
        base: by input variable `(n,)`.
        sources: by variable the inputs by name, `(n,)`, that its value comes from; where it is not interchanged, the
            base's.
        where: by variable `(n,)` booleans: in which examples it is interchanged.
        output: the variable that the labels are of.
        labels: `(n,)` its values after the interchange.
        base_labels: `(n,)` its values without.
        entity: input variables whose joint value is the entity of an input; splits never part one.
        facts: how it was made, what was left out and kept; JSON-able.

    Raises:
        SpecError: columns are missing, or of another length than others.

    Geiger et al. 2021, arXiv:2106.02997.

    Example:
        >>> digits = range(10)
        >>> adder = CausalModel(
        ...     ["a", "b", "x"], {"a": digits, "b": digits}, {"x": ["a", "b"]}, {"x": lambda a, b: a + b}
        ... )
        >>> data = CounterfactualDataset.sample(adder, 1000, variables=["a", "b"], seed=0)
        >>> data
        CounterfactualDataset(1000 pairs; a alone 500, b alone 500; labels: x)
        >>> bool((data.labels != data.base_labels).all())
        True
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
        if list(self.where) != list(self.sources):
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
            "where": _held({name: np.asarray(of, bool) for name, of in self.where.items()}, tuple(self.where)),
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
        return f"CounterfactualDataset({len(self)} pairs; {parts or 'none'}; labels: {self.output})"

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
        """The variables that are interchanged in some example."""
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
    def take(self, which: Any) -> CounterfactualDataset:
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
        names = self.entity if by is None else _names(by)
        _check_entity(names, self.causal_model.inputs)
        columns = self.base if side == "base" else self.sources[side]
        return stable_numbers({name: columns[name] for name in names})

    @checked
    def split(
        self,
        shares: Sequence[float] | Mapping[str, float] = (0.6, 0.2, 0.2),
        *,
        by: str | Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, CounterfactualDataset]:
        """Return parts that share no entity: those of one part are seen in no other, as base or as source.

        Entities are shared out at random. A pair whose inputs are not all of one part's is left out; `facts["split"]`
        counts them.

        Args:
            shares: of the entities, for `"train"`, `"validation"` and `"test"`; or by name, for other parts.
            by: input variables whose joint value is the entity; default: those of `entity`.
            seed: of the draw.

        Raises:
            SpecError: shares are not 1 together, or a part has no pair.
            UnknownNameError: there is no such input.

        >>> adder = CausalModel(["a", "b", "x"], dict.fromkeys("ab", range(10)), {"x": ["a", "b"]},
        ...                     {"x": lambda a, b: a + b})
        >>> data = CounterfactualDataset.sample(adder, 1000, variables="a", seed=0)
        >>> parts = data.split(by="a")
        >>> {name: sorted(set(part.base["a"].tolist())) for name, part in parts.items()}
        {'train': [0, 1, 3, 4, 7, 8], 'validation': [2, 9], 'test': [5, 6]}
        """
        names = self.entity if by is None else _names(by)
        return split(self, shares_of(shares), names, seed)

    @checked
    def filter(self, keep: Any, *, why: str) -> CounterfactualDataset:
        """Return the pairs that are kept, and say in `facts["kept"]` which share that is.

        Args:
            keep: `(n,)` booleans; or a function that says of an input (by name) whether it is wanted, as base and as
                source. It is asked once for each distinct input.
            why: what is kept, in words: `"the network solves base and source"`.

        Raises:
            SpecError: there are not as many booleans as pairs.
        """
        mask = keep
        if callable(keep):
            inputs = self.distinct_inputs()
            wanted = np.array([bool(keep(setting)) for setting in inputs.settings()], bool)
            mask = np.all([wanted[side] for side in (inputs.base, *inputs.sources.values())], axis=0)
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise SpecError(f"keep is {len(self)} booleans, or a function of an input; found {keep!r:.80}")
        said = {
            "why": why,
            "pairs": int(mask.sum()),
            "of": len(self),
            "share": float(mask.mean()) if len(mask) else 0.0,
        }
        return self.take(mask).told(kept=[*self.facts.get("kept", ()), said])

    def told(self, **facts: Any) -> CounterfactualDataset:
        """Return the same examples with more facts.

        Args:
            **facts: JSON-able.
        """
        return replace(self, facts={**self.facts, **facts})

    @classmethod
    @checked
    def sample(
        cls,
        causal_model: CausalModel,
        size: int,
        *,
        variables: str | Collection[Any],
        output: str | None = None,
        seed: int,
        balanced: str | None = None,
        where: Callable[[dict[str, Any]], bool] | None = None,
        trivial: bool = False,
        entity: str | Sequence[str] | None = None,
    ) -> CounterfactualDataset:
        """Return pairs that are drawn independently of each other; one may come up again.

        Args:
            causal_model: says the labels.
            size: n, how many.
            variables: what is interchanged: a name; names, each alone in as many examples as another; or among them
                sets of names, which are interchanged together, each with a source of its own.
            output: the variable that labels are of; default: the model's only output.
            seed: of the draws.
            balanced: `"label"`: for each of `variables`, every label that can come up is in as many examples as
                another (to within one). Or a variable: in bases and in sources each of its values is as likely as
                another, and then each setting of its parents that gives it (as `sample_inputs`); of what is drawn,
                before trivial pairs are left out. Default: each input is as likely as another.
            where: says of all variables of an input whether it is wanted, as base or as source.
            trivial: whether pairs whose label is the base's are kept; they are counted in `facts` if not.
            entity: input variables whose joint value is the entity of an input; default: all inputs.

        Raises:
            SpecError: inputs cannot be drawn, or fewer than one pair in 10,000 changes the label, or has one of them.
            UnknownNameError: there is no such variable.

        >>> both = CausalModel(["a", "b", "and"], dict.fromkeys(["a", "b", "and"], [False, True]),
        ...                    {"and": ["a", "b"]}, {"and": lambda a, b: a and b})
        >>> data = CounterfactualDataset.sample(both, 100, variables=["a", {"a", "b"}], balanced="label", seed=0)
        >>> int(data.labels.sum()), data.facts["trivial"] > 0.5
        (50, True)
        """
        found = drawn_pairs(
            causal_model, size, sets_of(causal_model, variables), output_of(causal_model, output),
            generator_of(seed), balanced=balanced, where=where, trivial=trivial,
        )  # fmt: skip
        return _made(cls, causal_model, found, entity, {"made": "sample", **found.facts, "seed": seed})


def _made(
    cls: type[CounterfactualDataset],
    causal_model: CausalModel,
    drawn: DrawnPairs,
    entity: str | Sequence[str] | None,
    facts: Mapping[str, Any],
) -> CounterfactualDataset:
    names = causal_model.inputs if entity is None else _names(entity)
    return cls(
        causal_model,
        drawn.base,
        drawn.sources,
        drawn.where,
        drawn.output,
        drawn.labels,
        drawn.base_labels,
        names,
        facts,
    )


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
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

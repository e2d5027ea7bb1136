"""Counterfactual pairs at random, and their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import SpecError
from .distinct import count_distinct, distinct_inputs, distinct_rows, joined
from .domain import Column
from .sampling import TRIES

if TYPE_CHECKING:
    from .samples import CausalSamples

LABEL = "label"
"""What `balanced` says for the label after the interchange."""
InputSampler = Callable[[np.random.Generator, int], Mapping[str, Any]]
"""Draws so many inputs: by name `(n,)`."""
_MOST = 2**18
"""Pairs that are drawn at once."""


@dataclass(frozen=True, eq=False)
class DrawnPairs:
    """Pairs and their labels; as in `CounterfactualDataset`."""

    base: Mapping[str, Column]
    sources: Mapping[str, Mapping[str, Column]]
    where: Mapping[str, Column]
    output: str
    labels: Column
    base_labels: Column
    facts: Mapping[str, Any]


def output_of(causal_model: CausalSamples, output: str | None) -> str:
    """Return the variable that labels are of.

    Raises:
        SpecError: none is named, and the model has several outputs.
        UnknownNameError: there is no such variable.
    """
    if output is None and len(causal_model.outputs) != 1:
        raise SpecError(f"the model has the outputs {', '.join(causal_model.outputs)}: name one with output=")
    return causal_model._evaluation.known(output or causal_model.outputs[0])


def sets_of(causal_model: CausalSamples, variables: str | Collection[Any]) -> list[tuple[str, ...]]:
    """Return which variables are interchanged together, in the order of the model.

    Args:
        causal_model: has them.
        variables: a name; a set of names: these together; or a list of names and of such sets.

    Raises:
        SpecError: there are none, or a set is there twice.
        UnknownNameError: there is no such variable.
    """
    several = [variables] if isinstance(variables, str | set | frozenset) else list(variables)
    found = []
    for one in several:
        if not isinstance(one, Collection):
            raise SpecError(f"variables is a name, or a list of names and of sets of names; found {one!r} among them")
        names = {causal_model._evaluation.known(name) for name in ([one] if isinstance(one, str) else one)}
        found.append(tuple(name for name in causal_model.variables if name in names))
    if not found or not all(found) or len(set(found)) < len(found):
        raise SpecError(f"variables is a name, or a list of names and of sets of names, each once; found {variables!r}")
    return found


def labelled(
    causal_model: CausalSamples,
    base: Mapping[str, Column],
    sources: Mapping[str, Mapping[str, Column]],
    where: Mapping[str, Column] | None,
    output: str,
) -> tuple[Column, Column]:
    """Return labels with and without the interchange, `(n,)` each."""
    plain = causal_model.run_many(base)[output]
    return causal_model.run_many(base, sources, where)[output], plain


def inputs_drawn(
    causal_model: CausalSamples,
    size: int,
    generator: np.random.Generator,
    sampler: InputSampler | None,
    where: Callable[[dict[str, Any]], bool] | None,
    balanced: str | None,
) -> Mapping[str, Any]:
    """Return inputs that are drawn.

    Args:
        causal_model: whose inputs they are.
        size: how many.
        generator: of random numbers.
        sampler: draws so many; default: `sample_inputs`.
        where: says which inputs are wanted.
        balanced: a variable.

    Raises:
        SpecError: there is a sampler, and also what only `sample_inputs` takes.
    """
    if sampler is None:
        return causal_model.sample_inputs(size, generator, where=where, balanced=balanced)
    if where is not None or balanced is not None:
        raise SpecError(
            "sampler draws all inputs, so it has to say itself which are wanted: leave out where= and balanced="
        )
    found = sampler(generator, size)
    if not isinstance(found, Mapping) or not found or any(np.shape(of)[:1] != (size,) for of in found.values()):
        raise SpecError(f"sampler(generator, {size}) gives by name {size} values of each input; found {found!r:.80}")
    every = causal_model.run_many(found)  # defaults are filled in, and values are those that the model lists
    return {name: every[name] for name in causal_model.inputs}


def drawn_pairs(
    causal_model: CausalSamples,
    size: int,
    sets: Sequence[tuple[str, ...]],
    output: str,
    generator: np.random.Generator,
    inputs: Callable[[int], Mapping[str, Any]],
    *,
    by_label: bool = False,
    trivial: bool = False,
) -> DrawnPairs:
    """Return pairs at random.

    Args:
        causal_model: says the labels.
        size: how many.
        sets: which variables are interchanged together; mixed evenly.
        output: what labels are of.
        generator: of random numbers.
        inputs: draws so many inputs.
        by_label: each label is in as many pairs of a set as another.
        trivial: whether pairs whose label is the base's are kept.

    Raises:
        SpecError: as `CounterfactualDataset.sample`.
    """
    if size < 1:
        raise SpecError(f"size={size} is how many pairs are wanted: at least 1")
    parts, seen = [], np.zeros(2, np.int64)
    for number, names in enumerate(sets):
        count = (size + len(sets) - 1 - number) // len(sets)
        if count:
            draw = _Draws(causal_model, names, output, inputs, trivial)
            parts.append((names, draw.balanced(count, generator) if by_label else draw.plain(count)))
            seen += draw.seen, draw.unchanged
    found = together(causal_model, parts, output, generator.permutation(size))
    facts = {
        "asked": size,
        "drawn": int(seen[0]),
        "trivial": float(seen[1] / seen[0]),
        "trivial_left_out": 0 if trivial else int(seen[1]),
        "distinct": distinct_count(found.base, found.sources, found.where),
    }
    return replace(found, facts=facts)


PairColumns = Mapping[tuple[str, str], Column]
"""Pairs of one set of variables: by side (`"base"` or a variable) and input; by `LABEL` and `"with"` or `"without"`."""


class _Draws:
    """Draws pairs of one set of variables until there are enough.

    Args:
        causal_model: says the labels.
        names: what is interchanged.
        output: what labels are of.
        inputs: draws so many.
        trivial: whether pairs whose label is the base's are kept.
    """

    def __init__(
        self, causal_model: CausalSamples, names: Sequence[str], output: str,
        inputs: Callable[[int], Mapping[str, Any]], trivial: bool,
    ) -> None:  # fmt: skip
        self._model, self._names, self._output, self._inputs, self._trivial = (
            causal_model,
            names,
            output,
            inputs,
            trivial,
        )
        self.seen = self.unchanged = 0

    def plain(self, count: int) -> PairColumns:
        """Return so many pairs as they come."""
        parts: list[PairColumns] = []
        found = 0
        while found < count:
            parts.append(self._more(2 * (count - found)))
            found += len(parts[-1][LABEL, "with"])
            if self.seen >= TRIES * max(found, 1):
                raise SpecError(
                    f"of {self.seen} pairs {found} have another label than their base: too few to draw {count}"
                )
        return _taken(_joined(parts), np.arange(count))

    def balanced(self, count: int, generator: np.random.Generator) -> PairColumns:
        """Return so many pairs, of each label as many as of another, to within one."""
        pool = self._more(max(2 * count, TRIES))
        while True:
            firsts, codes = distinct_rows([pool[LABEL, "with"]])
            have = np.bincount(codes, minlength=len(firsts))
            share, rest = divmod(count, max(len(firsts), 1))
            wanted = share + (generator.permutation(len(firsts)) < rest)
            rank = _ranks(codes, have)
            if len(firsts) and (have >= wanted).all():
                return _taken(pool, rank < wanted[codes])
            fewest = int(have.min(initial=count))
            if self.seen >= TRIES * max(fewest if len(firsts) else 0, 1):
                rarest = pool[LABEL, "with"][firsts[have.argmin()]] if len(firsts) else "other than the base's"
                raise SpecError(
                    f"of {self.seen} pairs {fewest if len(firsts) else 0} have the label {rarest}: too few to draw "
                    f"{count} pairs of {len(firsts)} labels in equal parts"
                )
            pool = _joined([_taken(pool, rank <= share), self._more(_MOST)])

    def _more(self, count: int) -> PairColumns:
        count = min(max(count, 64), _MOST)
        sides = {side: self._inputs(count) for side in ("base", *self._names)}
        sources = {name: sides[name] for name in self._names}
        changed, plain = labelled(self._model, sides["base"], sources, None, self._output)
        same = equal_rows(changed, plain)
        self.seen, self.unchanged = self.seen + count, self.unchanged + int(same.sum())
        rows = {(side, name): np.asarray(of[name]) for side, of in sides.items() for name in self._model.inputs}
        rows |= {(LABEL, "with"): changed, (LABEL, "without"): plain}
        return rows if self._trivial else _taken(rows, ~same)


def together(
    causal_model: CausalSamples, parts: Sequence[tuple[Sequence[str], PairColumns]], output: str, order: Column
) -> DrawnPairs:
    """Return pairs of several sets of variables in one; what is not interchanged has the base as its source.

    Args:
        causal_model: whose variables they are.
        parts: for each set its names and pairs.
        output: what labels are of.
        order: `(n,)` of the examples, numbers over all parts.
    """
    used = [name for name in causal_model.variables if any(name in names for names, _ in parts)]

    def every(side: str, column: str) -> Column:
        own = [rows[side if side in (*names, "base", LABEL) else "base", column] for names, rows in parts]
        return joined(own)[order]

    masks = {
        name: np.concatenate([np.full(len(rows[LABEL, "with"]), name in names) for names, rows in parts])[order]
        for name in used
    }
    base = {name: every("base", name) for name in causal_model.inputs}
    sources = {one: {name: every(one, name) for name in causal_model.inputs} for one in used}
    return DrawnPairs(base, sources, masks, output, every(LABEL, "with"), every(LABEL, "without"), {})


def _ranks(codes: Column, counts: Column) -> Column:
    """Return for each row how many rows before it have its code."""
    found = np.empty(len(codes), np.int64)
    found[np.argsort(codes, kind="stable")] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def equal_rows(one: Column, two: Column) -> Column:
    """Return of two columns in which examples they are the same, `(n,)` booleans."""
    same: Column = np.equal(one, two).astype(bool).reshape(len(one), math.prod(one.shape[1:]))
    return np.logical_and.reduce(same, axis=1)


def _taken(rows: PairColumns, which: Column) -> PairColumns:
    return {name: column[which] for name, column in rows.items()}


def _joined(parts: Sequence[PairColumns]) -> PairColumns:
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def distinct_count(
    base: Mapping[str, Column], sources: Mapping[str, Mapping[str, Column]], where: Mapping[str, Column]
) -> int:
    """Return how many different pairs there are."""
    inputs = distinct_inputs(base, sources)
    return count_distinct([inputs.base, *inputs.sources.values(), *where.values()])

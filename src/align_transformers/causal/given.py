"""Counterfactual pairs of inputs that somebody has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import SpecError, UnknownNameError, near_misses
from .distinct import chosen
from .domain import Column, as_column
from .drawing import DrawnPairs, labelled, sets_of

if TYPE_CHECKING:
    from .causal_model import CausalModel


def columns_of(causal_model: CausalModel, given: Any, what: str) -> dict[str, Column]:
    """Return inputs by name as arrays `(n,)`, those that have a default filled in.

    Args:
        causal_model: whose inputs they are.
        given: a list of settings, each by name; or by name a list of values.
        what: the argument, for messages.

    Raises:
        SpecError: it is neither, an input is missing, or a value is none of the input's.
        UnknownNameError: there is no such input.
    """
    if isinstance(given, Mapping):
        columns = dict(given)
    else:
        rows = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
        if not rows or not all(isinstance(row, Mapping) for row in rows):
            raise SpecError(
                f"{what} is a list of inputs, each by name, or by name a list of values; found {given!r:.80}"
            )
        names = dict.fromkeys(name for row in rows for name in row)
        missing = next(
            (f"{number} lacks {name!r}" for number, row in enumerate(rows) for name in names if name not in row), ""
        )
        if missing:
            raise SpecError(f"{what}: number {missing}, which others have")
        columns = {name: as_column([row[name] for row in rows]) for name in names}
    for name, of in columns.items():
        if name not in causal_model.inputs:
            raise UnknownNameError(
                f"{what} has {name!r}, no input of the model; {near_misses(name, causal_model.inputs)}"
            )
        if isinstance(of, str) or not hasattr(of, "__len__"):
            raise SpecError(f"{what}[{name!r}] is a list of values; found {of!r:.80}")
    found = causal_model.run_many(columns)
    return {name: np.array(found[name]) for name in causal_model.inputs}


def masks_of(causal_model: CausalModel, variables: str | Collection[Any], size: int) -> dict[str, Column]:
    """Return by variable in which of some pairs it is interchanged.

    Args:
        causal_model: has them.
        variables: a name or a set of names, for all pairs; or a list of these, one a pair.
        size: how many pairs.

    Raises:
        SpecError: there are not as many as pairs.
        UnknownNameError: there is no such variable.
    """
    each = [variables] if isinstance(variables, str | set | frozenset) else list(variables)
    if len(each) not in (1, size):
        raise SpecError(
            f"variables is a name or a set of names for all {size} pairs, or a list of {size}; found {variables!r:.80}"
        )
    sets = [sets_of(causal_model, [one])[0] for one in each] * (size if len(each) < size else 1)
    used = [name for name in causal_model.variables if any(name in one for one in sets)]
    return {name: np.array([name in one for one in sets], bool) for name in used}


def given_pairs(
    causal_model: CausalModel, base: Any, source: Any, variables: str | Collection[Any], output: str
) -> DrawnPairs:
    """Return pairs of inputs; the arguments are those of `CounterfactualDataset.of`."""
    own = columns_of(causal_model, base, "base")
    size = len(next(iter(own.values())))
    masks = masks_of(causal_model, variables, size)
    by_variable = source if isinstance(source, Mapping) else dict.fromkeys(masks, source)
    if set(by_variable) != set(masks):
        raise SpecError(f"source tells of {sorted(by_variable)}, where {sorted(masks)} are interchanged")
    sources = {}
    for name, mask in masks.items():
        taken = columns_of(
            causal_model, by_variable[name], "source" if by_variable is not source else f"source[{name!r}]"
        )
        if len(next(iter(taken.values()))) != size:
            raise SpecError(
                f"there are {size} bases and {len(next(iter(taken.values())))} sources of {name!r}: one each"
            )
        sources[name] = {one: chosen(mask, taken[one], own[one]) for one in own}
    return _labelled(causal_model, own, sources, masks, output)


def all_pairs(causal_model: CausalModel, inputs: Any, variables: str | Collection[Any], output: str) -> DrawnPairs:
    """Return all ordered pairs; the arguments are those of `CounterfactualDataset.pairs`."""
    columns = columns_of(causal_model, inputs, "inputs")
    count = len(next(iter(columns.values())))
    if count < 2:
        raise SpecError(f"a pair is of two inputs; inputs has {count}")
    one, two = np.nonzero(~np.eye(count, dtype=bool))
    sets = sets_of(causal_model, variables)
    used = [name for name in causal_model.variables if any(name in names for names in sets)]
    masks = {name: np.repeat([name in names for names in sets], len(one)) for name in used}
    bases, others = np.tile(one, len(sets)), np.tile(two, len(sets))
    sources = {
        name: {own: of[np.where(mask, others, bases)] for own, of in columns.items()} for name, mask in masks.items()
    }
    return _labelled(causal_model, {name: of[bases] for name, of in columns.items()}, sources, masks, output)


def _labelled(
    causal_model: CausalModel,
    base: Mapping[str, Column],
    sources: Mapping[str, Mapping[str, Column]],
    where: Mapping[str, Column],
    output: str,
) -> DrawnPairs:
    labels, plain = labelled(causal_model, base, sources, where, output)
    return DrawnPairs(base, sources, where, output, labels, plain, {})

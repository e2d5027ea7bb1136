"""What makes variables, parents and functions a model: names, order, numbers of arguments."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np

from .._errors import SpecError, UnknownNameError, near_misses
from .domain import Column, OnArrays
from .evaluation import Evaluation

_LOOKED_AT = 10_000
"""Inputs that are run when a model is made; of models with more, so many drawn with a fixed seed."""


def check_names(variables: Sequence[str], **described: Mapping[str, Any]) -> None:
    """Refuse names that are there twice, and what is said of variables that there are not.

    Raises:
        SpecError: a name is there twice or is none.
        UnknownNameError: something is said of a variable that there is not.
    """
    for number, name in enumerate(variables):
        if not name or name in variables[:number]:
            raise SpecError(f"variables are names, each once; found {name!r} {'twice' if name else 'among them'}")
    for argument, of in described.items():
        for name in of:
            if name not in variables:
                raise UnknownNameError(f"{argument} tells of {name!r}, no variable; {near_misses(name, variables)}")
    for name, parents in described["parents"].items():
        if isinstance(parents, str) or len(set(parents)) < len(parents):
            raise SpecError(f"parents[{name!r}] is a list of names, each once; found {parents!r}")
        for parent in parents:
            if parent not in variables:
                raise UnknownNameError(
                    f"parents[{name!r}] has {parent!r}, no variable; {near_misses(parent, variables)}"
                )
    for name in variables:
        if name not in described["functions"] and described["parents"].get(name):
            raise SpecError(f"functions[{name!r}] is missing: the variable has parents")


def sorted_by_parents(parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Return the variables, each after its parents.

    Raises:
        SpecError: parents go in a circle.
    """
    try:
        return tuple(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise SpecError(f"parents go in a circle: {' -> '.join(error.args[1])}") from error


def check_arity(parents: Mapping[str, Sequence[str]], functions: Mapping[str, Any]) -> None:
    """Refuse what is no function of as many values as there are parents.

    Raises:
        SpecError: there is one.
    """
    for name, function in functions.items():
        called = function.function if isinstance(function, OnArrays) else function
        if not callable(called):
            raise SpecError(f"functions[{name!r}] is a function of the values of the parents; found {called!r}")
        try:
            inspect.signature(called).bind(*parents[name])
        except TypeError as error:
            takes = ", ".join(parents[name]) or "nothing"
            raise SpecError(
                f"functions[{name!r}] is called with the values of its parents ({takes}): {error}"
            ) from error
        except ValueError:  # a builtin without a signature: it is seen when it is called
            continue


def steps_from_inputs(order: Sequence[str], parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return of each variable how many steps it is from the inputs, at most."""
    steps: dict[str, int] = {}
    for name in order:
        steps[name] = 1 + max((steps[parent] for parent in parents[name]), default=-1)
    return steps


def class_columns(
    evaluation: Evaluation, classes: Mapping[str, Mapping[Any, Sequence[Mapping[str, Any]]]]
) -> dict[str, dict[str, Column]]:
    """Return by variable the settings of its parents that are listed, and under its own name what they give.

    Args:
        evaluation: of the model.
        classes: by variable and value the settings of the parents that give it.

    Raises:
        SpecError: a setting lacks a parent, or gives another value.
        UnknownNameError: there is no such variable.
    """
    found = {}
    for name, of in classes.items():
        parents = evaluation.parents[evaluation.known(name)]
        rows = [{**setting, name: value} for value, settings in of.items() for setting in settings]
        wanted = {*parents, name}
        wrong = next((row for row in rows if row.keys() != wanted), None)
        if wrong is not None or not parents or not rows:
            raise SpecError(
                f"equiv_classes[{name!r}] has for each value a list of settings of {', '.join(parents) or 'parents'}; "
                f"found {wrong or of!r:.80}"
            )
        columns = evaluation.encode({one: [row[one] for row in rows] for one in (*parents, name)}, len(rows))
        given = evaluation.mechanisms[name]([columns[one] for one in parents], len(rows))
        if (given != columns[name]).any():
            row = rows[int((given != columns[name]).argmax())]
            raise SpecError(f"equiv_classes[{name!r}] has {row}, which functions[{name!r}] does not give")
        found[name] = columns
    return found


def some_inputs(evaluation: Evaluation, inputs: Sequence[str]) -> tuple[dict[str, Column], int]:
    """Return all inputs of a model where these are not many, otherwise some; and how many.

    None where an input may be anything.
    """
    domains = [evaluation.domains[name] for name in inputs]
    sizes = [len(domain) for domain in domains if domain]
    if len(sizes) < len(inputs) or not inputs:
        return {}, 0
    count = math.prod(sizes)
    if count <= _LOOKED_AT:
        return dict(zip(inputs, np.unravel_index(np.arange(count), sizes), strict=True)), count
    generator = np.random.default_rng(0)
    return {
        name: generator.integers(size, size=_LOOKED_AT) for name, size in zip(inputs, sizes, strict=True)
    }, _LOOKED_AT


def composed(
    child: Callable[..., Any] | OnArrays,
    old: Sequence[str],
    new: Sequence[str],
    variable: str,
    function: Callable[..., Any] | OnArrays,
    parents: Sequence[str],
) -> Callable[..., Any] | OnArrays:
    """Return the function of a child after a parent of it is gone.

    Args:
        child: its function.
        old: the parents that it took.
        new: those that it takes now.
        variable: the parent that is gone.
        function: of that.
        parents: of that.

    Raises:
        SpecError: one of the functions takes arrays and the other does not.
    """
    if isinstance(child, OnArrays) != isinstance(function, OnArrays):
        raise SpecError(f"{variable!r} and a child of it cannot be made one: only one of their functions is OnArrays")
    first: Callable[..., Any] = function.function if isinstance(function, OnArrays) else function
    then: Callable[..., Any] = child.function if isinstance(child, OnArrays) else child

    def both(*values: Any) -> Any:
        known = dict(zip(new, values, strict=True))
        known[variable] = first(*(known[parent] for parent in parents))
        return then(*(known[parent] for parent in old))

    return OnArrays(both) if isinstance(child, OnArrays) else both

"""Inputs at random: uniform, filtered, and balanced along a tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .._errors import SpecError
from .domain import Column
from .evaluation import Evaluation

TRIES = 10_000
"""Samples after which none being wanted is an error."""
_SETTINGS = 2**22
"""Settings of the parents up to which they are all looked at."""


def generator_of(seed: int) -> np.random.Generator:
    """Return a generator of random numbers.

    Raises:
        SpecError: the seed is negative.
    """
    if seed < 0:
        raise SpecError(f"seed={seed} is a whole number from 0 on")
    return np.random.default_rng(seed)


def of_variable(evaluation: Evaluation, values: Any, name: str, size: int, generator: np.random.Generator) -> Column:
    """Return samples of a variable, each of its values as likely as another.

    Args:
        evaluation: of the model.
        values: its values as the model was given them.
        name: its name.
        size: how many.
        generator: of random numbers.

    Raises:
        SpecError: it is not known what it may be, or its sampler does not give as many.
    """
    domain = evaluation.domains[name]
    if domain is not None:
        return generator.integers(len(domain), size=size)
    if values is None:
        raise SpecError(
            f"values[{name!r}] is not given, so nothing can be drawn: list them, or give a function from a "
            "numpy.random.Generator and n to n values"
        )
    found = np.asarray(values(generator, size))
    if found.shape[:1] != (size,):
        raise SpecError(f"values[{name!r}] gave {found.shape[:1]} samples where {size} were wanted")
    return found


def tried(
    drawn: Callable[[int], dict[str, Column]], wanted: Callable[[dict[str, Column], int], Column], size: int
) -> dict[str, Column]:
    """Return samples that are wanted.

    Args:
        drawn: draws so many.
        wanted: says of each whether it is wanted, `(n,)` booleans.
        size: how many.

    Raises:
        SpecError: fewer than one in 10,000 is wanted.
    """
    kept: list[dict[str, Column]] = []
    seen = found = 0
    while found < size or not kept:
        count = min(max(2 * size, 64), 2**16)
        columns = drawn(count)
        mask = wanted(columns, count)
        kept.append({name: column[mask] for name, column in columns.items()})
        seen, found = seen + count, found + int(mask.sum())
        if seen >= TRIES * max(found, 1):
            raise SpecError(f"of {seen} samples {found} are wanted by where=: too few to draw {size}")
    return {name: np.concatenate([one[name] for one in kept])[:size] for name in kept[0]}


def settings_of(evaluation: Evaluation, name: str) -> Mapping[str, Column]:
    """Return all settings of a variable's parents, and under its own name what they give.

    Raises:
        SpecError: the values of a parent are not listed, or there are more than four million settings.
    """
    parents = evaluation.parents[name]
    domains = [evaluation.domains[parent] for parent in parents]
    sizes = [len(domain) for domain in domains if domain]
    if len(sizes) < len(parents) or math.prod(sizes) > _SETTINGS:
        raise SpecError(
            f"the settings of {', '.join(parents)}, of which {name!r} is made, are not listed or too many: give "
            "equiv_classes, or where= instead of a balanced sample"
        )
    count = math.prod(sizes)
    columns = dict(zip(parents, np.unravel_index(np.arange(count), sizes), strict=True))
    return {**columns, name: evaluation.mechanisms[name](list(columns.values()), count)}


def balanced_inputs(
    evaluation: Evaluation,
    classes: Mapping[str, Mapping[str, Column]],
    name: str,
    value: Any,
    size: int,
    generator: np.random.Generator,
) -> dict[str, Column]:
    """Return inputs for which each value of a variable is as likely as another.

    From the variable towards the inputs: a value, then one of the settings of its parents that give it, and so on.

    Args:
        evaluation: of the model.
        classes: by variable, where they are known, the settings of its parents and under its own name what they give.
        name: the variable.
        value: of it; `None`: any that it can have.
        size: how many inputs.
        generator: of random numbers.

    Raises:
        SpecError: what it comes of is no tree, or values are not listed.
    """
    found: dict[str, Column] = {}
    for one in reversed(_tree(evaluation, name)):
        domain, parents = evaluation.domains[one], evaluation.parents[one]
        if domain is None:
            raise SpecError(f"values[{one!r}] is not listed, so its values cannot be as likely as each other")
        if not parents:
            if one not in found:
                found[one] = generator.integers(len(domain), size=size)
            continue
        columns = classes[one] if one in classes else settings_of(evaluation, one)
        order = np.argsort(columns[one], kind="stable")
        counts = np.bincount(columns[one], minlength=len(domain))
        if one not in found:
            possible = np.flatnonzero(counts)
            found[one] = (
                possible[generator.integers(len(possible), size=size)]
                if value is None
                else np.full(size, domain.number(value, "value="))
            )
        missing = counts[found[one]] == 0
        if missing.any():
            raise SpecError(
                f"no setting of {', '.join(parents)} makes {one!r} {domain.values[found[one][missing][0]]!r}"
            )
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        rows = order[starts[found[one]] + generator.integers(counts[found[one]])]
        found |= {parent: columns[parent][rows] for parent in parents}
    return {one: found[one] for one in evaluation.order if one in found and not evaluation.parents[one]}


def _tree(evaluation: Evaluation, name: str) -> list[str]:
    """Return the variables that one comes of, itself last, each after its parents."""
    above = {name}
    for one in reversed(evaluation.order):
        if one in above:
            for parent in evaluation.parents[one]:
                if parent in above:
                    raise SpecError(
                        f"{name!r} comes of {parent!r} in two ways, which is no tree: its values cannot be balanced "
                        "from the top; draw with where= instead"
                    )
                above.add(parent)
    return [one for one in evaluation.order if one in above]

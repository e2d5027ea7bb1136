"""Hypotheses about several variables, each at a place of its own, as a caller writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from torch import nn

from ..._errors import SpecError, UnknownNameError, near_misses
from ...models import find_slot
from ...sites import Site
from .._prompts import indices
from .hypothesis import Hypothesis
from .methods import Methods, joint
from .task import Container, Task

Where = Site | Mapping[str, Any]
"""Where a variable is: a site; or `component`, `layer`, `head`, `place`, `method` and `rank`, as a row of a result."""
VariablePlaces = Mapping[str, Where] | Sequence[Mapping[str, Where]]
"""By variable where it is; one hypothesis, or several."""

_READ = ("component", "layer", "head", "place", "method", "rank")
_OF_A_ROW = (
    "variables", "seed", "status", "chosen", "train", "validation", "iia", "low", "high", "n", "soft", "dimensions",
    "full", "random", "random_high", "p", "p_corrected", "permuted", "reinitialised", "reinitialised_train", "flags",
)  # fmt: skip
"""What is read of a row of a result, and what is not."""


def hypotheses_at_own_places(
    asked: VariablePlaces, model: nn.Module, task: Task, methods: Methods, seeds: Sequence[int]
) -> tuple[Hypothesis, ...]:
    """Return a hypothesis for each method, rank and seed, of all variables at once; those at one place share it.

    Args:
        asked: by variable where it is.
        model: that has the sites.
        task: knows the variables and the places.
        methods: of variables that have none of their own.
        seeds: of the fits.

    Raises:
        SpecError: nothing is named, or variables of one place cannot share it.
        UnknownNameError: there is no such variable, place, method or key.
    """
    found: dict[Hypothesis, None] = {}
    for one in [asked] if isinstance(asked, Mapping) else asked:
        if not isinstance(one, Mapping) or not one:
            raise SpecError(f"a hypothesis says by variable where it is; found {one!r:.80}")
        _check(one, task)
        places = {name: _container(name, where, model, task) for name, where in one.items()}
        for method, seed in product(methods.asked, seeds):
            for rank in methods.ranks_of(method):
                each = [
                    Hypothesis((name,), container, *_how(name, one[name], methods, method, rank), seed)
                    for name, container in places.items()
                ]
                still = all(part.method == "swap" for part in each)
                found[Hypothesis.at_several(_shared([replace(p, seed=seeds[0]) for p in each] if still else each))] = (
                    None
                )
    if not found:
        raise SpecError(f"hypotheses say by variable where it is; found {asked!r:.80}")
    return tuple(found)


def _check(one: Mapping[str, Where], task: Task) -> None:
    """Refuse variables that no pair interchanges, or never all of them at once."""
    known = list(next(iter(task.parts.values())).sources)
    for name in one:
        if name not in known:
            raise UnknownNameError(f"hypotheses: the data interchanges no {name!r}; {near_misses(str(name), known)}")
    for part in ("train", "test"):
        if frozenset(one) not in task.parts[part].sets:
            names = ", ".join(one)
            raise SpecError(
                f"hypotheses: the part {part!r} has no pair in which {names} are interchanged at once: draw the data "
                f"with variables=[{{{names}}}, ...]"
            )


def _container(name: str, where: Where, model: nn.Module, task: Task) -> Container:
    """Return the container of a variable."""
    if not isinstance(where, Site | Mapping):
        raise SpecError(f"hypotheses: {name!r} is at a site, or at a dict of {', '.join(_READ)}; found {where!r:.80}")
    told: Mapping[str, Any] = {} if isinstance(where, Site) else where
    for key in told:
        if key not in _READ and key not in _OF_A_ROW:
            raise UnknownNameError(f"hypotheses: {name!r} has the key {key!r}; {near_misses(str(key), _READ)}")
    site = where if isinstance(where, Site) else Site(told.get("component", "block_output"), told.get("layer"))
    place, head = told.get("place"), told.get("head")
    if place is None and len(task.places) == 1:
        (place,) = task.places
    if not isinstance(place, str | None) or place not in task.places:
        known = [str(one) for one in task.places]
        raise UnknownNameError(f"hypotheses: {name!r} is at the place {place!r}; {near_misses(str(place), known)}")
    heads = find_slot(model, site).heads
    if head is not None:
        if heads is None:
            raise SpecError(f"hypotheses: {name!r} is in head {head} of {site}, which has none")
        (head,) = indices([head], len(heads), "head", f"{site} has {len(heads)}")
    return Container(site, head, place)


def _how(name: str, where: Where, methods: Methods, method: str, rank: int | None) -> tuple[str, int | None]:
    """Return the method and rank of a variable: its own, or those of the search."""
    own = None if isinstance(where, Site) else where.get("method")
    if own is None:
        return method, rank
    if own not in methods.asked:
        raise UnknownNameError(f"hypotheses: {name!r} has the method {own!r}; {near_misses(str(own), methods.asked)}")
    ranks = methods.ranks_of(own)
    given = where.get("rank") if isinstance(where, Mapping) else None
    if given is not None and (type(given) is not int or given < 1):
        raise SpecError(f"hypotheses: {name!r} has the rank {given!r}; it is a number from 1")
    return own, (given if given is not None else rank if rank in ranks else ranks[0]) if ranks != (None,) else None


def _shared(each: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Return hypotheses of which those of one container are one."""
    groups: dict[Container, list[Hypothesis]] = {}
    for one in each:
        groups.setdefault(one.container, []).append(one)
    found = []
    for container, several in groups.items():
        kinds = {(one.method, one.rank) for one in several}
        if len(several) > 1 and (len(kinds) > 1 or not joint(several[0].method)):
            names = " and ".join(one.variables[0] for one in several)
            raise SpecError(
                f"hypotheses: {names} are both in {container}, where they can only be blocks of one rotation: the "
                "method 'das' with the same rank"
            )
        found.append(replace(several[0], variables=tuple(one.variables[0] for one in several)))
    return found

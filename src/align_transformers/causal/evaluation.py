"""All variables of many examples at once, from what is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._errors import SpecError, UnknownNameError, near_misses
from .distinct import chosen
from .domain import Column, Domain, Mechanism, as_column


class Evaluation:
    """Runs the variables of a model, one after the other.

    Args:
        order: names, each after its parents.
        parents: by name.
        domains: by name; `None` where a variable may be anything.
        mechanisms: by name, of those that have a function.
    """

    def __init__(
        self,
        order: Sequence[str],
        parents: Mapping[str, Sequence[str]],
        domains: Mapping[str, Domain | None],
        mechanisms: Mapping[str, Mechanism],
    ) -> None:
        self.order, self.parents, self.domains, self.mechanisms = tuple(order), parents, domains, mechanisms

    def known(self, name: str) -> str:
        """Return a name that there is.

        Raises:
            UnknownNameError: there is no such variable.
        """
        if name not in self.parents:
            raise UnknownNameError(f"there is no variable {name!r}; {near_misses(name, self.parents)}")
        return name

    def encode(self, values: Mapping[str, Any], size: int) -> dict[str, Column]:
        """Return values as columns.

        Args:
            values: by name a list or an array `(size,)`.
            size: of each.

        Raises:
            UnknownNameError: there is no such variable.
            SpecError: a value is not one of the variable's, or there are not as many as there should be.
        """
        found = {}
        for name, of in values.items():
            domain = self.domains[self.known(name)]
            if len(of) != size:
                raise SpecError(f"{name!r} has {len(of)} values, where there are {size} examples")
            found[name] = domain.encode(of, "found") if domain else of if isinstance(of, np.ndarray) else as_column(of)
        return found

    def decode(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Return columns as arrays of values."""
        return {name: domain.decode(of) if (domain := self.domains[name]) else of for name, of in columns.items()}

    def row(self, columns: Mapping[str, Column], number: int) -> dict[str, Any]:
        """Return the values of one example."""
        return {
            name: domain.values[of[number]] if (domain := self.domains[name]) else of[number : number + 1].tolist()[0]
            for name, of in columns.items()
        }

    def run(
        self,
        given: Mapping[str, Column],
        size: int,
        instead: Mapping[str, tuple[Column | None, Column]] | None = None,
        until: str | None = None,
    ) -> dict[str, Column]:
        """Return all variables of some examples.

        Args:
            given: those whose values are known.
            size: how many examples.
            instead: by name a column, and in which examples (booleans; `None`: all) it stands for the variable.
            until: the variable that is wanted; those behind it are not run.

        Raises:
            SpecError: an input that has no default is not given.
        """
        found: dict[str, Column] = {}
        for name in self.order:
            mask, other = (instead or {}).get(name, (None, None))
            if other is not None and mask is None:
                found[name] = other
                continue
            if name in given:
                found[name] = given[name]
            elif name in self.mechanisms:
                found[name] = self.mechanisms[name]([found[parent] for parent in self.parents[name]], size)
            else:
                raise SpecError(f"the input {name!r} is not given, and has no default")
            if other is not None and mask is not None:
                found[name] = chosen(mask, other, found[name])
            if name == until:
                break
        return found

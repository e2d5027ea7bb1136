"""The values that a variable may have, as numbers from 0; and mechanisms, which are called once for each setting.

A column holds a variable in many examples at once: of a variable with listed values their numbers, of another one the
values themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._errors import SpecError

Column = NDArray[Any]
"""`(n,)` a variable in n examples."""
_TABLE = 2**22
"""Settings of the parents up to which a mechanism is a table."""


@dataclass(frozen=True)
class OnArrays:
    """A mechanism that takes the values of many examples at once.

    Args:
        function: called with an array `(n,)` for each parent, returns an array `(n,)`.

    >>> OnArrays(lambda a, b: a + b).function(np.array([1, 2]), np.array([3, 4])).tolist()
    [4, 6]
    """

    function: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Domain:
    """The values of a variable, in order.

    Args:
        name: of the variable.
        values: hashable, each once.

    Raises:
        SpecError: there is none, or one is there twice or cannot be hashed.
    """

    name: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise SpecError(f"values[{self.name!r}] is empty: list what the variable may be")
        wrong = [value for value in self.values if not isinstance(value, Hashable)]
        if wrong or not _hashable(self.values):
            found = wrong[0] if wrong else next(value for value in self.values if not _hashable([value]))
            raise SpecError(f"values[{self.name!r}] has {found!r}, which cannot be hashed; write a list as a tuple")
        if len(self.numbers) < len(self.values):
            twice = next(value for number, value in enumerate(self.values) if self.numbers[value] != number)
            raise SpecError(f"values[{self.name!r}] has {twice!r} twice, or something equal to it")

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def numbers(self) -> dict[Any, int]:
        """By value its number."""
        return {value: number for number, value in enumerate(self.values)}

    @cached_property
    def array(self) -> Column:
        """The values as an array: of numbers where all are of one kind, otherwise of objects."""
        return as_column(self.values)

    @cached_property
    def _first(self) -> int | None:
        """The first value where they are whole numbers one after the other."""
        whole = all(type(value) is int for value in self.values)
        return self.values[0] if whole and self.values == tuple(range(self.values[0], self.values[-1] + 1)) else None

    def decode(self, numbers: Column) -> Column:
        """Return the values that have some numbers."""
        return self.array.take(numbers) if self._first is None else numbers + self._first

    def number(self, value: Any, whence: str) -> int:
        """Return the number of a value.

        Args:
            value: any.
            whence: where it comes from, for the message.

        Raises:
            SpecError: the variable has no such value.
        """
        found = self.numbers.get(value) if _hashable([value]) else None
        if found is None:
            some = ", ".join(map(repr, self.values[:8])) + (", ..." if len(self.values) > 8 else "")
            raise SpecError(f"{whence} {value!r}, which is not among the values of {self.name!r}: {some}")
        return found

    def encode(self, values: Any, whence: str) -> Column:
        """Return the numbers of many values.

        Args:
            values: `(n,)`, a list or an array.
            whence: where they come from, for the message.

        Raises:
            SpecError: the variable has not all of them.
        """
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and self._first is not None:
            if values.size and not self.values[0] <= values.min() <= values.max() <= self.values[-1]:
                outside = (values < self.values[0]) | (values > self.values[-1])
                self.number(values[outside.argmax()].item(), whence)
            return values.astype(np.int64) - self._first
        if isinstance(values, np.ndarray) and values.dtype.kind in "biufU":
            distinct, places = np.unique(values, return_inverse=True)
            return np.array([self.number(one, whence) for one in distinct.tolist()], np.int64)[places]
        return np.array([self.number(_plain(value), whence) for value in values], np.int64)


def as_column(values: Iterable[Any]) -> Column:
    """Return values as an array `(n,)`: of booleans, numbers or texts where all are, otherwise of objects."""
    listed = list(values)
    kinds = {type(value) for value in listed}
    if kinds <= {bool} or kinds <= {int} or kinds <= {float} or kinds <= {str}:
        found = np.array(listed) if listed else np.empty(0, object)
        if found.dtype.kind in "bifU":  # not of whole numbers beyond 64 bits
            return found
    column = np.empty(len(listed), object)
    for number, value in enumerate(listed):  # one by one: a list of tuples would become two axes
        column[number] = value
    return column


class Mechanism:
    """The function of a variable, called once for each setting of its parents that comes up.

    Args:
        name: of the variable.
        function: of the values of its parents, in order; it has to give the same for the same.
        domain: of the variable; `None`: it may be anything.
        parents: names and domains of the parents.
    """

    def __init__(
        self, name: str, function: Callable[..., Any] | OnArrays, domain: Domain | None,
        parents: Sequence[tuple[str, Domain | None]],
    ) -> None:  # fmt: skip
        self._name, self._function, self._domain, self._parents = name, function, domain, tuple(parents)
        sizes = [len(one) for _, one in parents if one is not None]
        self._settings = math.prod(sizes) if len(sizes) == len(parents) else None
        small = self._settings is not None and self._settings <= _TABLE and domain is not None
        # Numbers of the variable's values by setting, -1 where it has not come up. Two threads write the same there.
        self._table = np.full(self._settings or 1, -1, np.int64) if small else None
        self._full = False

    def __call__(self, columns: Sequence[Column], size: int) -> Column:
        """Return the variable in many examples.

        Args:
            columns: of its parents.
            size: how many examples.

        Raises:
            SpecError: the function gives what is not among the variable's values.
        """
        if self._settings is None:
            return self._of_values([self._values(*one) for one in zip(self._parents, columns, strict=True)], size)
        if self._settings > 2**62:
            _, firsts, places = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
            return self._of_settings([column[firsts] for column in columns])[places.reshape(-1)]
        keys = self._keys(columns, size)
        if self._table is None:
            _, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
            return self._of_settings([column[firsts] for column in columns])[places]
        found = self._table.take(keys)
        if not self._full and (missing := found < 0).any():
            new = np.flatnonzero(np.bincount(keys[missing], minlength=1))
            self._table[new] = self._of_settings(list(self._taken_apart(new)))
            self._full = bool((self._table >= 0).all())
            found = self._table.take(keys)
        return found

    def _keys(self, columns: Sequence[Column], size: int) -> Column:
        """Return for each example the number of its setting of the parents."""
        keys = columns[0].copy() if columns else np.zeros(size, np.int64)
        for column, (_, domain) in zip(columns[1:], self._parents[1:], strict=True):
            keys *= len(domain or ())
            keys += column
        return keys

    def _taken_apart(self, keys: Column) -> Iterable[Column]:
        """Return the columns of the parents that give some keys."""
        sizes = tuple(len(domain or ()) for _, domain in self._parents)
        return np.unravel_index(keys, sizes) if sizes else []

    def _values(self, parent: tuple[str, Domain | None], column: Column) -> Column:
        return column if parent[1] is None else parent[1].array[column]

    def _of_settings(self, columns: Sequence[Column]) -> Column:
        """Return the variable for settings that are all different."""
        size = len(columns[0]) if columns else 1
        if isinstance(self._function, OnArrays):
            return self._of_values([self._values(*one) for one in zip(self._parents, columns, strict=True)], size)
        domains = [domain.values if domain else () for _, domain in self._parents]
        rows = zip(*(column.tolist() for column in columns), strict=True) if columns else iter([()])
        settings = [tuple(values[number] for values, number in zip(domains, row, strict=True)) for row in rows]
        return self._column([self._call(setting) for setting in settings], settings)

    def _of_values(self, columns: Sequence[Column], size: int) -> Column:
        """Return the variable for values of its parents, some of which are not listed."""
        if isinstance(self._function, OnArrays):
            given = np.asarray(self._function.function(*columns))
            if given.shape[:1] != (size,):
                raise SpecError(
                    f"functions[{self._name!r}] takes arrays of {size} examples and gave one of the shape "
                    f"{given.shape}; it has to give one value for each"
                )
            return given if self._domain is None else self._domain.encode(given, f"functions[{self._name!r}] gave")
        settings = list(zip(*(column.tolist() for column in columns), strict=True)) if columns else [()] * size
        known = {setting: self._call(setting) for setting in dict.fromkeys(settings)} if _hashable(settings) else None
        return self._column([self._call(one) if known is None else known[one] for one in settings], settings)

    def _column(self, values: list[Any], settings: Sequence[tuple[Any, ...]]) -> Column:
        if self._domain is None:
            return as_column(values)
        numbers = np.empty(len(values), np.int64)
        for row, (value, setting) in enumerate(zip(values, settings, strict=True)):
            numbers[row] = self._domain.numbers.get(value, -1) if _hashable([value]) else -1
            if numbers[row] < 0:
                self._domain.number(value, f"functions[{self._name!r}]{self._at(setting)} gave")
        return numbers

    def _call(self, setting: tuple[Any, ...]) -> Any:
        try:
            return _plain(self._function(*setting))  # type: ignore[operator]
        except Exception as error:
            raise SpecError(f"functions[{self._name!r}]{self._at(setting)} raised {error!r}") from error

    def _at(self, setting: tuple[Any, ...]) -> str:
        return "({})".format(", ".join(f"{n}={v!r}" for (n, _), v in zip(self._parents, setting, strict=True)))


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _hashable(values: Iterable[Any]) -> bool:
    try:
        for value in values:
            hash(value)
    except TypeError:
        return False
    return True

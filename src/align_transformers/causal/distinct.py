"""Inputs that are the same: each once, and numbers that are the same wherever they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .domain import Column, as_column

_TABLE = 2**20
"""Numbers up to which equal ones are found through a table; more are sorted."""


@dataclass(frozen=True, eq=False)
class DistinctInputs:
    """Inputs, each once, and where they stand in a data set.

    Args:
        inputs: by name `(m,)`.
        base: `(n,)` the number of each example's base among them.
        sources: by variable `(n,)` likewise.
    """

    inputs: Mapping[str, Column]
    base: Column
    sources: Mapping[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), ()))

    def settings(self) -> list[dict[str, Any]]:
        """Return each input by name, as plain values."""
        columns = [column.tolist() for column in self.inputs.values()]
        return [dict(zip(self.inputs, row, strict=True)) for row in zip(*columns, strict=True)]


def distinct_inputs(base: Mapping[str, Column], sources: Mapping[str, Mapping[str, Column]]) -> DistinctInputs:
    """Return each input once.

    Args:
        base: by name `(n,)`.
        sources: by variable by name `(n,)`.
    """
    sides = [base, *sources.values()]
    columns = {name: joined([side[name] for side in sides]) for name in base}
    firsts, places = distinct_rows(list(columns.values()))
    own = np.split(places, len(sides))
    return DistinctInputs(
        {name: column[firsts] for name, column in columns.items()}, own[0], dict(zip(sources, own[1:], strict=True))
    )


def distinct_rows(columns: Sequence[Column]) -> tuple[Column, Column]:
    """Return of some columns the numbers of rows that are all different, and for each row the place of its like there.

    Args:
        columns: each `(n,)`, or with further axes.
    """
    keys, size = _keys(columns)
    if size > _TABLE + 4 * len(keys):
        _, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
        return firsts, places.reshape(-1)
    first = np.full(size, -1, np.int64)
    first[keys[::-1]] = np.arange(len(keys))[::-1]
    place = np.cumsum(first >= 0) - 1
    return first[first >= 0], place[keys]


def count_distinct(columns: Sequence[Column]) -> int:
    """Return how many rows of some columns are different."""
    keys = np.sort(_keys(columns)[0])
    return int((keys[1:] != keys[:-1]).sum()) + min(len(keys), 1)


def stable_numbers(columns: Mapping[str, Column]) -> Column:
    """Return a whole number for each row, the same for the same values, whichever other rows there are.

    Args:
        columns: by name `(n,)`.
    """
    firsts, places = distinct_rows(list(columns.values()))
    rows = zip(*(column[firsts].tolist() for column in columns.values()), strict=True)
    digests = (hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
    numbers = [int.from_bytes(one, "big") >> 1 for one in digests]
    return np.array(numbers, np.int64)[places] if numbers else np.empty(0, np.int64)


def joined(columns: Sequence[Column]) -> Column:
    """Return columns one after the other; of different kinds as objects, so that no value is changed."""
    kinds = {column.dtype.kind for column in columns}
    return np.concatenate(columns) if len(kinds) == 1 else as_column([one for of in columns for one in of.tolist()])


def chosen(mask: Column, yes: Column, no: Column) -> Column:
    """Return row by row one of two columns.

    Args:
        mask: `(n,)` booleans: where it is that of `yes`.
        yes: `(n,)`, or with further axes.
        no: likewise.
    """
    if yes.ndim == 1 and yes.dtype.kind == no.dtype.kind:
        return np.where(mask, yes, no)
    rows = np.arange(len(mask))
    return joined([yes, no])[np.where(mask, rows, len(mask) + rows)]


def _keys(columns: Sequence[Column]) -> tuple[Column, int]:
    """Return a number for each row, from 0 on, the same for the same; and a bound above all of them."""
    keys, size = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        own, count = _codes(column)
        if size * count > 2**62:
            found, keys = np.unique(keys, return_inverse=True)
            keys, size = keys.reshape(-1), len(found)
        keys, size = keys * count + own, size * count
    return keys, size


def _codes(column: Column) -> tuple[Column, int]:
    """Return a number for each row of a column, from 0 on, the same for the same; and a bound above all of them."""
    if column.ndim > 1:
        found, codes = np.unique(column.reshape(len(column), -1), axis=0, return_inverse=True)
        return codes.reshape(-1), max(len(found), 1)
    if column.dtype.kind in "biu" and len(column):
        low, high = int(column.min()), int(column.max())
        if high - low < _TABLE:
            return column.astype(np.int64) - low, high - low + 1
    if column.dtype.kind != "O":
        found, codes = np.unique(column, return_inverse=True)
        return codes.reshape(-1), max(len(found), 1)
    known: dict[Any, int] = {}
    codes = np.array([known.setdefault(value, len(known)) for value in column.tolist()], np.int64)
    return codes, max(len(known), 1)

"""At which places of the sequence: `Positions`, integers for every example of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from ._errors import SpecError

Rows = tuple[tuple[int, ...], ...]
"""One tuple of integers for each example."""
Span = tuple[int, int]
"""The first column of a real token, and one past the last: what padding is not in."""
Steps = Literal["all"] | tuple[int, ...]


@dataclass(frozen=True)
class Positions:
    """Which places of the sequence, and which heads there, example by example.

    Positions are column numbers of the padded batch, from 0; nothing here is negative. Rows may differ in length, and
    may name a place twice, which only makes sense where it is read.

    Args:
        rows: one tuple of positions for each example; `None` for every position.
        heads: one tuple of head numbers for each example; `None` for every head (the whole vector).
        steps: while generating, which generated tokens: numbers from 0, `"all"`, or none.

    Raises:
        SpecError: something else than integers from 0, or positions and heads of unequal numbers of examples.

    >>> Positions(((4,), (2, 3))).widest
    2
    """

    rows: Rows | None = None
    heads: Rows | None = None
    steps: Steps = ()

    def __post_init__(self) -> None:
        for name in ("rows", "heads"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
                    raise SpecError(f"{name} of Positions are integers for each example; found {value!r:.80}")
                object.__setattr__(self, name, tuple(_numbers(row, name) for row in value))
        if self.steps != "all":
            object.__setattr__(self, "steps", _numbers(self.steps, "steps"))
        if self.rows is not None and self.heads is not None and len(self.rows) != len(self.heads):
            raise SpecError(f"positions name {len(self.rows)} examples, but heads {len(self.heads)}")

    @property
    def widest(self) -> int | None:
        """The largest number of positions in an example; `None` when all positions are meant."""
        return None if self.rows is None else max((len(row) for row in self.rows), default=0)

    @property
    def batch(self) -> int | None:
        """How many examples are named; `None` when neither positions nor heads are."""
        named = self.rows if self.rows is not None else self.heads
        return None if named is None else len(named)

    @property
    def distinct(self) -> bool:
        """Whether no example names a place twice."""
        return all(len(set(row)) == len(row) for rows in (self.rows, self.heads) for row in rows or ())

    def check_distinct(self, where: str) -> None:
        """Refuse a place that an example names twice: written twice, it would have two values.

        Args:
            where: what is written there, for the message.

        Raises:
            SpecError: a position or a head is named twice.

        >>> Positions(((4, 4),)).check_distinct("mlp_output")
        Traceback (most recent call last):
        align_transformers._errors.SpecError: mlp_output: example 0 names a position twice: [4, 4]
        """
        for what, rows in (("position", self.rows), ("head", self.heads)):
            for example, row in enumerate(rows or ()):
                if len(set(row)) < len(row):
                    raise SpecError(f"{where}: example {example} names a {what} twice: {list(row)}")


def _numbers(values: Iterable[Any], what: str) -> tuple[int, ...]:
    if type(values) is tuple and set(map(type, values)) == {int} and min(values) >= 0:
        return values  # as it should be: there may be a row for each of many cells
    try:
        numbers = tuple(_number(value) for value in values)
    except TypeError as error:
        raise SpecError(f"{what} of Positions are integers; found {values!r}") from error
    if any(number < 0 for number in numbers):
        raise SpecError(f"{what} of Positions count from 0; found {list(numbers)}")
    return numbers


def _number(value: Any) -> int:
    """Return a whole number as a plain integer; a truth value is none, though Python counts it as one.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is a truth value")
    return index(value)


def read_steps(steps: Any, unsaid: Steps = ()) -> Steps:
    """Return which generated tokens a caller means.

    Args:
        steps: one number from 0, several (a list, a tuple, a range, an array or a tensor), or `"all"`; `None` where
            nothing is said.
        unsaid: what `None` means.

    Raises:
        SpecError: it is something else, a truth value or a negative number among others.

    >>> import numpy as np
    >>> read_steps(2), read_steps(np.int64(2)), read_steps(range(3)), read_steps(None, "all")
    ((2,), (2,), (0, 1, 2), 'all')
    """
    if steps is None:
        return unsaid
    if isinstance(steps, str) and steps == "all":
        return "all"
    plain = steps.tolist() if hasattr(steps, "tolist") else steps
    try:
        several = isinstance(plain, Iterable) and not isinstance(plain, str | bytes)
        numbers = tuple(map(_number, plain if several else [plain]))
    except TypeError as error:
        raise SpecError(f"steps is a number, several numbers, or 'all'; found {steps!r}") from error
    if any(number < 0 for number in numbers):
        raise SpecError(f"steps count from 0; found {steps!r}")
    return numbers


EVERYWHERE = Positions()

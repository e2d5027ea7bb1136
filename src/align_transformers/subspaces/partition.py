"""In which coordinates: a partition of a vector's coordinates, and the parts chosen for each example."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import lru_cache
from operator import eq, index
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .._errors import SpecError

Choice = tuple[tuple[int, ...] | None, ...]
"""The parts chosen for each example: `choice[example]` is a tuple of part numbers; `None` where nothing is chosen."""


@dataclass(frozen=True)
class Partition:
    """Named parts of the coordinates of a vector.

    Args:
        parts: the coordinate numbers of each part, from 0; those that follow one another are kept as a range.

    Raises:
        SpecError: there is no part, or one is empty, negative, or names a coordinate twice.

    >>> Partition.of([[0, 2], [2, 3, 5]]).parts
    (range(0, 2), (2, 3, 5))
    """

    parts: tuple[range | tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SpecError("a subspace partition needs at least one part; found none")
        object.__setattr__(self, "parts", tuple(map(_shortest, self.parts)))
        for number, part in enumerate(self.parts):
            distinct = isinstance(part, range) or len(set(part)) == len(part)
            if not part or not distinct or (part[0] if isinstance(part, range) else min(part)) < 0:
                shown = str(list(part[:20]))[:80]
                raise SpecError(f"part {number} of the subspace partition is {shown}: distinct coordinates from 0")

    @classmethod
    def of(cls, spec: Iterable[Any] | Partition) -> Partition:
        """Read a partition as users write it.

        Args:
            spec: one entry a part. A list or tuple of exactly two integers is a half-open range `[low, high]`, a list
                or tuple of such pairs the ranges one after the other; any other list, a set, a `range`, an array or a
                tensor names the coordinates one by one. An array or tensor instead of the outer list is read as a list
                of lists: `(n_parts, 2)` is `n_parts` ranges. A partition is returned as it is.

        Raises:
            SpecError: an entry is not made of integers, or as for the class.
        """
        if isinstance(spec, cls):
            return spec
        entries = spec.tolist() if hasattr(spec, "tolist") else spec
        if isinstance(entries, str) or not isinstance(entries, Iterable):
            raise SpecError(f"a subspace partition is a list with an entry for each part; found {spec!r}")
        return cls(tuple(_coordinates(entry) for entry in entries))

    @property
    def end(self) -> int:
        """One more than the largest coordinate named."""
        return 1 + max(part[-1] if isinstance(part, range) else max(part) for part in self.parts)

    def as_lists(self) -> list[list[Any]]:
        """Return the parts as lists of integers that `of` reads back, for JSON.

        >>> Partition.of([[0, 3], {0, 4}, [3, 1, 2]]).as_lists()
        [[0, 3], [[0, 1], [4, 5]], [3, 1, 2]]
        """
        return [_as_list(part) for part in self.parts]


def _shortest(part: range | tuple[int, ...]) -> range | tuple[int, ...]:
    """Return a part as a range where it is one of two coordinates or more."""
    if len(part) < 2 or part[-1] - part[0] != len(part) - 1:
        return tuple(part)
    whole = range(part[0], part[-1] + 1)
    return whole if isinstance(part, range) or all(map(eq, part, whole)) else tuple(part)


def _as_list(part: range | tuple[int, ...]) -> list[Any]:
    """Return one part as a range where it is one; two other coordinates are two ranges, as `[a, b]` would be one."""
    if isinstance(part, range):
        return [part.start, part.stop]
    return [[c, c + 1] for c in part] if len(part) == 2 else list(part)


def _coordinates(entry: Any) -> range | tuple[int, ...]:
    """Return the coordinates of one part."""
    values = entry.tolist() if hasattr(entry, "tolist") else entry
    try:
        if isinstance(entry, range):
            return entry
        if isinstance(entry, list | tuple) and entry and all(isinstance(one, list | tuple) for one in entry):
            ranges = [_range(one) for one in entry]
            return ranges[0] if len(ranges) == 1 else tuple(coordinate for one in ranges for coordinate in one)
        numbers = tuple(index(value) for value in values)
    except TypeError as error:
        raise SpecError(f"a part of a subspace partition is made of integers; found {entry!r:.80}") from error
    if isinstance(entry, Set):
        return tuple(sorted(numbers))
    return _range(entry) if isinstance(entry, list | tuple) and len(numbers) == 2 else numbers


def _range(entry: Any) -> range:
    """Return the coordinates of a half-open range `[low, high]`."""
    if len(entry) != 2:
        raise SpecError(f"a range of a subspace partition is [low, high]; found {str(list(entry))[:80]}")
    low, high = (index(value) for value in entry)
    if low >= high:
        raise SpecError(f"subspace range {list(entry)} is empty: write [low, high] with low < high")
    return range(low, high)


@lru_cache(maxsize=256)
def coordinate_mask(choice: Choice, partition: Partition | None, width: int) -> Bool[Tensor, "batch width"]:
    """Mark the chosen coordinates of each example.

    Args:
        choice: part numbers for each example, `None` for all coordinates; without a partition each coordinate is a part
            of its own.
        partition: the parts, or `None`.
        width: number of coordinates.

    Returns:
        True where a coordinate belongs to a chosen part. Cached: do not write into it.

    Raises:
        SpecError: a part number or a coordinate lies outside.

    >>> coordinate_mask(((0,), (1,)), Partition.of([[0, 2], [2, 3]]), 3).int().tolist()
    [[1, 1, 0], [0, 0, 1]]
    """
    if partition is not None and partition.end > width:
        raise SpecError(f"the subspace partition names coordinate {partition.end - 1}, but there are only {width}")
    with torch.inference_mode(False):  # the cached mask may be used under autograd later
        mask = torch.zeros(len(choice), width, dtype=torch.bool)
    count = width if partition is None else len(partition.parts)
    for example, numbers in enumerate(choice):
        if numbers is None:
            mask[example] = True
        for number in numbers or ():
            if not 0 <= number < count:
                raise SpecError(f"subspace {number} of example {example} does not exist: there are {count}, from 0")
            part = (number,) if partition is None else partition.parts[number]
            mask[example, slice(part.start, part.stop) if isinstance(part, range) else list(part)] = True
    return mask

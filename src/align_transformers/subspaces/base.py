"""In which coordinates: a partition of a vector's coordinates, and the parts chosen for each example."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from .._errors import SpecError

Choice = tuple[tuple[int, ...], ...]
"""The parts chosen for each example: `choice[example]` is a tuple of part numbers."""


@dataclass(frozen=True)
class Partition:
    """Named parts of the coordinates of a vector.

    Args:
        parts: one tuple of coordinate numbers a part, from 0.

    Raises:
        SpecError: there is no part, or one is empty, negative, or names a coordinate twice.

    >>> Partition.of([[0, 2], [2, 3, 5]]).parts
    ((0, 1), (2, 3, 5))
    """

    parts: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SpecError("a subspace partition needs at least one part; found none")
        for number, part in enumerate(self.parts):
            if not part or min(part) < 0 or len(set(part)) < len(part):
                raise SpecError(f"part {number} of the subspace partition is {list(part)}: distinct coordinates from 0")

    @classmethod
    def of(cls, spec: Iterable[Any]) -> Partition:
        """Read a partition as users write it.

        Args:
            spec: one entry a part. A list or tuple of exactly two integers is a half-open range `[low, high]`;
                any other list, a set, a `range`, an array or a tensor names the coordinates one by one. An array or
                tensor instead of the outer list is read as a list of lists: `(n_parts, 2)` is `n_parts` ranges.

        Raises:
            SpecError: an entry is not made of integers, or as for the class.
        """
        entries = spec.tolist() if hasattr(spec, "tolist") else spec
        if isinstance(entries, str) or not isinstance(entries, Iterable):
            raise SpecError(f"a subspace partition is a list with an entry for each part; found {spec!r}")
        return cls(tuple(_coordinates(entry) for entry in entries))

    @property
    def end(self) -> int:
        """One more than the largest coordinate named."""
        return 1 + max(max(part) for part in self.parts)


def _coordinates(entry: Any) -> tuple[int, ...]:
    """Return the coordinates of one part."""
    values = entry.tolist() if hasattr(entry, "tolist") else entry
    try:
        numbers = tuple(index(value) for value in values)
    except TypeError as error:
        raise SpecError(f"a part of a subspace partition is made of integers; found {entry!r}") from error
    if isinstance(entry, Set):
        return tuple(sorted(numbers))
    if isinstance(entry, list | tuple) and len(numbers) == 2:
        if numbers[0] >= numbers[1]:
            raise SpecError(f"subspace range {list(entry)} is empty: write [low, high] with low < high")
        return tuple(range(*numbers))
    return numbers


@lru_cache(maxsize=256)
def coordinate_mask(choice: Choice, partition: Partition | None, width: int) -> Bool[Tensor, "batch width"]:
    """Mark the chosen coordinates of each example.

    Args:
        choice: part numbers for each example; without a partition each coordinate is a part of its own.
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
        for number in numbers:
            if not 0 <= number < count:
                raise SpecError(f"subspace {number} of example {example} does not exist: there are {count}, from 0")
            mask[example, list(partition.parts[number]) if partition else number] = True
    return mask

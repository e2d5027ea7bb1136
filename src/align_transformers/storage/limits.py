"""What a folder may cost: how deep, how many, how large; looked at before anything is built, summed over the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._errors import ArtifactError

MOST_BYTES = 16 * 2**20
"""Of a JSON file."""
DEEPEST = 32
"""Lists and dicts in each other."""
MOST_INTERVENTIONS = 2**13
"""And as many representations."""
MOST_COORDINATES = 2**20
"""That the partitions of a file name one by one, together; a range is two numbers, whatever its length."""
WIDEST = 2**24
"""Coordinates of a vector."""

_FEW = 2**16  # what a size may be, however few weights there are
_LONGEST = 600  # of a message


def clipped(message: str) -> str:
    """Return a message of which the middle is left out if it is too long.

    >>> clipped("short"), len(clipped("x" * 10**6))
    ('short', 600)
    """
    if len(message) <= _LONGEST:
        return message
    end = _LONGEST // 4
    return f"{message[: _LONGEST - end - 5]} ... {message[-end:]}"


def check_depth(value: Any, name: str) -> None:
    """Refuse plain data whose lists and dicts are too deep in each other.

    Raises:
        ArtifactError: they are.
    """
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ArtifactError(f"{name} has lists and dicts more than {DEEPEST} deep in each other")


class Limits:
    """What the interventions of one file have asked for so far."""

    def __init__(self) -> None:
        self._named = 0

    def count(self, entries: int, what: str) -> None:
        """Refuse too many interventions or representations."""
        if entries > MOST_INTERVENTIONS:
            raise ArtifactError(f"{what} has {entries} entries; at most {MOST_INTERVENTIONS} are read")

    def sizes(self, arguments: Mapping[str, Any], elements: int, where: str) -> None:
        """Refuse numbers that ask for far more than the file holds.

        Args:
            arguments: of a constructor, those of operations and subspaces in them.
            elements: numbers in the tensors that come with them.
            where: name of the entry, for messages.
        """
        for name, value in arguments.items():
            if isinstance(value, Mapping):  # an operation or a subspace, or its arguments
                self.sizes(value, elements, f"{where}.{name}")
            most = WIDEST if name in ("embed_dim", "width", "interchange_dim") else max(elements, _FEW)
            if type(value) is int and abs(value) > most and name != "seed":
                raise ArtifactError(
                    f"{where}.arguments.{name} is {value!r:.30}; with {elements} weights it is at most {most}"
                )

    def partition(self, parts: Any, where: str) -> None:
        """Refuse a partition that is none, or whose coordinates would fill the memory.

        Args:
            parts: as `Partition.as_lists` writes them; `None` for none.
            where: its name, for messages.
        """
        if parts is None:
            return
        if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
            raise ArtifactError(f"{where} is made of lists of numbers; found {parts!r:.80}")
        for part in parts:
            ranges = part if part and isinstance(part[0], list) else [part]
            for one in ranges:
                if not isinstance(one, list) or any(type(number) is not int for number in one):
                    raise ArtifactError(f"{where} mixes numbers and others: {part!r:.80}")
                if any(not 0 <= number <= WIDEST for number in one):
                    raise ArtifactError(f"{where} names coordinates outside 0 to {WIDEST}: {one!r:.80}")
                alone = len(ranges) == 1 and len(one) == 2
                self._named += 2 if alone else max(one[1] - one[0], 2) if len(one) == 2 else len(one)
        if self._named > MOST_COORDINATES:
            raise ArtifactError(f"{where}: the partitions of this file name over {MOST_COORDINATES} coordinates")

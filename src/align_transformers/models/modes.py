"""Attributes that are held for a time by several at once: the first notes what they were, the last puts them back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class _Hold:
    """An attribute that is held.

    Args:
        of: the object.
        before: what it was.
        holders: how many hold it.
    """

    of: Any
    before: Any
    holders: int = 0


_lock = threading.RLock()
_holds: dict[tuple[int, str], _Hold] = {}


@contextmanager
def holding(objects: Iterable[Any], name: str, value: Any) -> Iterator[None]:
    """Hold an attribute of some objects at a value; those that have it already, and that nobody holds, are left alone.

    Args:
        objects: any.
        name: of the attribute.
        value: the same for all who hold it.

    >>> from types import SimpleNamespace
    >>> one = SimpleNamespace(on=True)
    >>> with holding([one], "on", False), holding([one], "on", False):
    ...     print(one.on)
    False
    >>> one.on
    True
    """
    held: list[tuple[int, str]] = []
    try:
        with _lock:
            for one in objects:
                key = id(one), name
                if key not in _holds:
                    before = getattr(one, name)
                    if before == value:
                        continue
                    _holds[key] = _Hold(one, before)
                    setattr(one, name, value)
                _holds[key].holders += 1
                held.append(key)
        yield
    finally:
        with _lock:
            for key in held:
                hold = _holds[key]
                hold.holders -= 1
                if not hold.holders:
                    del _holds[key]
                    setattr(hold.of, name, hold.before)

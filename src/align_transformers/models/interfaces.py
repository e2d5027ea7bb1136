"""Functions around those that transformers' attention and experts interfaces hand out, for one thread at a time.

The look-up is a method of a class that all models share. It is exchanged while anyone needs it, and put back when the
last one leaves, in whatever order they come and go; what it hands out is changed only in the thread that asked for it.
Threads that a model starts on its own during a pass, as `nn.DataParallel` does, get what they would have got.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

Around = Callable[[Callable[..., Any], Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Called as `around(function, eager, module, inputs, options)` instead of `function(module, *inputs, **options)`."""


@dataclass(eq=False)
class _Detour:
    """The exchanged look-up of one interface.

    Args:
        original: the look-up as it was.
        users: how many need the detour.
        lookup: the exchanged one.
    """

    original: Callable[..., Any]
    users: int = 0
    lookup: Callable[..., Any] | None = None


class _Thread(threading.local):
    """What one thread wants to be called, the innermost last; each for the detour that it came with."""

    def __init__(self) -> None:
        self.arounds: list[tuple[_Detour, Around]] = []


_lock = threading.Lock()
_detours: dict[Any, _Detour] = {}
_thread = _Thread()


@contextmanager
def around_interface(interface: Any, around: Around) -> Iterator[None]:
    """Let every function that an interface hands out in this thread go through `around` while the context is open.

    Where several are open, the one that was opened last is called first, with the next one as its function.

    Args:
        interface: a class with a method `get_interface(implementation, default)`.
        around: what is called instead.
    """
    entry = (_join(interface), around)
    mine = _thread.arounds
    mine.append(entry)
    try:
        yield
    finally:
        mine[:] = [other for other in mine if other is not entry]
        _leave(interface, entry[0])


def _join(interface: Any) -> _Detour:
    """Count one more who needs the detour; the first makes it."""
    with _lock:
        detour = _detours.get(interface)
        if detour is None:
            detour = _detours[interface] = _Detour(interface.get_interface)
            detour.lookup = interface.get_interface = _lookup(detour)
        detour.users += 1
        return detour


def _leave(interface: Any, detour: _Detour) -> None:
    """Count one less; the last puts the look-up back, unless another's has come over it, which would be lost."""
    with _lock:
        detour.users -= 1
        if not detour.users:
            del _detours[interface]
            if interface.get_interface is detour.lookup:
                interface.get_interface = detour.original


def _lookup(detour: _Detour) -> Callable[..., Any]:
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = detour.original(self, *args, **kwargs)
        default = kwargs["default"] if "default" in kwargs else args[-1]
        for of, around in _thread.arounds:
            if of is detour:
                function = _through(around, function, default)
        return function

    return get_interface


def _through(around: Around, function: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    def call(module: nn.Module, *inputs: Any, **options: Any) -> Any:
        return around(function, default, module, inputs, options)

    return call

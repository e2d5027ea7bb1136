"""Methods that go another way for a time: each context goes its own, and the last to leave puts back what was there.

The method is exchanged while anyone needs it, in whatever order they come and go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, update_wrapper
from types import MethodType
from typing import Any

from torch import nn

from .scope import Scope, innermost

ModuleForward = Callable[..., Any]
"""A bound method, such as the `forward` of a module."""

StandIn = Callable[[ModuleForward], ModuleForward]
"""From a bound method to what is called in its place."""


class _Detour:
    """An exchanged method.

    Args:
        holder: the module, or the class, whose method it is.
        name: of the method.

    Attributes:
        entries: each stand-in with the scope in which it acts; exchanged as a whole, never written into.
    """

    def __init__(self, holder: Any, name: str) -> None:
        self._holder, self._name = holder, name
        self._own = vars(holder).get(name)
        self._original = getattr(holder, name)
        self.entries: tuple[tuple[Scope, StandIn], ...] = ()
        self._placed = self._place()

    def _place(self) -> Any:
        """Put the router where the method was; what looks at its signature sees that of the method."""

        def route(this: Any, *args: Any, **kwargs: Any) -> Any:
            function = self._method_of(this)
            for owner, stand_in in self.entries:
                if owner.acts:
                    function = stand_in(function)
            return function(*args, **kwargs)

        holder, original = self._holder, self._original
        placed: Any
        if isinstance(holder, type):
            placed = update_wrapper(route, original)
            setattr(holder, self._name, placed)
            return placed
        if getattr(original, "__self__", None) is holder:
            placed = MethodType(update_wrapper(route, original.__func__), holder)
        else:
            placed = update_wrapper(partial(route, holder), original)
        vars(holder)[self._name] = placed
        return placed

    def _method_of(self, this: Any) -> ModuleForward:
        """Return the method as it was; of a copy of the module, which may have been made meanwhile, its class's."""
        if isinstance(self._holder, type):
            return MethodType(self._original, this)
        return self._original if this is self._holder else MethodType(getattr(type(this), self._name), this)

    def put_back(self) -> None:
        """Put the method back, unless somebody else's has come over it, which would be lost."""
        if vars(self._holder).get(self._name) is not self._placed:
            return
        if isinstance(self._holder, type):
            if self._own is None:
                delattr(self._holder, self._name)
            else:
                setattr(self._holder, self._name, self._own)
        elif self._own is None:
            del vars(self._holder)[self._name]
        else:
            vars(self._holder)[self._name] = self._own


_lock = threading.RLock()
_detours: dict[tuple[int, str], _Detour] = {}


@contextmanager
def detour(holder: Any, name: str, stand_in: StandIn) -> Iterator[None]:
    """Let a method go another way in the present scope while the context is open.

    Where several are open, the one that was opened last is called first, with the next one as its method.

    Args:
        holder: a module, or a class whose objects share the method.
        name: of the method.
        stand_in: from the bound method to what is called in its place.
    """
    key, entry = (id(holder), name), (innermost(), stand_in)
    with _lock:
        if key not in _detours:
            _detours[key] = _Detour(holder, name)
        _detours[key].entries += (entry,)
    try:
        yield
    finally:
        with _lock:
            made = _detours[key]
            made.entries = tuple(other for other in made.entries if other is not entry)
            if not made.entries:
                del _detours[key]
                made.put_back()


def is_detoured(holder: Any, name: str) -> bool:
    """Whether a method goes another way in the present context."""
    made = _detours.get((id(holder), name))
    return made is not None and any(owner.acts for owner, _ in made.entries)


@contextmanager
def forwards(stand_ins: Mapping[nn.Module, StandIn]) -> Iterator[None]:
    """Give modules another `forward` in the present scope while the context is open.

    Args:
        stand_ins: for each module a function from its `forward` to the one that takes its place.
    """
    with ExitStack() as stack:
        for module, stand_in in stand_ins.items():
            stack.enter_context(detour(module, "forward", stand_in))
        yield

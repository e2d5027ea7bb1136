"""Hooks of one thread: those on a module are called in every thread that runs it."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads, which may run the same model meanwhile.

    Args:
        hook: returns `None` where it changes nothing.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> hook = in_this_thread(lambda module, inputs: "seen")
    >>> with ThreadPoolExecutor(1) as other:
    ...     hook(None, ()), other.submit(hook, None, ()).result()
    ('seen', None)
    """
    thread = get_ident()
    return lambda *given: hook(*given) if get_ident() == thread else None

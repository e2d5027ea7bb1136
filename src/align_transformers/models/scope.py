"""Whose a hook is. Modules are shared by all threads and asyncio tasks; what a pass sets up acts in its context alone.

A context is what `contextvars` has: a thread has its own, an asyncio task a copy of that which made it. Threads that a
model starts on its own during a pass, as `nn.DataParallel` does, have an empty one: nothing acts there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn


class Scope:
    """One pass; or a time for which edits stay, whatever passes come; or one call of a model in such a time.

    Args:
        lasting: it goes on in the passes that are run while it is open.
        of: the lasting ones that act in this call of a model.
        holder: what it was opened for, for those who look for it among the acting ones.
    """

    __slots__ = ("holder", "lasting", "of")

    def __init__(self, lasting: bool = False, of: tuple[Scope, ...] = (), holder: Any = None) -> None:
        self.lasting, self.of, self.holder = lasting, of, holder

    @property
    def acts(self) -> bool:
        """Whether what belongs to it acts in the present context."""
        return self in _acting.get()


_acting: ContextVar[tuple[Scope, ...]] = ContextVar("_acting", default=())
_registering = threading.RLock()


def acting() -> tuple[Scope, ...]:
    """Return the scopes that act in the present context, the innermost last."""
    return _acting.get()


def innermost() -> Scope:
    """Return the scope to which belongs what is set up now."""
    scopes = _acting.get()
    assert scopes, "hooks and stand-ins are set up in a scope"
    return scopes[-1]


@contextmanager
def scope(new: Scope | None = None, *, alone: bool = False) -> Iterator[Scope]:
    """Open a scope in the present context. A pass sees nothing of others that it is run in, only of what lasts.

    Args:
        new: the scope; default: of a pass.
        alone: nothing else acts in it.

    >>> with scope() as outer, scope() as inner:
    ...     outer.acts, inner.acts
    (False, True)
    """
    new = Scope() if new is None else new
    before = _acting.get()
    _acting.set((*(one for one in before if not alone and _goes_on(one, new)), new))
    try:
        yield new
    finally:  # what lasts may end in another order than it began
        _acting.set(tuple(one for one in _acting.get() if one is not new) if new.lasting and not alone else before)


def _goes_on(one: Scope, new: Scope) -> bool:
    """Whether a scope acts in one that is opened in it: a pass ends all others, a call those of the same edits."""
    return one.lasting or new.lasting or (bool(new.of) and not any(kept in new.of for kept in one.of))


def plainly(function: Callable[..., Any], *given: Any) -> Any:
    """Return what a function gives in a context in which nothing acts: models that it runs are as they are."""
    token = _acting.set(())
    try:
        return function(*given)
    finally:
        _acting.reset(token)


class ScopedHook:
    """A hook of the scope in which it is made. In other contexts it does nothing, with whatever it is called.

    Args:
        act: called as `act(module, ...)`; returns `None` where it changes nothing.
    """

    __slots__ = ("_act", "_scope")

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act, self._scope = act, innermost()

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Act, in its own context."""
        return self._act(module, *given) if self._scope in _acting.get() else None

    def __deepcopy__(self, _memo: Any) -> ScopedHook:
        return self  # on a copy of a module that is made meanwhile: it ends with its scope

    @property
    def acts(self) -> bool:
        """Whether it does anything in the present context."""
        return self._scope.acts


def hook_before(module: nn.Module, act: Callable[..., Any], *, first: bool = False) -> Callable[[], None]:
    """Call `act(module, args, kwargs)` before every call of a module in this scope; return what ends that.

    Args:
        module: any.
        act: returns `None`, or the arguments that the module gets.
        first: before the hooks that stand already, not after them.
    """
    with _registering:  # PyTorch's count of handles knows no threads
        return module.register_forward_pre_hook(ScopedHook(act), with_kwargs=True, prepend=first).remove


def hook_after(
    module: nn.Module, act: Callable[..., Any], *, first: bool = False, with_kwargs: bool = False
) -> Callable[[], None]:
    """Call `act(module, args, output)` after every call of a module in this scope; return what ends that.

    Args:
        module: any.
        act: returns `None`, or what the module returns.
        first: before the hooks that stand already, not after them.
        with_kwargs: call `act(module, args, kwargs, output)`.
    """
    with _registering:
        return module.register_forward_hook(ScopedHook(act), with_kwargs=with_kwargs, prepend=first).remove


@contextmanager
def before_call(module: nn.Module, act: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Call `act(module, (args, kwargs))` before every call of a module in this scope while the context is open.

    What it returns, if not `None`, are the arguments that the module gets.
    """
    end = hook_before(module, partial(_with_arguments, act))
    try:
        yield
    finally:
        end()


@contextmanager
def after_call(module: nn.Module, act: Callable[[nn.Module, Any, Any], Any], *, first: bool = False) -> Iterator[None]:
    """Call `act(module, (args, kwargs), output)` after every call of a module in this scope while the context is open.

    What it returns, if not `None`, is what the module returns.

    Args:
        module: any.
        act: to be called.
        first: before the hooks that stand already, not after them.
    """
    end = hook_after(module, partial(_with_arguments, act), first=first, with_kwargs=True)
    try:
        yield
    finally:
        end()


def _with_arguments(act: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any, *output: Any) -> Any:
    return act(module, (args, kwargs), *output)

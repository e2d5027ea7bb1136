"""Passes that nobody else hears: a dummy is no run of the user's, so the user's hooks are not called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from .detours import ModuleForward, detour
from .scope import Scope, ScopedHook, scope

PARTS = (
    "torch.nn.",
    "torch.distributed.",
    "transformers.",
    "accelerate.",
    "peft.",
    "deepspeed.",
    "bitsandbytes.",
    "compressed_tensors.",
    "optimum.",
)
"""Whose hooks are a part of how a model computes: they norm, gather and move weights, and hand on hidden states."""

BeforeModule = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Called before a module is, with its arguments."""

AfterModule = Callable[[nn.Module, Any], Any]
"""Called after a module was, with its output; returns another one, or `None`."""


@contextmanager
def quietly(entering: BeforeModule | None = None, leaving: AfterModule | None = None) -> Iterator[None]:
    """Call no hooks in this context but those that are parts of a model, and nothing that others have set up.

    The hooks are left as they stand, and are called meanwhile in other contexts. Hooks that a pass of ours registers
    are called. Modules that were compiled in place run as they are written.

    Args:
        entering: called before every module, after its hooks.
        leaving: called after every module, after its hooks.
    """

    def stand_in(call: ModuleForward) -> ModuleForward:
        return partial(_call, call.__self__, entering, leaving)  # type: ignore[attr-defined]

    with scope(Scope(lasting=True), alone=True), detour(nn.Module, "__call__", stand_in):
        yield


def _call(
    module: nn.Module, entering: BeforeModule | None, leaving: AfterModule | None, *args: Any, **kwargs: Any
) -> Any:
    """Call a module as PyTorch does, with some of its hooks."""
    for hook, wide in _parts(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs):
        given = hook(module, args, kwargs) if wide else hook(module, args)
        if given is not None:
            args, kwargs = given if wide else (given if isinstance(given, tuple) else (given,), kwargs)
    if entering is not None:
        entering(module, args, kwargs)
    output = module.forward(*args, **kwargs)
    for hook, wide in _parts(module._forward_hooks, module._forward_hooks_with_kwargs):
        new = hook(module, args, kwargs, output) if wide else hook(module, args, output)
        output = output if new is None else new
    new = None if leaving is None else leaving(module, output)
    return output if new is None else new


def _parts(hooks: Mapping[int, Any], wide: Mapping[int, bool]) -> list[tuple[Callable[..., Any], bool]]:
    """Return the hooks that are parts of a model, and whether each is called with keyword arguments, too."""
    return [(hook, number in wide) for number, hook in (*hooks.items(),) if is_part(hook)]


def is_part(hook: Any) -> bool:
    """Whether a hook is ours or a framework's, rather than the user's.

    >>> is_part(print), is_part(nn.functional.relu)
    (False, True)
    """
    while isinstance(hook, partial):
        hook = hook.func
    return isinstance(hook, ScopedHook) or f"{getattr(hook, '__module__', None) or ''}.".startswith(PARTS)

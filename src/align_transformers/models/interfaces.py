"""Functions around those that transformers' attention and experts interfaces hand out, for one scope at a time.

The look-up is a method of a class that all models share; what it hands out is changed only in the context that asked
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .detours import detour

Around = Callable[[Callable[..., Any], Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Called as `around(function, eager, module, inputs, options)` instead of `function(module, *inputs, **options)`."""


@contextmanager
def around_interface(interface: Any, around: Around) -> Iterator[None]:
    """Let every function that an interface hands out in this scope go through `around` while the context is open.

    Where several are open, the one that was opened last is called first, with the next one as its function.

    Args:
        interface: a class with a method `get_interface(implementation, default)`.
        around: what is called instead.
    """

    def stand_in(lookup: Callable[..., Any]) -> Callable[..., Any]:
        def get_interface(*args: Any, **kwargs: Any) -> Any:
            default = kwargs["default"] if "default" in kwargs else args[-1]
            return _through(around, lookup(*args, **kwargs), default)

        return get_interface

    with detour(interface, "get_interface", stand_in):
        yield


def _through(around: Around, function: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    def call(module: nn.Module, *inputs: Any, **options: Any) -> Any:
        return around(function, default, module, inputs, options)

    return call

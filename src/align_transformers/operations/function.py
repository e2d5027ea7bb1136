"""Any function of coordinates, and how many arguments it is to be called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, final

from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from .operation import Operation, SourceKind

_NAMES = ("base", "source", "subspaces")


@final
class Function(Operation):
    """Any function or module `f(base)` or `f(base, source)` of coordinates.

    Args:
        function: returns the new coordinates, or `None` to leave the base's as they are. It gets the source's if there
            is one, else `None`, and may write into what it gets. Code is no data: it cannot be saved.

    Raises:
        SpecError: it takes no positional argument, or more than two, or does not tell.

    >>> import torch
    >>> Function(lambda base: base.relu()).new(torch.tensor([-1.0, 1.0]), None).tolist()
    [0.0, 1.0]
    """

    repeatable = False  # a function may count its calls, or draw numbers

    @checked
    def __init__(self, function: Callable[..., Tensor | None]) -> None:
        super().__init__()
        self.function, self.arity = function, arity(function)
        if self.arity > 2:
            raise SpecError(f"an operation takes (base) or (base, source); {function!r} takes more")
        self.source_kind: SourceKind = "none" if self.arity == 1 else "optional"

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return what the function returns, or `base` where it returns `None`."""
        new = self.function(*(base.clone(), None if source is None else source.clone())[: self.arity])
        return base if new is None else new

    def arguments(self) -> dict[str, Any]:
        """Refuse: a function cannot be written down as data.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            f"Function holds {self.function!r}, which is code and cannot be saved as data: loading runs nothing that a "
            "file names. Write a subclass of Intervention, and load it with that class"
        )


def arity(function: Callable[..., Any]) -> int:
    """Count the arguments that `function` is to be called with; `*args` stands for all three."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters.values()
    except ValueError:
        raise SpecError(f"{function!r} does not tell its arguments: write lambda base: ... around it") from None
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 3
    count = len(list(_taken(parameters)))
    if not 1 <= count <= 3:
        raise SpecError(
            f"an intervention function takes (base), (base, source) or (base, source, subspaces); {function!r} takes "
            f"{count} positional arguments"
        )
    return count


def _taken(parameters: Any) -> Iterator[inspect.Parameter]:
    """Yield the positional parameters up to the first that has a default and is not one of ours."""
    for parameter in parameters:
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if not positional or (parameter.default is not parameter.empty and parameter.name not in _NAMES):
            return
        yield parameter

"""Any function as an intervention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from .._errors import SpecError
from ..operations.function import arity
from ..subspaces import Choice
from .intervention import Intervention


@final
class FunctionIntervention(Intervention):
    """Any function or module `f(base)`, `f(base, source)` or `f(base, source, subspaces)`.

    Parameters of `f` that have a default and another name than these are left alone (`lambda base, scale=3: ...`).
    Unless `f` takes `subspaces`, its result is used in the chosen coordinates only.

    Args:
        function: returns the new value, or `None` to leave the base as it is. It gets the source if there is one, else
            `None`, and may write into what it gets. A module's parameters are trained like any other intervention's.
        **kwargs: as for `Intervention`.

    Raises:
        SpecError: the function takes no positional argument, or more than three, or does not tell.

    >>> FunctionIntervention(lambda base: base * 3)(torch.ones(1, 1, 1)).tolist()
    [[[3.0]]]
    """

    repeatable = False  # a function may count its calls, or draw numbers

    def __init__(self, function: Callable[..., Tensor | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.arity = arity(function)
        self.source_kind = "none" if self.arity == 1 else "optional"

    def arguments(self) -> dict[str, Any]:
        """Refuse: a function cannot be written down as data.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            f"FunctionIntervention holds {self.function!r}, which is code and cannot be saved as data: loading runs "
            "nothing that a file names. Write a subclass of Intervention, and load it with that class"
        )

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return what the function returns, or `base` where it returns `None`."""
        value = self.source_representation if source is None else source
        given = base.clone(), None if value is None else value.clone(), subspaces
        new = self.function(*given[: self.arity])
        if new is None:
            return base
        mask = None if self.arity == 3 else self.chosen(base, subspaces)
        return new if mask is None else torch.where(mask, new, base)

"""Any function as an intervention, and anything as its subspaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from .._checked import checked
from .._errors import InterventionError, SpecError
from ..operations.function import arity
from ..subspaces import Choice
from .intervention import Intervention


@final
class FunctionIntervention(Intervention):
    """Any function or module `f(base)`, `f(base, source)` or `f(base, source, subspaces)`.

    Where the edit of a plan reads several values, `source` is a tuple of them.

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

    @checked
    def __init__(self, function: Callable[..., Tensor | None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.arity = arity(function)
        self.source_kind = "none" if self.arity == 1 else "optional"
        self.reads_several = self.arity > 1

    def arguments(self) -> dict[str, Any]:
        """Refuse: a function cannot be written down as data.

        Raises:
            SpecError: always.
        """
        raise SpecError(
            f"FunctionIntervention holds {self.function!r}, which is code and cannot be saved as data: loading runs "
            "nothing that a file names. Write a subclass of Intervention, and load it with that class"
        )

    def forward(self, base: Tensor, source: Tensor | tuple[Tensor, ...] | None = None, subspaces: Any = None) -> Tensor:
        """Return what the function returns, or `base` where it returns `None`."""
        value = self.source_representation if source is None else source
        own = (
            tuple(one.clone() for one in value)
            if isinstance(value, tuple)
            else value
            if value is None
            else value.clone()
        )
        given = base.clone(), own, subspaces
        new = self.function(*given[: self.arity])
        if new is None:
            return base
        mask = None if self.arity == 3 else self.chosen(base, subspaces)
        return new if mask is None else torch.where(mask, new, base)


@final
class HandedIntervention(Intervention):
    """An intervention of the user's with what one call hands to it in the place of subspaces.

    Args:
        intervention: takes anything as `subspaces`.
        value: what it gets.
        batch: how many examples the value is about.
    """

    repeatable = False  # nothing is known of the value

    def __init__(self, intervention: Intervention, value: Any, batch: int) -> None:
        super().__init__(embed_dim=intervention.embed_dim, keep_last_dim=intervention.keep_last_dim)
        self.intervention, self.value, self.batch = intervention, value, batch
        self.source_representation = intervention.source_representation
        self.source_kind, self.source_width = intervention.source_kind, intervention.source_width

    @property
    def writes(self) -> bool:  # type: ignore[override]  # as the user's does
        """Whether the intervention does."""
        return self.intervention.writes

    @property
    def reads_module_input(self) -> bool:  # type: ignore[override]  # as the user's does
        """Whether the intervention does."""
        return self.intervention.reads_module_input

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return what the intervention returns.

        Raises:
            InterventionError: the pass is about some of the examples only, and the value cannot be divided.
        """
        if len(base) % self.batch:
            raise InterventionError(
                f"{type(self.intervention).__name__} was handed subspaces for {self.batch} examples, and memory was "
                f"enough for {len(base)} of them: give a smaller batch"
            )
        return self.intervention(base, source, self.value)


def takes_anything(intervention: Intervention) -> bool:
    """Whether an intervention is code of the user's that reads `subspaces` by itself."""
    if isinstance(intervention, FunctionIntervention):
        return intervention.arity == 3
    ours = __name__.partition(".")[0]
    return intervention.takes_subspaces() and type(intervention).__module__.partition(".")[0] != ours

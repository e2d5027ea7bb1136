"""What an operation is: a pure function of two vectors of coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

SourceKind = Literal["run", "constant", "none", "optional"]
"""What an intervention needs: `run`: a source, from a run or a constant; `constant`: a constant, never read from a run;
`none`: no source (it gets a constant if one is given); `optional`: what a run or a constant has, if there is one."""

Self = TypeVar("Self", bound="Operation")


class Operation(nn.Module, ABC):
    """What becomes of coordinates. It knows nothing of the vector they are of, nor of the subspace they are in.

    A new one is one file: write `new`, and say what it needs.

    >>> class Halve(Operation):
    ...     def new(self, base, source):
    ...         return base / 2
    >>> import torch
    >>> Halve().new(torch.ones(1, 1, 2), None).tolist()
    [[[0.5, 0.5]]]
    """

    source_kind: SourceKind = "none"
    """Whether there are coordinates of a source."""
    relative: bool = False
    """True if moving base and source by the same step moves the result by it. Then only their difference is read, where
    the subspace is linear: equal values change nothing, bit for bit."""
    writes: bool = True
    """False if it only looks."""
    reads_vector: bool = False
    """True if it gets, as `source`, the whole vector instead of a source's coordinates."""
    repeatable: bool = True
    """True if the same base and source always give the same value."""
    size: int | None = None
    """How many coordinates it is for; `None` for any number."""

    @abstractmethod
    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return the new coordinates.

        Args:
            base: `(batch, ..., size)`; it is not written into.
            source: of the same shape, `None` without a source.
        """

    def arguments(self) -> dict[str, Any]:
        """Return what `empty` makes one of the same shapes of: numbers, texts and lists."""
        return {}

    @classmethod
    def empty(cls: type[Self], *args: Any, **arguments: Any) -> Self:
        """Return one into which a state dict can be loaded."""
        return cls(*args, **arguments)

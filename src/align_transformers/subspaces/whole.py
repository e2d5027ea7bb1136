"""The whole vector, in its own coordinates: the neurons."""

from __future__ import annotations

from typing import final

from torch import Tensor

from .._checked import checked
from .basis import Basis
from .partition import Choice
from .subspace import Subspace

WHOLE = Basis(None)
"""The vector's own coordinates."""


@final
class Whole(Subspace):
    """All of a vector, in its own coordinates.

    Args:
        width: of the vectors; a mask over them needs it.

    >>> import torch
    >>> Whole().read(torch.ones(1, 2)).tolist()
    [[1.0, 1.0]]
    """

    @checked
    def __init__(self, width: int | None = None) -> None:
        super().__init__(width, width)

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the neurons."""
        return WHOLE if self.width is None else Basis(self.width)

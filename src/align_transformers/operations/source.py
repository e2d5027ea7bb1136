"""Operations with the source's coordinates."""

from __future__ import annotations

from typing import final

from torch import Tensor

from .operation import Operation, SourceKind


@final
class Swap(Operation):
    """The source's coordinates: an interchange intervention (Geiger et al. 2020, arXiv:2004.14623).

    >>> import torch
    >>> Swap().new(torch.zeros(2), torch.ones(2)).tolist()
    [1.0, 1.0]
    """

    source_kind: SourceKind = "run"
    relative = True

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `source`."""
        assert source is not None
        return source


@final
class Add(Operation):
    """The sum of the base's and the source's coordinates.

    >>> import torch
    >>> Add().new(torch.ones(2), torch.ones(2)).tolist()
    [2.0, 2.0]
    """

    source_kind: SourceKind = "run"

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `base + source`."""
        assert source is not None
        return base + source


@final
class Subtract(Operation):
    """The base's coordinates less the source's.

    >>> import torch
    >>> Subtract().new(torch.ones(2), torch.ones(2)).tolist()
    [0.0, 0.0]
    """

    source_kind: SourceKind = "run"

    def new(self, base: Tensor, source: Tensor | None) -> Tensor:
        """Return `base - source`."""
        assert source is not None
        return base - source

"""Subspaces that were fitted to labelled activations: one direction, and what an eraser takes away."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from .basis import Basis
from .concepts import Eraser
from .partition import Choice
from .subspace import Subspace


@final
class Direction(Subspace):
    """The one coordinate along a direction, in units of the vectors: `x @ v / |v|`.

    Args:
        vector: of `linear_probe` or `difference_of_means`, ...; its length does not matter.

    Raises:
        SpecError: the vector is zero.

    >>> Direction(torch.tensor([3.0, 4.0])).read(torch.tensor([[5.0, 10.0]])).tolist()
    [[11.0]]
    """

    vector: Tensor

    @checked
    def __init__(self, vector: Float[Tensor, " width"]) -> None:
        super().__init__(len(vector), 1)
        if not vector.is_meta and not float(vector.norm()) > 0:
            raise SpecError("a vector of zeros has no direction")
        self.register_buffer("vector", vector.detach().clone())

    @classmethod
    def empty(cls, *, width: int) -> Direction:
        """Return one into which a state dict can be loaded."""
        return cls(torch.ones(width))

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the direction, of length 1, as a basis."""
        return Basis.orthonormal((self.vector / self.vector.norm()).unsqueeze(1))


@final
class Concept(Subspace):
    """What an eraser takes away: the coordinates `(x - mean) @ into`, lifted by `back`. Zeroed, the concept is erased.

    Args:
        eraser: as `fit_eraser` fits it.

    >>> eraser = Eraser(torch.zeros(2), torch.eye(2)[:, :1], torch.eye(2)[:1])
    >>> Concept(eraser).read(torch.ones(1, 2)).tolist()
    [[1.0]]
    """

    mean: Tensor
    into: Tensor
    back: Tensor

    @checked
    def __init__(self, eraser: Eraser) -> None:
        super().__init__(*eraser.into.shape)
        for name in ("mean", "into", "back"):
            self.register_buffer(name, getattr(eraser, name).detach().clone())

    def arguments(self) -> dict[str, Any]:
        """Return `width` and `rank`."""
        return {"width": self.width, "rank": self.size}

    @classmethod
    def empty(cls, *, width: int, rank: int) -> Concept:
        """Return one of nothing, into which a state dict can be loaded."""
        return cls(Eraser(torch.zeros(width), torch.zeros(width, rank), torch.zeros(rank, width)))

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the concept's directions as a basis."""
        return self.eraser().basis()

    def eraser(self) -> Eraser:
        """Return what was given."""
        return Eraser(self.mean, self.into, self.back)

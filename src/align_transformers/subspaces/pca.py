"""Principal components of activations, fitted and applied on the same scale."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from .basis import Basis
from .partition import Choice
from .subspace import Subspace


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components.

    Args:
        mean: of the activations.
        scale: what the activations are divided by: their standard deviations, or ones.
        directions: orthonormal columns, of the activations on that scale; the first has the most variance.
        share: of the variance on that scale that each direction has.
    """

    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    directions: Float[Tensor, "width k"]
    share: Float[Tensor, " k"]

    def basis(self) -> Basis:
        """Return the coordinates `((x - mean) / scale) @ directions`, and what a change of them changes."""
        columns = self.scale.unsqueeze(1)
        return Basis(len(self.scale), self.directions / columns, (self.directions * columns).T, self.mean)


def principal_components(activations: Float[Tensor, "n width"], k: int, *, standardise: bool = True) -> Components:
    """Return the first `k` principal components.

    Args:
        activations: one row an example; computed in float64.
        k: how many components.
        standardise: divide each coordinate by its standard deviation first; one that never varies is divided by 1.

    Returns:
        The components in the precision of the activations, at least float32. The largest entry of each is positive.

    Raises:
        SpecError: `k` components cannot be had from so many rows of such a width.

    >>> principal_components(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), 1).directions.tolist()
    [[0.0], [1.0]]
    """
    n, width = activations.shape
    if not 1 <= k <= min(n, width):
        raise SpecError(
            f"{n} activations of width {width} have 1 to {min(n, width)} principal components; asked for {k}"
        )
    rows = activations.detach().double()
    mean = rows.mean(0)
    centred = rows - mean
    spread = centred.square().mean(0).sqrt()
    varies = spread > torch.finfo(torch.float32).eps * rows.abs().amax(0)
    scale = torch.where(varies, spread, 1.0) if standardise else torch.ones_like(spread)
    _, strengths, directions = torch.linalg.svd(centred / scale, full_matrices=False)
    variances = strengths.square()
    share = variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)
    columns = directions[:k].T
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    columns = columns * torch.where(largest < 0, -1.0, 1.0)
    kept = torch.promote_types(activations.dtype, torch.float32)
    return Components(mean.to(kept), scale.to(kept), columns.to(kept).contiguous(), share[:k].to(kept))


@final
class PrincipalComponents(Subspace):
    """The coordinates of fitted principal components; coordinate 0 is the one of the most variance.

    A coordinate of 0 is the mean: zeroing a component replaces what the vector has of it by its mean.

    Args:
        components: as `principal_components` fits them.

    >>> pca = PrincipalComponents(principal_components(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), 1))
    >>> pca.read(torch.tensor([[5.0, 3.0]])).tolist()
    [[2.0]]
    """

    @checked
    def __init__(self, components: Components) -> None:
        super().__init__(*components.directions.shape)
        for field in fields(components):
            self.register_buffer(field.name, getattr(components, field.name).detach().clone())

    def arguments(self) -> dict[str, Any]:
        """Return `width` and `k`."""
        return {"width": self.width, "k": self.size}

    @classmethod
    def empty(cls, *, width: int, k: int) -> PrincipalComponents:
        """Return one without directions, into which a state dict can be loaded."""
        return cls(Components(torch.zeros(width), torch.ones(width), torch.zeros(width, k), torch.zeros(k)))

    def basis(self, base: Tensor | None = None, choice: Choice | None = None) -> Basis:
        """Return the components as a basis."""
        return Components(**{field.name: getattr(self, field.name) for field in fields(Components)}).basis()

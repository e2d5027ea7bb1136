"""Swaps of principal components."""

from __future__ import annotations

from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from ..subspaces import Basis, Choice, Components, principal_components
from .edit import edited
from .intervention import Intervention
from .static import SWAP

_FITTED = ("mean", "scale", "directions", "explained")


@final
class PCARotatedSpaceIntervention(Intervention):
    """Swap principal components of the activations, fitted beforehand and frozen.

    With mean m, scale c and directions V the coordinates are `((x - m) / c) @ V`, on the scale on which V was fitted.
    The chosen ones become the source's; the rest of the base, which the components do not describe, is kept exactly.
    Configured with several units, components are of all of them side by side. Constructed or fitted by hand they are
    used for each unit (`keep_last_dim=True`), or span them with `keep_last_dim=False` and the width of all.

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: how many components.
        standardise: whether activations are divided by their standard deviations when it is fitted.
        **kwargs: as for `Intervention`; a partition is one of the components, the first has the most variance.

    Raises:
        SpecError: there cannot be so many components; as for `Intervention`.

    >>> import torch
    >>> pca = PCARotatedSpaceIntervention.fit(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), 1)
    >>> pca(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[0.0, 1.0]]]
    """

    joins_units: ClassVar[bool] = True
    mean: Tensor | None
    scale: Tensor | None
    directions: Tensor | None
    explained: Tensor | None

    @checked
    def __init__(self, *, embed_dim: int, low_rank_dimension: int, standardise: bool = True, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, low_rank_dimension=low_rank_dimension, **kwargs)
        if not 1 <= low_rank_dimension <= embed_dim:
            raise SpecError(f"vectors of width {embed_dim} have 1 to {embed_dim} components, not {low_rank_dimension}")
        self.limit_partition(low_rank_dimension)
        self.standardise = standardise
        for name in _FITTED:
            self.register_buffer(name, None)

    @classmethod
    @checked
    def fit(
        cls, activations: Float[Tensor, "n width"], k: int, *, standardise: bool = True, **kwargs: Any
    ) -> PCARotatedSpaceIntervention:
        """Fit the first `k` components of some activations.

        Args:
            activations: one row an example.
            k: how many components.
            standardise: divide each coordinate by its standard deviation; else coordinates of large variance decide.
            **kwargs: as for `Intervention`.

        Raises:
            SpecError: `k` components cannot be had from these activations.
        """
        found = principal_components(activations, k, standardise=standardise)
        one = cls(embed_dim=activations.shape[1], low_rank_dimension=k, standardise=standardise, **kwargs)
        for name, value in zip(_FITTED, (found.mean, found.scale, found.directions, found.share), strict=True):
            one.register_buffer(name, value)
        return one

    @property
    def rotation(self) -> Float[Tensor, "width k"]:
        """V: orthonormal columns, on the scale of the fit."""
        return self.components().directions

    def components(self) -> Components:
        """Return the components.

        Raises:
            SpecError: it has not been fitted.
        """
        return Components(*self._fitted("components", _FITTED, "fit(activations, k)"))

    def basis(self) -> Basis:
        """Return the components as a basis of the activations."""
        return self.components().basis()

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its chosen components from the source."""
        return edited(self, SWAP, self.basis(), base, source, subspaces)

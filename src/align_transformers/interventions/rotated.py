"""Swaps in learned rotations of the activation: distributed alignment search."""

from __future__ import annotations

from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor

from .._checked import checked
from .._errors import SpecError
from ..subspaces import Choice, Rotation
from .edit import edited
from .static import SWAP
from .trainable import TrainableIntervention


@final
class RotatedSpaceIntervention(TrainableIntervention):
    """Swap coordinates in a learned orthogonal basis (DAS; Geiger et al. 2023, arXiv:2303.02536).

    With R orthogonal, the chosen coordinates of `base @ R` become those of `source @ R`, and the result is rotated
    back. Several variables at one site share R: each has a part of the partition, and every example of a batch may
    choose its own. Configured with several units, R spans all of them side by side. Constructed by hand it is applied
    to each unit (`keep_last_dim=True`), or spans them with `keep_last_dim=False` and the width of all.

    Args:
        embed_dim: width of the vectors.
        **kwargs: as for `Intervention`; a partition is one of the rotated coordinates.

    Raises:
        SpecError: as for `Intervention`.

    >>> import torch
    >>> das = RotatedSpaceIntervention(embed_dim=4, subspace_partition=[[0, 2], [2, 4]])
    >>> das(torch.zeros(2, 1, 4), torch.ones(2, 1, 4), ((0,), (1,))).shape
    torch.Size([2, 1, 4])
    """

    joins_units: ClassVar[bool] = True

    @checked
    def __init__(self, *, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.limit_partition(embed_dim)
        self.rotate_layer = Rotation(embed_dim, embed_dim)

    @property
    def rotation(self) -> Float[Tensor, "width width"]:
        """R, orthogonal: one column a coordinate."""
        return self.rotate_layer.weight

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its chosen rotated coordinates from the source."""
        return edited(self, SWAP, self.rotate_layer.basis(), base, source, subspaces)


@final
class LowRankRotatedSpaceIntervention(TrainableIntervention):
    """Swap what lies in a learned subspace: `b + (sR - bR) Rᵀ` (DAS; Geiger et al. 2023, arXiv:2303.02536).

    R has orthonormal columns. Configured with several units, the subspace spans all of them side by side.
    Constructed by hand it is applied to each unit (`keep_last_dim=True`), or spans them with `keep_last_dim=False` and
    the width of all.

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: dimensions of the subspace.
        **kwargs: as for `Intervention`; a partition is one of the subspace's coordinates.

    Raises:
        SpecError: there are no subspaces of so many dimensions; as for `Intervention`.

    >>> import torch
    >>> das = LowRankRotatedSpaceIntervention(embed_dim=4, low_rank_dimension=1)
    >>> das(torch.zeros(1, 1, 4), torch.ones(1, 1, 4)).shape
    torch.Size([1, 1, 4])
    """

    joins_units: ClassVar[bool] = True

    @checked
    def __init__(self, *, embed_dim: int, low_rank_dimension: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, low_rank_dimension=low_rank_dimension, **kwargs)
        self.rotate_layer = Rotation(embed_dim, low_rank_dimension)
        self.limit_partition(low_rank_dimension)

    @property
    def rotation(self) -> Float[Tensor, "width k"]:
        """R: orthonormal columns."""
        return self.rotate_layer.weight

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return `base + (source @ R - base @ R) @ R.T`, in the chosen coordinates."""
        return edited(self, SWAP, self.rotate_layer.basis(), base, source, subspaces)


@final
class StackedLowRankRotatedSpaceIntervention(TrainableIntervention):
    """Several low-rank rotations of one width, fitted as one: each example of a batch is edited by one of them.

    Members may be seeds, or variables and positions of one layer: an example says by `subspaces` which member edits
    it, `((2,), (0,))` for a batch of two. With a loss that is a sum over examples the members' gradients are those of
    fits of their own. Each unit is edited on its own (`keep_last_dim=True`).

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: dimensions of each subspace.
        members: how many there are.
        **kwargs: as for `Intervention`, without a partition and `interchange_dim`.

    Raises:
        SpecError: there is no member, or a partition or `interchange_dim` is given; as for the low-rank rotation.

    >>> import torch
    >>> seeds = StackedLowRankRotatedSpaceIntervention(embed_dim=4, low_rank_dimension=1, members=3)
    >>> seeds(torch.zeros(2, 1, 4), torch.ones(2, 1, 4), ((2,), (0,))).shape
    torch.Size([2, 1, 4])
    """

    @checked
    def __init__(self, *, embed_dim: int, low_rank_dimension: int, members: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, low_rank_dimension=low_rank_dimension, **kwargs)
        if self.partition is not None or self.interchange_dim is not None:
            raise SpecError(
                "subspaces choose the members of a stack: it takes no subspace_partition or interchange_dim"
            )
        self.members = members
        self.rotate_layer = Rotation(embed_dim, low_rank_dimension, members)

    @property
    def rotation(self) -> Float[Tensor, "members width k"]:
        """Each member's orthonormal columns."""
        return self.rotate_layer.weight

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return each example edited by the member it chooses.

        Raises:
            SpecError: an example chooses no member, several, or one that does not exist.
        """
        return edited(self, SWAP, self.rotate_layer.basis(base, subspaces), base, source, None)

    def member(self, number: int) -> LowRankRotatedSpaceIntervention:
        """Return one member as an intervention of its own."""
        one = LowRankRotatedSpaceIntervention(
            embed_dim=self.rotation.shape[1],
            low_rank_dimension=self.rotation.shape[2],
            keep_last_dim=self.keep_last_dim,
            source_representation=self.source_representation,
        )
        one.rotate_layer.set_weight(self.rotation.detach()[number])
        return one

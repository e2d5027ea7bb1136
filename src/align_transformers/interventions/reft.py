"""Representation fine-tuning: low-rank edits that read no source."""

from __future__ import annotations

from typing import Any, ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from ..operations import Learned
from ..subspaces import Choice, Rotation
from .edit import edited
from .intervention import SourcelessIntervention
from .trainable import TrainableIntervention


class ReftIntervention(SourcelessIntervention, TrainableIntervention):
    """Base class of representation fine-tuning: a learned function of h is added to it along the rows of R.

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: rows of R.
        **kwargs: as for `Intervention`; a partition is one of the subspace's coordinates.

    Raises:
        SpecError: there are no subspaces of so many dimensions; as for `Intervention`.
    """

    adds: ClassVar[bool]
    """Whether what the base has in the subspace is kept and added to."""

    @checked
    def __init__(self, *, embed_dim: int, low_rank_dimension: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, low_rank_dimension=low_rank_dimension, **kwargs)
        self.rotate_layer = Rotation(embed_dim, low_rank_dimension)
        self.learned_source = nn.Linear(embed_dim, low_rank_dimension)
        self.limit_partition(low_rank_dimension)

    @property
    def rotation(self) -> Float[Tensor, "width k"]:
        """R transposed: orthonormal columns."""
        return self.rotate_layer.weight

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with its change along R, in the chosen coordinates."""
        learned = Learned(self.learned_source, adds=self.adds)
        return edited(self, learned, self.rotate_layer.basis(), base, source, subspaces)


@final
class LoreftIntervention(ReftIntervention):
    """LoReFT: `h + Rᵀ(W h + b - R h)` (Wu et al. 2024, arXiv:2404.03592), with orthonormal rows R.

    What h has in the subspace becomes a learned function of h. The same one is applied to each unit
    (`keep_last_dim=True`), as in the paper; `keep_last_dim=False` and the width of all units make it span them all.

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: rows of R.
        **kwargs: as for `Intervention`; a partition is one of the subspace's coordinates.

    Raises:
        SpecError: there are no subspaces of so many dimensions; as for `Intervention`.

    >>> import torch
    >>> LoreftIntervention(embed_dim=4, low_rank_dimension=1)(torch.zeros(1, 1, 4)).shape
    torch.Size([1, 1, 4])
    """

    adds = False


@final
class DireftIntervention(ReftIntervention):
    """DiReFT, LoReFT's ablation: `h + Rᵀ(W h + b)` (Wu et al. 2024, arXiv:2404.03592), with orthonormal rows R.

    What h has in the subspace already is kept and added to. The same one is applied to each unit
    (`keep_last_dim=True`), as in the paper; `keep_last_dim=False` and the width of all units make it span them all.

    Args:
        embed_dim: width of the vectors.
        low_rank_dimension: rows of R.
        **kwargs: as for `Intervention`; a partition is one of the subspace's coordinates.

    Raises:
        SpecError: there are no subspaces of so many dimensions; as for `Intervention`.

    >>> import torch
    >>> DireftIntervention(embed_dim=4, low_rank_dimension=1)(torch.zeros(1, 1, 4)).shape
    torch.Size([1, 1, 4])
    """

    adds = True

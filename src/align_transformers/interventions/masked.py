"""Swaps under learned masks: which coordinates, and how many, is learned along with the rotation or without one."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .._checked import checked
from ..subspaces import Basis, Choice, Rotation, annealed, boundary_mask, clamp_inward, hard_boundary
from .edit import edited
from .static import SWAP
from .trainable import TrainableIntervention


class MaskedIntervention(TrainableIntervention):
    """Base class of swaps under a mask that is soft while it is learned: `f + mask (f_source - f)` in some basis."""

    joins_units: ClassVar[bool] = True
    hard: bool
    """Whether the mask is hard: every coordinate is swapped, or is not."""

    @abstractmethod
    def basis(self) -> Basis:
        """Return the basis whose coordinates the mask is over."""

    @abstractmethod
    def soft_mask(self) -> Float[Tensor, " width"]:
        """Return how much of each coordinate is swapped at the present temperature."""

    @abstractmethod
    def hard_mask(self) -> Bool[Tensor, " width"]:
        """Mark the coordinates that are swapped for more than half: what the soft mask goes to as it cools."""

    @property
    def dimensions(self) -> int:
        """How many coordinates the hard mask keeps."""
        return int(self.hard_mask().sum())

    def hardened(self) -> MaskedIntervention:
        """Return a frozen copy with the hard mask."""
        frozen = copy.deepcopy(self).requires_grad_(False)
        frozen.hard = True
        return frozen

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with the masked coordinates from the source."""
        mask = self.hard_mask().float() if self.hard else self.soft_mask()
        return edited(self, SWAP, self.basis(), base, source, subspaces, mask)


@final
class BoundlessRotatedSpaceIntervention(MaskedIntervention):
    """Swap the first coordinates of a learned rotation; how many is learned, too (Wu et al. 2023, arXiv:2305.08809).

    The mask over coordinate i is `sigmoid((B * embed_dim - i) / temperature)`, with the boundary B between 0.001 and 1.
    The published left factor is left out: it keeps coordinate 0 half-swapped for ever. The hard mask keeps the
    coordinates below `B * embed_dim`. Configured with several units, the rotation spans all of them side by side.
    Constructed by hand it is applied to each unit (`keep_last_dim=True`), or spans them with `keep_last_dim=False` and
    the width of all.

    Args:
        embed_dim: width of the vectors.
        temperature_schedule: in coordinates, from start to end of a fit; by default from `embed_dim / 16` to 0.1, at
            most as much as at the start: at the start the mask falls over a fair share of the coordinates, whatever
            their number.
        temperature: the present one; by default that of the start.
        sparsity: the penalty is `sparsity * B`.
        boundary_rate: the boundary's learning rate, in learning rates of the rotation. The paper has 10, with 0.001 for
            the rotation; a boundary at 0.1 overshoots.
        hard: use the hard mask.
        **kwargs: as for `Intervention`; a partition is one of the rotated coordinates.

    Raises:
        SpecError: a temperature is not above 0; as for `Intervention`.

    >>> boundless = BoundlessRotatedSpaceIntervention(embed_dim=8)
    >>> boundless.dimensions, boundless.hardened().hard
    (4, True)
    """

    @checked
    def __init__(
        self,
        *,
        embed_dim: int,
        temperature_schedule: Sequence[float] | None = None,
        temperature: float | None = None,
        sparsity: float = 1.0,
        boundary_rate: float = 1.0,
        hard: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.limit_partition(embed_dim)
        start = embed_dim / 16
        self.temperature_schedule, self.temperature = annealed(
            temperature_schedule or (start, min(0.1, start)), temperature
        )
        self.sparsity, self.boundary_rate, self.hard = sparsity, boundary_rate, hard
        self.rotate_layer = Rotation(embed_dim, embed_dim)
        self.boundary = nn.Parameter(torch.tensor(0.5))

    @property
    def rotation(self) -> Float[Tensor, "width width"]:
        """R, orthogonal; the first `dimensions` columns span what the hard version swaps."""
        return self.rotate_layer.weight

    def basis(self) -> Basis:
        """Return the rotated coordinates."""
        return self.rotate_layer.basis()

    def share(self) -> Float[Tensor, ""]:
        """Return B: the share of the coordinates below the boundary."""
        return clamp_inward(self.boundary, 1e-3, 1.0)

    def soft_mask(self) -> Float[Tensor, " width"]:
        """Return the mask at the present temperature."""
        return boundary_mask(self.share(), self.temperature, len(self.rotate_layer.free))

    def hard_mask(self) -> Bool[Tensor, " width"]:
        """Mark the coordinates below the boundary."""
        return hard_boundary(self.share().detach(), len(self.rotate_layer.free))

    def penalty(self) -> Float[Tensor, ""]:
        """Return `sparsity * B`."""
        return self.sparsity * self.share()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the rotation, and the boundary with a learning rate `boundary_rate` times as high."""
        rates = (self.rotate_layer.free, 1.0), (self.boundary, self.boundary_rate)
        return [{"params": [one], "lr": learning_rate * rate} for one, rate in rates if one.requires_grad]


class SigmoidMasked(MaskedIntervention):
    """Base class of masks with a parameter for every coordinate: `sigmoid(mask / temperature)`; hard: `mask > 0`."""

    @checked
    def __init__(
        self,
        *,
        embed_dim: int,
        temperature_schedule: Sequence[float] = (1.0, 0.01),
        temperature: float | None = None,
        sparsity: float = 1e-4,
        hard: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.limit_partition(embed_dim)
        self.temperature_schedule, self.temperature = annealed(temperature_schedule, temperature)
        self.sparsity, self.hard = sparsity, hard
        self.mask = nn.Parameter(torch.zeros(embed_dim))

    def soft_mask(self) -> Float[Tensor, " width"]:
        """Return the mask at the present temperature."""
        return torch.sigmoid(self.mask / self.temperature)

    def hard_mask(self) -> Bool[Tensor, " width"]:
        """Mark the coordinates whose mask is above 0."""
        return self.mask.detach() > 0

    def penalty(self) -> Float[Tensor, ""]:
        """Return `sparsity * soft_mask().sum()`."""
        return self.sparsity * self.soft_mask().sum()


@final
class SigmoidMaskRotatedSpaceIntervention(SigmoidMasked):
    """Swap the coordinates of a learned rotation that a learned mask selects: `sigmoid(mask / temperature)`.

    As `BoundlessRotatedSpaceIntervention` (Wu et al. 2023, arXiv:2305.08809), with a mask of its own for every
    coordinate (Davies et al. 2023, arXiv:2307.03637). The hard mask is `mask > 0`. Configured with several units, the
    rotation spans all of them side by side. Constructed by hand it is applied to each unit (`keep_last_dim=True`), or
    spans them with `keep_last_dim=False` and the width of all.

    Args:
        embed_dim: width of the vectors.
        temperature_schedule: from start to end of a fit.
        temperature: the present one; by default that of the start.
        sparsity: the penalty is `sparsity` times the sum of the soft mask.
        hard: use the hard mask.
        **kwargs: as for `Intervention`; a partition is one of the rotated coordinates.

    Raises:
        SpecError: a temperature is not above 0; as for `Intervention`.

    >>> SigmoidMaskRotatedSpaceIntervention(embed_dim=2).soft_mask().tolist()
    [0.5, 0.5]
    """

    @checked
    def __init__(self, *, embed_dim: int, **kwargs: Any) -> None:
        super().__init__(embed_dim=embed_dim, **kwargs)
        self.rotate_layer = Rotation(embed_dim, embed_dim)

    @property
    def rotation(self) -> Float[Tensor, "width width"]:
        """R, orthogonal; the columns that `hard_mask` marks span what the hard version swaps."""
        return self.rotate_layer.weight

    def basis(self) -> Basis:
        """Return the rotated coordinates."""
        return self.rotate_layer.basis()


@final
class SigmoidMaskIntervention(SigmoidMasked):
    """Swap the neurons that a learned mask selects (desiderata-based masking; Davies et al. 2023, arXiv:2307.03637).

    The soft mask is `sigmoid(mask / temperature)`, the hard one `mask > 0`. Configured with several units, every
    neuron of every unit has a mask of its own. Constructed by hand the units share one (`keep_last_dim=True`), or have
    their own with `keep_last_dim=False` and the width of all.

    Args:
        embed_dim: width of the vectors.
        temperature_schedule: from start to end of a fit.
        temperature: the present one; by default that of the start.
        sparsity: the penalty is `sparsity` times the sum of the soft mask.
        hard: use the hard mask.
        **kwargs: as for `Intervention`; a partition is one of the neurons.

    Raises:
        SpecError: a temperature is not above 0; as for `Intervention`.

    >>> SigmoidMaskIntervention(embed_dim=2)(torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).tolist()
    [[[0.5, 0.5]]]
    """

    def basis(self) -> Basis:
        """Return the neurons."""
        return Basis(len(self.mask))

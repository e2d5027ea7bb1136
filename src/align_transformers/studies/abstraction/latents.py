"""Which latents of a dictionary carry a variable: chosen on training pairs by what their swap does to the loss."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ...interventions import SubspaceIntervention, TrainableIntervention
from ...interventions.edit import edited
from ...operations import Swap
from ...subspaces import Choice, Dictionary

_SWAP = Swap()


@final
class LatentChoice(TrainableIntervention):
    """Swap latents of a dictionary; the hard version swaps the few alone whose swap lowers the loss most.

    A fit goes, step by step, from none of each latent swapped to all of each: at a share a of the way the base moves
    by a D (z_s - z_b). What latent j is worth is the integrated gradient along this way, summed over the steps:
    -sum dL / da_j. Nothing is learned besides, so that the soft version is the swap of all latents.

    Args:
        dictionary: makes the latents; it stays the caller's, and is not changed.
        rank: how many latents are swapped at most, of those whose swap lowers the loss.

    Marks et al. 2024, arXiv:2403.19647; Sundararajan et al. 2017, arXiv:1703.01365.
    """

    worth: Tensor

    def __init__(self, dictionary: Dictionary, rank: int) -> None:
        super().__init__(embed_dim=dictionary.width)
        self._dictionary = (dictionary,)  # no part of this module: its weights are not kept with every fit
        self.rank, self.share = rank, 1.0
        self.gates = nn.Parameter(torch.zeros(dictionary.size))  # their gradient is read, their values are not
        self.register_buffer("worth", torch.zeros(dictionary.size))
        self.temperature_schedule = (0.0, 1.0)

    def set_temperature(self, temperature: float) -> None:
        """Set the share of each latent's swap."""
        self.share = float(temperature)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Return the base with all latents moved so far towards the source's."""
        gate = self.share + self.gates - self.gates.detach()
        if gate.requires_grad:
            gate.register_hook(self._noted)
        return edited(self, _SWAP, self._dictionary[0].basis(base), base, source, subspaces, gate)

    def _noted(self, gradient: Tensor) -> None:
        self.worth -= gradient.detach().to(self.worth)

    @property
    def best(self) -> list[int]:
        """The latents that are worth most, in ascending order; of those that lower the loss, and at least one."""
        most = self.worth.argsort(descending=True, stable=True)[: self.rank]
        return sorted({int(most[0]), *most[self.worth[most] > 0].tolist()})

    @property
    def dimensions(self) -> int:
        """How many latents the hard version swaps."""
        return len(self.best)

    def hardened(self) -> SubspaceIntervention:
        """Return the swap of the chosen latents, with nothing to be learned."""
        return SubspaceIntervention(Swap(), self._dictionary[0], coordinates=self.best).requires_grad_(False)

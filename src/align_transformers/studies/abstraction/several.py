"""Interventions at several containers that are fitted, and made hard, as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..._errors import SpecError
from ...interventions import Intervention, TrainableIntervention
from ...subspaces import Choice


@final
class SeveralInterventions(TrainableIntervention):
    """Interventions in an order, as one thing that learns. In a run each is an edit of its own.

    Args:
        members: in the order of a hypothesis' parts.
    """

    def __init__(self, members: Sequence[Intervention]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if any(one.temperature_schedule is not None for one in self._learners()):
            self.temperature_schedule = (0.0, 1.0)  # of each the share of its own way

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    def forward(self, base: Tensor, source: Tensor | None = None, subspaces: Choice | None = None) -> Tensor:
        """Refuse: each is at a place of its own.

        Raises:
            SpecError: always.
        """
        raise SpecError("several interventions are edits of their own, each at its place")

    def set_temperature(self, temperature: float) -> None:
        """Set each to a share of the way from its first temperature to its last."""
        for one in self._learners():
            if one.temperature_schedule is not None:
                first, last = one.temperature_schedule
                one.set_temperature(first + (last - first) * temperature)

    def penalty(self) -> Float[Tensor, ""]:
        """Return the penalties of all."""
        return torch.stack([one.penalty() for one in self._learners()] or [torch.zeros(())]).sum()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return those of all."""
        return [group for one in self._learners() for group in one.parameter_groups(learning_rate) if group["params"]]

    def _learners(self) -> list[TrainableIntervention]:
        return [one for one in self.members if isinstance(one, TrainableIntervention)]

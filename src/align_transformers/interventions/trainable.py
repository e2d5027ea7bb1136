"""What a trainable intervention is, and what a fit may ask of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .._errors import SpecError
from ..subspaces.subspace import Schedule
from .intervention import Intervention


class TrainableIntervention(Intervention):
    """Base class of interventions with parameters; combine with `SourcelessIntervention` where no source is read.

    A subclass with parameters is fitted without further ado. What it may override says more about it to a fit: a
    temperature, a penalty, learning rates of its own, a hard version.

    >>> from torch import nn
    >>> class Scale(TrainableIntervention):
    ...     def __init__(self, *, embed_dim, **kwargs):
    ...         super().__init__(embed_dim=embed_dim, **kwargs)
    ...         self.factor = nn.Parameter(torch.ones(embed_dim))
    ...     def forward(self, base, source=None, subspaces=None):
    ...         return self.within(base, base * self.factor, subspaces)
    >>> [group["lr"] for group in Scale(embed_dim=3).parameter_groups(0.1)]
    [0.1]
    """

    temperature_schedule: Schedule | None = None
    """The temperature that a fit starts and ends with; `None` where there is no temperature."""

    temperature: float
    """The present one, where there is one."""

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature of what is soft while it is learned.

        Raises:
            SpecError: nothing is soft here, or the temperature is not above 0.
        """
        if self.temperature_schedule is None:
            raise SpecError(f"{type(self).__name__} has no temperature")
        if not temperature > 0:
            raise SpecError(f"a temperature is above 0; found {temperature}")
        self.temperature = float(temperature)

    def penalty(self) -> Float[Tensor, ""]:
        """Return what a fit adds to its loss, weighted already; zero unless overridden."""
        return torch.zeros(())

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the trainable parameters as an optimiser takes them, each group with its learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr": learning_rate}]

    @property
    def dimensions(self) -> int | None:
        """How many dimensions the hard version works in; `None` where that is not what is learned."""
        return None

    def hardened(self) -> Intervention:
        """Return a frozen copy as it is to be used after a fit: what is soft while it is learned is hard in it."""
        frozen = copy.deepcopy(self)
        return frozen.requires_grad_(False)

"""The order in which a loader gives its batches, so that an interrupted epoch can be taken up in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .borrowed import random_states, set_random_states

States = tuple[dict[str, Tensor], list[Any]]
"""Tensors and JSON-able data: the states of all generators."""


@dataclass
class Order:
    """The states of the generators at the start of the epoch, and, in a resumed fit, where it was interrupted.

    Args:
        generators: the loader's own.
        start: the states when the epoch began.
        resumed: the states to go on with once the batches that were seen are skipped.
    """

    generators: list[torch.Generator]
    start: States | None = None
    resumed: States | None = field(default=None)

    @classmethod
    def of(cls, loader: Iterable[Any]) -> Order:
        """Return the order of a loader; the generators of a `DataLoader` and of its samplers are known."""
        places: list[Any] = []
        if isinstance(loader, DataLoader):
            batch_sampler = getattr(loader, "batch_sampler", None)
            places = [loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)]
        found = [getattr(place, "generator", None) for place in places]
        return cls(list(dict.fromkeys(one for one in found if isinstance(one, torch.Generator))))

    def now(self) -> States:
        """Return the states of all generators."""
        tensors, rest = random_states()
        return {**tensors, **{f"loader:{n}": one.get_state() for n, one in enumerate(self.generators)}}, rest

    def set(self, states: States) -> None:
        """Set the states of all generators."""
        tensors, rest = states
        set_random_states(tensors, rest)
        for number, generator in enumerate(self.generators):
            generator.set_state(tensors[f"loader:{number}"])

    def batches(self, loader: Iterable[Any], seen: int) -> Iterator[Any]:
        """Yield the batches of an epoch from number `seen` on.

        Args:
            loader: gives an epoch's batches.
            seen: batches of this epoch that were learned from before the fit was interrupted; else 0.
        """
        resumed, self.resumed = self.resumed, None
        if resumed is None or self.start is None:
            self.start = self.now()
        else:
            self.set(self.start)
        batches = iter(loader)
        if resumed is not None:
            for _ in range(seen):
                next(batches)
            self.set(resumed)
        yield from batches

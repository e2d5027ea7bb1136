"""Time steps of recurrent networks: modules that are called once a step, and fused ones that are run by their cells.

A cell's activation is `(batch, width)`, and its call k is time step k: one column of a sequence that is never there as
a whole. Steps that an edit names are places like any others; each call shows those that are its own.

`nn.GRU` and `nn.LSTM` compute all steps in one kernel. In a pass that asks for `rnn.step[0].output` they run cell by
cell instead (`models/recurrent_cells.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._errors import PlanError, PositionError
from ..models import Slot
from ..positions import Positions
from .places import Places

# --- A module that is called once a step -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CellCall:
    """What one call shows of the places of an edit or a read.

    Args:
        places: the same places in `(batch, 1, width)`: one column, or none where an example does not name this step.
        mask: `(batch, units)` which of the units named are this step; `None`: the whole sequence is meant, or nothing.
    """

    places: Places
    mask: Bool[Tensor, "batch units"] | None

    def pick(self, value: Tensor) -> Tensor:
        """Return the values for this step, `(batch, 1, width)`, of those for all units.

        Args:
            value: broadcastable to `(batch, units, width)`.
        """
        if self.mask is None or value.ndim < 2:
            return value
        value = value.expand(*self.mask.shape, value.shape[-1])
        unit = self.mask.to(value.device).int().argmax(1).view(-1, 1, 1)
        return value.gather(1, unit.expand(-1, 1, value.shape[-1]))


@dataclass(eq=False)
class Assembly:
    """The values of the units of one edit or read, gathered step by step, and how many steps there were."""

    where: str
    reach: int
    calls: int = 0
    values: Tensor | None = None
    real: Tensor | None = None

    def add(self, mask: Bool[Tensor, "batch units"], new: Float[Tensor, "batch 1 width"]) -> Tensor:
        """Put the values of one step where its units are; return all there are, zeros where no step has come."""
        before = new.new_zeros(()) if self.values is None else self.values
        self.values = torch.where(mask.to(new.device).unsqueeze(-1), new, before)
        self.real = mask if self.real is None else self.real | mask
        return self.values

    def check(self, length: int | None) -> None:
        """Refuse steps that never came.

        Args:
            length: of the input's sequence, where it is known.

        Raises:
            PositionError: the module was called once in a pass over a longer sequence, or too seldom.
        """
        if self.calls == 1 and length is not None and length != 1:
            raise PositionError(
                f"{self.where} has no sequence axis, and its module is called once in a pass over {length} positions, "
                "not once a step: positions cannot be named there"
            )
        if self.reach > self.calls:
            raise PositionError(
                f"time step {self.reach - 1} is outside {self.where}: its module was called {self.calls} times"
            )


def counts_steps(slot: Slot, tensor: Tensor, named: bool) -> bool:
    """Whether the calls of a module are the time steps that an edit or a read names.

    Args:
        slot: where the tensor is; a site that says which call it means has no further steps.
        tensor: what is there in one call.
        named: positions are named, by what is written or by what is read for it.
    """
    return named and tensor.ndim == 2 and slot.call is None


def at_step(places: Places, call: int) -> CellCall | None:
    """Return what a call shows of some places; `None` if it shows nothing.

    Args:
        places: `index` holds time steps.
        call: number of earlier calls of the module in this pass: its time step.
    """
    if places.index is None or places.reach == 0:
        return CellCall(places, None)
    mask = places.index == call
    mask = mask if places.real is None else mask & places.real
    named = mask.any(1, keepdim=True)
    if not bool(named.any()):
        return None
    real = None if bool(named.all()) else named
    return CellCall(
        replace(places, index=torch.zeros_like(named, dtype=torch.long), real=real, reach=1, column=None), mask
    )


def check_one_vector(positions: Positions, where: str) -> None:
    """Refuse several steps for an intervention that sees all units of an example as one vector.

    Raises:
        PlanError: more than one step is named: they are never there together.
    """
    if (positions.widest or 0) > 1:
        raise PlanError(
            f"{where} is called once a step, so an intervention with keep_last_dim=False, which sees all units of an "
            f"example as one vector, can have one step there; found {positions.widest}"
        )

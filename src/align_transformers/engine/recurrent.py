"""Time steps of recurrent networks: modules that are called once a step, and fused ones that are run by their cells.

A cell's activation is `(batch, width)`, and its call k is time step k: one column of a sequence that is never there as
a whole. Steps that an edit names are places like any others; each call shows those that are its own.

`nn.GRU` and `nn.LSTM` compute all steps in one kernel. In a pass that asks for `rnn.step[0].output` they run cell by
cell instead, over the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import PlanError, PositionError, SiteError
from ..models import Slot
from ..models.recurrent_cells import Weights, cells_of
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


# --- Fused recurrent modules, run by their cells ---------------------------------------------------------------------


@contextmanager
def by_cells(fused: nn.Module) -> Iterator[None]:
    """Let a fused module run cell by cell while the context is open; it is as before on every exit.

    Args:
        fused: one whose steps a slot is at.
    """
    before = vars(fused).get("forward")
    fused.forward = _unfused(fused, cells_of(fused))  # type: ignore[arg-type]
    try:
        yield
    finally:
        del fused.forward
        if before is not None:
            fused.forward = before


def _unfused(fused: nn.RNNBase, cells: nn.ModuleList) -> Callable[..., Any]:
    """Return a forward pass that gives what the fused one gives."""

    def forward(input: Any, hx: Any = None) -> Any:  # as PyTorch names them
        if not isinstance(input, Tensor) or input.ndim != 3:
            found = f"shape {tuple(input.shape)}" if isinstance(input, Tensor) else type(input).__name__
            raise SiteError(
                f"a {type(fused).__name__} is run by its cells on a batch of sequences, one tensor with three axes; "
                f"found {found}"
            )
        sequence = input.transpose(0, 1) if fused.batch_first else input
        ends = []
        for layer, cell in enumerate(cells):
            if layer:
                sequence = F.dropout(sequence, fused.dropout, fused.training)
            sequence, state = _run_layer(cell, sequence, _start(fused, hx, sequence, layer), _weights(fused, layer))
            ends.append(state)
        last = tuple(torch.stack(states) for states in zip(*ends, strict=True))
        output = sequence.transpose(0, 1) if fused.batch_first else sequence
        return output, last if isinstance(fused, nn.LSTM) else last[0]

    return forward


def _run_layer(
    cell: nn.Module, sequence: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the hidden states `(steps, batch, hidden)` of one layer, and its last state."""
    hidden = []
    for x in sequence:
        state = cell(x, state, weights)
        hidden.append(state[0])
    return torch.stack(hidden), state


def _start(fused: nn.RNNBase, hx: Any, sequence: Tensor, layer: int) -> tuple[Tensor, ...]:
    """Return the state that a layer starts from: what was handed in, or zeros."""
    count = 2 if isinstance(fused, nn.LSTM) else 1
    if hx is None:
        return (sequence.new_zeros(sequence.shape[1], fused.hidden_size),) * count
    return tuple(state[layer] for state in ((hx,) if count == 1 else hx))


def _weights(fused: nn.RNNBase, layer: int) -> Weights:
    """Return the weights and biases of a layer, input's and hidden state's, as they are now."""
    into, along = getattr(fused, f"weight_ih_l{layer}"), getattr(fused, f"weight_hh_l{layer}")
    if not fused.bias:
        return into, along, None, None
    return into, along, getattr(fused, f"bias_ih_l{layer}"), getattr(fused, f"bias_hh_l{layer}")

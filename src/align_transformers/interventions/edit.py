"""What an operation makes of a base in a subspace: `b + lift(gate * (operation(read(b), read(s)) - read(b)))`."""

from __future__ import annotations

import torch
from torch import Tensor

from .._errors import SpecError
from ..operations import Operation
from ..subspaces import Basis, Choice, Coordinates
from .intervention import Intervention


def edited(
    who: Intervention,
    operation: Operation,
    basis: Coordinates,
    base: Tensor,
    source: Tensor | None,
    choice: Choice | None,
    gate: Tensor | None = None,
) -> Tensor:
    """Return `base` with its chosen coordinates as an operation makes them; what they do not describe is kept.

    In the vector's own coordinates the new value is taken as it is. In a linear basis a `relative` operation moves the
    base by the coordinates of a difference, so that a source equal to the base changes nothing, bit for bit.

    Args:
        who: the intervention: it knows its constant source and its partition.
        operation: what becomes of the coordinates.
        basis: the coordinates, as they are in this call.
        base: `(batch, ..., width)`.
        source: of the same shape or broadcastable to it; `None` for the constant, or where there is none.
        choice: one tuple of parts for each example; `None` for all coordinates.
        gate: `(size,)`, how much of each coordinate's change is made, 0 to 1; `None` for all of each.
    """
    own = basis if isinstance(basis, Basis) and basis.into is None and gate is None else None
    if not operation.writes:
        return side_by_side(who, operation.new(basis.read(base) if own is None else base, None), choice)
    kind = operation.source_kind
    absent = kind == "none" or (kind == "optional" and source is None and who.source_representation is None)
    other = None if absent else who.given(base, source)
    if own is not None:
        new = operation.new(base, own.promoted(base) if operation.reads_vector else other)
        return who.within(base, new if new.dtype == base.dtype else new.to(base.dtype), choice)
    if isinstance(basis, Basis) and operation.relative:
        other = None if other is None else basis.difference(base, other)
        at = basis.zeros(base) if other is None else torch.zeros_like(other)
        change = operation.new(at, base.to(at.dtype) if operation.reads_vector else other)
    else:
        at = basis.read(base)
        other = None if other is None else basis.read(other)
        change = operation.new(at, base.to(at.dtype) if operation.reads_vector else other) - at
    return _moved(who, basis, base, change, at, choice, gate)


def transcoded(
    who: Intervention,
    operation: Operation,
    basis: Coordinates,
    base: Tensor,
    inputs: Tensor,
    choice: Choice | None,
    gate: Tensor | None = None,
) -> Tensor:
    """Return a module's output moved by a transcoder's decoder; the latents are those of the module's `inputs`.

    An operation without a source changes them: the inputs are to be the base's own then. `Add` and `Subtract` take
    them as the source's: those of two runs are swapped by adding those of one and subtracting those of the other.
    """
    at = basis.read(inputs)
    if not operation.writes:
        return side_by_side(who, operation.new(at, None), choice)
    if operation.source_kind == "run":
        change = operation.new(at.new_zeros(()).expand_as(at), at)
    else:
        change = operation.new(at, inputs.to(at.dtype) if operation.reads_vector else None) - at
    return _moved(who, basis, base, change, at, choice, gate)


def _moved(
    who: Intervention,
    basis: Coordinates,
    base: Tensor,
    change: Tensor,
    at: Tensor,
    choice: Choice | None,
    gate: Tensor | None,
) -> Tensor:
    """Return `base` moved by what is let through of a change of coordinates."""
    return basis.moved(base, who.restricted(change if gate is None else change * gate.to(change), choice), at)


def side_by_side(who: Intervention, values: Tensor, choice: Choice | None) -> Tensor:
    """Return the chosen coordinates, in ascending order.

    Raises:
        SpecError: the examples' subspaces differ in size.
    """
    mask = who.chosen(values, choice)
    if mask is None:
        return values
    sizes = sorted(set(mask.sum(-1).flatten().tolist()))
    if len(sizes) > 1:
        raise SpecError(f"subspaces of {sizes} coordinates cannot be collected in one call: choose equal sizes")
    return values[mask].view(*values.shape[:-1], sizes[0] if sizes else 0)

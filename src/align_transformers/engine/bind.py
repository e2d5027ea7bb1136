"""Plan + model + inputs -> `Bound`: every word is a module, an index tensor or a value. User errors surface here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from .._errors import PlanError, PositionError, SiteError, UnknownNameError, near_misses
from ..interventions import Intervention
from ..models import Slot, uncompiled
from ..plan import Constant, Edit, Plan, Read, Run
from ..positions import Positions, Rows
from ..sites import Site
from .inputs import Inputs, batch_size, real_spans, token_axis
from .places import Places, place
from .schedule import Pass, schedule
from .steps import find_place

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BoundRead:
    """A read with its module and its index tensors."""

    read: Read
    slot: Slot
    places: Places


@dataclass(frozen=True, eq=False)
class BoundEdit:
    """An edit with its module, its index tensors, its operation and, where that is known already, its source value.

    Args:
        edit: what was asked.
        slot: where the tensor is.
        places: index tensors at the input's positions.
        intervention: the operation.
        constant: the source value where it does not come from a run.
    """

    edit: Edit
    slot: Slot
    places: Places
    intervention: Intervention
    constant: Tensor | None


@dataclass(frozen=True, eq=False)
class Bound:
    """A plan that fits one model and its inputs; it can be run as it is."""

    model: nn.Module
    passes: tuple[Pass, ...]
    inputs: Mapping[str, Inputs]
    edits: Mapping[str, BoundEdit]
    reads: Mapping[Read, BoundRead]


def bind(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, Inputs],
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor] | None = None,
) -> Bound:
    """Make a plan fit a model and its inputs. No forward pass is run.

    Args:
        model: the user's model; it is not changed. A compiled one is run uncompiled while it is edited.
        plan: what is to happen.
        inputs: for each input name of the plan the model's keyword arguments (or its only tensor).
        interventions: for each intervention name of the plan the module that computes the new value.
        constants: for each constant of the plan its value, broadcastable to `(batch, units, width)`.

    Raises:
        UnknownNameError: the plan names an input, intervention or constant that was not handed in.
        SiteError: a site does not exist in this model.
        PositionError: a position or head does not exist, or lies on padding.
        PlanError: an edit lacks its source, or reads another number of places than it writes.
    """
    for run in plan.runs:
        _look_up(inputs, run.input, "input")
    passes = schedule(plan)
    reads = {read: _bind_read(model, read, inputs[plan.run(read.run).input]) for one in passes for read in one.reads}
    edits = {}
    for one in passes:
        for edit in one.run.edits:
            bound = _bind_edit(model, edit, one.run, inputs[one.run.input], interventions, constants or {})
            if isinstance(edit.source, Read):
                source_input = inputs[plan.run(edit.source.run).input]
                _check_fit(bound, reads[edit.source], inputs[one.run.input], source_input)
            edits[edit.name] = bound
    return Bound(uncompiled(model), passes, inputs, edits, reads)


def _look_up(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        raise UnknownNameError(f"the plan names the {kind} {name!r}; {near_misses(name, table)}")
    return table[name]


def _bind_read(model: nn.Module, read: Read, source: Inputs) -> BoundRead:
    slot = find_place(model, read.site)
    if read.positions.steps:
        raise PlanError(f"{read.site} is read from the run {read.run!r}: generated tokens can only be edited, not read")
    _check_positions(read.positions, read.site, source, f"run {read.run!r}")
    return BoundRead(read, slot, place(read.positions, slot, batch_size(source)))


def _bind_edit(
    model: nn.Module,
    edit: Edit,
    run: Run,
    base: Inputs,
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor],
) -> BoundEdit:
    slot = find_place(model, edit.site)
    intervention = _look_up(interventions, edit.intervention, "intervention")
    constant = _look_up(constants, edit.source.name, "constant") if isinstance(edit.source, Constant) else None
    if edit.source is None:
        constant = intervention.source_representation
        if constant is None and intervention.source_kind in ("run", "constant"):
            raise PlanError(
                f"{type(intervention).__name__} at {edit.site} needs a source: a source run, a source representation, "
                "or an instance constructed with source_representation="
            )
    batch = batch_size(base)
    if edit.subspace is not None and len(edit.subspace) != batch:
        raise PlanError(f"subspaces at {edit.site} name {len(edit.subspace)} examples, but the batch has {batch}")
    if intervention.writes:
        edit.positions.check_distinct(str(edit.site))
    if edit.positions.batch not in (None, batch):
        raise PositionError(f"locations at {edit.site} name {edit.positions.batch} examples, but the batch has {batch}")
    ragged = len({len(row) for row in edit.positions.rows or ()}) > 1
    if ragged and not intervention.keep_last_dim:
        raise PlanError(
            f"{type(intervention).__name__} at {edit.site} sees all units of an example as one vector "
            "(keep_last_dim=False), so every example must name the same number of units"
        )
    _check_positions(edit.positions, edit.site, base, f"run {run.name!r}")
    if constant is not None:
        _check_constant(constant, edit, batch, _widths(slot, edit.positions.heads))
    return BoundEdit(edit, slot, place(edit.positions, slot, batch), intervention, constant)


def _check_positions(positions: Positions, site: Site, inputs: Inputs, who: str) -> None:
    """Refuse positions outside the sequence or on its padding, as far as the input tells."""
    spans = real_spans(inputs, site.sequence)
    if spans is None or positions.rows is None:
        return
    if len(spans) == 1:
        spans = spans * len(positions.rows)
    for example, (row, (start, end)) in enumerate(zip(positions.rows, spans, strict=False)):
        for position in row:
            if not start <= position < end:
                raise PositionError(
                    f"position {position} at {site} is outside example {example} of {who}: its real tokens are at "
                    f"{start} to {end - 1}"
                )


def _check_constant(constant: Tensor, edit: Edit, batch: int, width: int | None) -> None:
    """Refuse a constant that cannot be broadcast to `(batch, units, width)`, as far as these are known."""
    units = edit.positions.widest if not edit.positions.steps else None
    wanted = [(width, "width")] + ([(units, "units"), (batch, "batch")] if constant.ndim <= 3 else [])
    for size, (known, what) in zip(reversed(constant.shape), wanted, strict=False):
        if known is not None and size not in (1, known):
            raise PlanError(
                f"the constant source at {edit.site} has shape {tuple(constant.shape)}, which does not fit "
                f"(batch, units, width): the {what} is {known}"
            )


def _check_fit(edit: BoundEdit, read: BoundRead, base: Inputs, source: Inputs) -> None:
    """Refuse a read that cannot fill the places of its edit."""
    written, read_at = edit.edit.positions, read.read.positions
    where = f"{edit.edit.site} (source: {read.read.site} of run {read.read.run!r})"
    batches = (batch_size(base), read_at.batch or batch_size(source))
    if batches[1] not in (1, batches[0]):
        raise PlanError(f"{where}: the base has {batches[0]} examples, but {batches[1]} are read from the source")
    if written.steps and read_at.widest != 1:
        raise PlanError(f"{where}: a generated token is one place, so exactly one source position must be named")
    if written.rows is None and read_at.rows is None:
        _check_lengths(where, token_axis(base, edit.edit.site.sequence), token_axis(source, read.read.site.sequence))
    elif read_at.rows is None and written.rows is not None:
        raise PlanError(f"{where}: positions are written but none are named to read; give the source's positions too")
    elif written.rows is None and read_at.widest != 1:
        raise PlanError(f"{where}: the whole sequence is written, so all positions or exactly one must be read")
    _check_counts(where, "positions", written.rows, read_at.rows)
    _check_counts(where, "heads", written.heads, read_at.heads)
    widths = _widths(edit.slot, written.heads), _widths(read.slot, read_at.heads)
    if None not in widths and widths[0] != widths[1]:
        raise SiteError(f"{where}: {widths[0]} coordinates are written, but {widths[1]} are read")


def _check_lengths(where: str, base_tokens: Tensor | None, source_tokens: Tensor | None) -> None:
    if base_tokens is not None and source_tokens is not None and base_tokens.shape[1] != source_tokens.shape[1]:
        raise PositionError(
            f"{where}: the whole sequence is written, but the base has {base_tokens.shape[1]} tokens and the source "
            f"{source_tokens.shape[1]}; name positions in unit_locations"
        )


def _check_counts(where: str, what: str, written: Rows | None, read: Rows | None) -> None:
    if written is None or read is None:
        return
    one_each = what == "positions" and max((len(row) for row in read), default=0) == 1
    pairs = zip(written, read * len(written) if len(read) == 1 else read, strict=False)
    for example, (to, origin) in enumerate(pairs):
        if len(origin) != len(to) and not (one_each and len(origin) == 1):
            hint = " (one position may be read for many, but then in every example)" if len(origin) == 1 else ""
            raise PlanError(f"{where}: example {example} writes {len(to)} {what} but reads {len(origin)}{hint}")


def _widths(slot: Slot, heads: Rows | None) -> int | None:
    if heads is None or slot.heads is None:
        return slot.width
    return slot.heads.shape[1] * max((len(row) for row in heads), default=0)

"""What a user can do wrong in a plan, seen before any forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from .._errors import PlanError, PositionError, SiteError, UnknownNameError, near_misses
from ..interventions import Intervention
from ..models import Slot
from ..models.sequence import Inputs, batch_size, logits_stack, real_spans, token_axis
from ..plan import Edit, Examples, Read, Run
from ..positions import Positions, Rows, Span
from ..sites import Site

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return what was handed in under a name of the plan.

    Raises:
        UnknownNameError: nothing was.
    """
    if name not in table:
        raise UnknownNameError(f"the plan names the {kind} {name!r}; {near_misses(name, table)}")
    return table[name]


def check_examples(run: Run, inputs: Inputs) -> None:
    """Refuse a run of examples that its input does not have."""
    batch = batch_size(inputs)
    wrong = [example for example in run.examples or () if not 0 <= example < batch]
    if wrong:
        raise PlanError(
            f"run {run.name!r} works on example {wrong[0]}, but the input {run.input!r} has {batch}, from 0"
        )


def check_columns(name: str, columns: tuple[int, ...], inputs: Inputs) -> None:
    """Refuse to read logits of other examples than there are, or outside the real tokens of one."""
    spans, batch = real_spans(inputs, logits_stack(inputs)), batch_size(inputs)
    if len(columns) != batch:
        raise PlanError(f"the logits of {len(columns)} examples of {name!r} are to be read, but it has {batch}")
    for example, (column, (start, end)) in enumerate(zip(columns, spans or (), strict=False)):
        if not start <= column < end:
            raise PositionError(
                f"the logits of example {example} of {name!r} are to be read at {column}, but its real tokens are at "
                f"{start} to {end - 1}"
            )


def check_read(read: Read, batch: int) -> None:
    """Refuse to read generated tokens, or examples that the run does not have.

    Args:
        read: what is asked for.
        batch: how many examples the run that is read works on.
    """
    if read.positions.steps:
        raise PlanError(f"{read.site} is read from the run {read.run!r}: generated tokens can only be edited, not read")
    if read.examples is None:
        return
    if read.positions.batch not in (None, len(read.examples)):
        raise PlanError(
            f"{read.site} of run {read.run!r}: examples={list(read.examples)} needs as many lines of positions, or none"
        )
    wrong = [example for example in read.examples if not 0 <= example < batch]
    if wrong:
        raise PlanError(f"{read.site} is read from example {wrong[0]} of run {read.run!r}, which has {batch}, from 0")


def check_edit(edit: Edit, intervention: Intervention, constant: Tensor | None, batch: int) -> None:
    """Refuse an edit that lacks its source, or that does not fit the examples of its run.

    Args:
        edit: what is asked for.
        intervention: its operation.
        constant: the source value where it does not come from a run.
        batch: how many examples its run works on.
    """
    if edit.source is None and constant is None and intervention.source_kind in ("run", "constant"):
        raise PlanError(
            f"{type(intervention).__name__} at {edit.site} needs a source: a source run, a source representation, "
            "or an instance constructed with source_representation="
        )
    if isinstance(edit.source, tuple) and not intervention.reads_several:
        raise PlanError(
            f"{type(intervention).__name__} at {edit.site} takes one source; found {len(edit.source)} reads: a "
            "function f(base, sources) takes several, and so does an intervention with reads_several = True"
        )
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


def check_positions(
    positions: Positions, site: Site, spans: list[Span] | None, who: str, examples: Examples | None = None
) -> None:
    """Refuse positions outside the sequence or on its padding, as far as the input tells."""
    if spans is not None and examples is not None:
        spans = [spans[example] for example in examples]
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


def check_constant(constant: Tensor, edit: Edit, batch: int, slot: Slot) -> None:
    """Refuse a constant that cannot be broadcast to `(batch, units, width)`, as far as these are known."""
    units, width = edit.positions.widest if not edit.positions.steps else None, _width(slot, edit.positions.heads)
    wanted = [(width, "width")] + ([(units, "units"), (batch, "batch")] if constant.ndim <= 3 else [])
    for size, (known, what) in zip(reversed(constant.shape), wanted, strict=False):
        if known is not None and size not in (1, known):
            raise PlanError(
                f"the constant source at {edit.site} has shape {tuple(constant.shape)}, which does not fit "
                f"(batch, units, width): the {what} is {known}"
            )


def check_fit(
    edit: Edit,
    slot: Slot,
    intervention: Intervention,
    read: Read,
    origin: Slot,
    into: tuple[Inputs, int],
    out_of: tuple[Inputs, int],
) -> None:
    """Refuse a read that cannot fill the places of its edit.

    Args:
        edit: what is written.
        slot: where.
        intervention: its operation.
        read: what is read for it.
        origin: where that is.
        into: the edited run's input, and how many examples the run has.
        out_of: the read run's, likewise.
    """
    written, read_at = edit.positions, read.positions
    where = f"{edit.site} (source: {read.site} of run {read.run!r})"
    (base, examples), (source, source_examples) = into, out_of
    found = read_at.batch or (source_examples if read.examples is None else len(read.examples))
    if found not in (1, examples):
        raise PlanError(f"{where}: the base has {examples} examples, but {found} are read from the source")
    if isinstance(edit.source, tuple):
        return  # of several values each may be of any places and width
    if written.steps and read_at.widest != 1:
        raise PlanError(f"{where}: a generated token is one place, so exactly one source position must be named")
    if written.rows is None and read_at.rows is None:
        _check_lengths(where, token_axis(base, edit.site.sequence), token_axis(source, read.site.sequence))
    elif read_at.rows is None and written.rows is not None:
        raise PlanError(f"{where}: positions are written but none are named to read; give the source's positions too")
    elif written.rows is None and read_at.widest != 1:
        raise PlanError(f"{where}: the whole sequence is written, so all positions or exactly one must be read")
    _check_counts(where, "positions", written.rows, read_at.rows)
    _check_counts(where, "heads", written.heads, read_at.heads)
    taken = intervention.source_width or _width(slot, written.heads)
    given = _width(origin, read_at.heads)
    if None not in (taken, given) and taken != given:
        what = "written" if intervention.source_width is None else "needed"
        raise SiteError(f"{where}: {taken} coordinates are {what}, but {given} are read")


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


def _width(slot: Slot, heads: Rows | None) -> int | None:
    if heads is None or slot.heads is None:
        return slot.width
    return slot.heads.shape[1] * max((len(row) for row in heads), default=0)

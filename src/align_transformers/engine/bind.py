"""Plan + model + inputs -> `Bound`: every word is a module, an index tensor or a value. User errors surface here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from .._errors import PlanError, PositionError, SiteError, UnknownNameError, near_misses
from ..interventions import Intervention
from ..models import Slot, uncompiled
from ..models.resolve import known_map
from ..plan import Constant, Edit, Examples, Logits, Plan, Read, Run
from ..positions import Positions, Rows
from ..sites import Site
from .chain import Chain, find_chain
from .inputs import Inputs, Span, batch_size, last_columns, logits_stack, real_spans, token_axis
from .kept import Kept
from .places import Places, place
from .schedule import Depth, Pass, depth_of, schedule
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
        read: the read that it comes from, where it does.
    """

    edit: Edit
    slot: Slot
    places: Places
    intervention: Intervention
    constant: Tensor | None
    read: BoundRead | None = None


@dataclass(frozen=True, eq=False)
class Bound:
    """A plan that fits one model and its inputs; it can be run as it is.

    Args:
        model: the user's, uncompiled.
        passes: what is to be run, in order.
        inputs: by name.
        edits: by name.
        reads: what later passes need of earlier ones.
        logits: what of the outputs is wanted; `None`: all that the model returns.
        chain: the model's blocks, where they are known.
        depths: how deep each site is, where that is known.
        known: the unedited states of inputs, where they are known already.
    """

    model: nn.Module
    passes: tuple[Pass, ...]
    inputs: Mapping[str, Inputs]
    edits: Mapping[str, BoundEdit]
    reads: Mapping[Read, BoundRead]
    logits: Logits | None = None
    chain: Chain | None = None
    depths: Mapping[Site, Depth | None] = field(default_factory=dict)
    known: Mapping[str, Kept] = field(default_factory=dict)

    def columns(self, run: Run) -> Int64[Tensor, " examples"] | None:
        """Return the column at which the logits of each example of a run are read; `None`: whole outputs, or the last.

        The last column is meant where only logits are wanted of an input whose sequence is not known.
        """
        columns = self._columns.get(run.input)
        return columns if columns is None or run.examples is None else columns[list(run.examples)]

    @cached_property
    def _columns(self) -> dict[str, Int64[Tensor, " batch"] | None]:
        """By input the column at which the logits of each of its examples are read; worked out once for all runs."""
        if self.logits is None:
            return {}
        named = {name: torch.tensor(columns) for name, columns in self.logits.at}
        return {name: named[name] if name in named else last_columns(given) for name, given in self.inputs.items()}


def bind(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, Inputs],
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor] | None = None,
    known: Mapping[str, Kept] | None = None,
) -> Bound:
    """Make a plan fit a model and its inputs. No forward pass is run.

    Args:
        model: the user's model; it is not changed. A compiled one is run uncompiled while it is edited.
        plan: what is to happen.
        inputs: for each input name of the plan the model's keyword arguments (or its only tensor).
        interventions: for each intervention name of the plan the module that computes the new value.
        constants: for each constant of the plan its value, broadcastable to `(batch, units, width)`.
        known: for some of the inputs what the unedited model makes of them, so that runs need not begin at the start.

    Raises:
        UnknownNameError: the plan names an input, intervention or constant that was not handed in.
        SiteError: a site does not exist in this model.
        PositionError: a position or head does not exist, or lies on padding.
        PlanError: an edit lacks its source, or reads another number of places than it writes.
    """
    for run in plan.runs:
        _look_up(inputs, run.input, "input")
        _check_examples(run, inputs[run.input])
    for name, columns in () if plan.logits is None else plan.logits.at:
        _check_columns(name, columns, _look_up(inputs, name, "input"))
    slots = {site: find_place(model, site) for site in _sites(plan)}
    chain, depths = _depths(model, slots)
    passes = schedule(plan, known=known or (), depth=depths.__getitem__)
    spans = _Spans(inputs)
    reads = {}
    for read in (read for one in passes for read in one.reads):
        reads[read] = _bind_read(slots[read.site], read, plan.run(read.run), spans)
    edits = {}
    for run in (run for one in passes for run in one.runs):
        for edit in run.edits:
            bound = _bind_edit(slots[edit.site], edit, run, spans, interventions, constants or {})
            if isinstance(edit.source, Read):
                source = plan.run(edit.source.run)
                _check_fit(
                    bound,
                    reads[edit.source],
                    (inputs[run.input], _count(run, inputs)),
                    (inputs[source.input], _count(source, inputs)),
                )
                bound = replace(bound, read=reads[edit.source])
            edits[edit.name] = bound
    return Bound(uncompiled(model), passes, inputs, edits, reads, plan.logits, chain, depths, known or {})


class _Spans:
    """Where the real tokens of the inputs are, looked up once for each input."""

    def __init__(self, inputs: Mapping[str, Inputs]) -> None:
        self.inputs = inputs
        self._known: dict[tuple[str, str], list[Span] | None] = {}

    def of(self, run: Run, stack: str) -> list[Span] | None:
        """Return the spans of a run's examples; `None` if not known."""
        key = run.input, stack
        if key not in self._known:
            self._known[key] = real_spans(self.inputs[run.input], stack)
        spans = self._known[key]
        return spans if spans is None or run.examples is None else [spans[example] for example in run.examples]


def _sites(plan: Plan) -> list[Site]:
    sites = dict.fromkeys(edit.site for edit in plan.edits())
    return list(sites | dict.fromkeys(read.site for read in plan.reads()))


def starts_of(model: nn.Module, plan: Plan) -> tuple[Chain | None, dict[str, set[Depth]]]:
    """Return the model's chain of blocks, and how deep the runs of each input would start if its states were known.

    Args:
        model: the user's.
        plan: what is to happen.
    """
    chain, depths = _depths(model, {site: find_place(model, site) for site in _sites(plan)})
    starts: dict[str, set[Depth]] = {}
    for one in schedule(plan, known={run.input for run in plan.runs}, depth=depths.__getitem__):
        if one.start is not None:
            starts.setdefault(one.runs[0].input, set()).update(one.start.depths)
    return chain, starts


def _depths(model: nn.Module, slots: Mapping[Site, Slot]) -> tuple[Chain | None, dict[Site, Depth | None]]:
    """Return the model's chain of blocks, and how deep each site is in it."""
    found = known_map(model)
    chain = None if found is None else find_chain(found)
    return chain, {site: _depth(site, slot, chain) for site, slot in slots.items()}


def _depth(site: Site, slot: Slot, chain: Chain | None) -> Depth | None:
    """Return how deep a site is in a model whose blocks are known."""
    if chain is None or slot.call is not None:
        return None
    if site.path is not None:
        return chain.depth_of(slot.path) if site.call is None else None
    depth = depth_of(site)
    return depth if depth is None or chain.knows(depth) else None


def _count(run: Run, inputs: Mapping[str, Inputs]) -> int:
    """Return how many examples a run works on."""
    return batch_size(inputs[run.input]) if run.examples is None else len(run.examples)


def _check_examples(run: Run, inputs: Inputs) -> None:
    batch = batch_size(inputs)
    wrong = [example for example in run.examples or () if not 0 <= example < batch]
    if wrong:
        raise PlanError(
            f"run {run.name!r} works on example {wrong[0]}, but the input {run.input!r} has {batch}, from 0"
        )


def _check_columns(name: str, columns: tuple[int, ...], inputs: Inputs) -> None:
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


def _look_up(table: Mapping[str, T], name: str, kind: str) -> T:
    if name not in table:
        raise UnknownNameError(f"the plan names the {kind} {name!r}; {near_misses(name, table)}")
    return table[name]


def _bind_read(slot: Slot, read: Read, run: Run, spans: _Spans) -> BoundRead:
    if read.positions.steps:
        raise PlanError(f"{read.site} is read from the run {read.run!r}: generated tokens can only be edited, not read")
    batch = _count(run, spans.inputs)
    if read.examples is not None:
        _check_read_examples(read, batch)
    _check_positions(read.positions, read.site, spans.of(run, read.site.sequence), f"run {read.run!r}", read.examples)
    return BoundRead(read, slot, place(read.positions, slot, batch, read.examples))


def _check_read_examples(read: Read, batch: int) -> None:
    examples = read.examples or ()
    if read.positions.rows is None or len(read.positions.rows) != len(examples):
        raise PlanError(f"{read.site} of run {read.run!r}: examples={list(examples)} needs as many lines of positions")
    wrong = [example for example in examples if not 0 <= example < batch]
    if wrong:
        raise PlanError(f"{read.site} is read from example {wrong[0]} of run {read.run!r}, which has {batch}, from 0")


def _bind_edit(
    slot: Slot,
    edit: Edit,
    run: Run,
    spans: _Spans,
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor],
) -> BoundEdit:
    intervention = _look_up(interventions, edit.intervention, "intervention")
    constant = _look_up(constants, edit.source.name, "constant") if isinstance(edit.source, Constant) else None
    if edit.source is None:
        constant = intervention.source_representation
        if constant is None and intervention.source_kind in ("run", "constant"):
            raise PlanError(
                f"{type(intervention).__name__} at {edit.site} needs a source: a source run, a source representation, "
                "or an instance constructed with source_representation="
            )
    batch = _count(run, spans.inputs)
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
    _check_positions(edit.positions, edit.site, spans.of(run, edit.site.sequence), f"run {run.name!r}")
    if constant is not None:
        _check_constant(constant, edit, batch, _widths(slot, edit.positions.heads))
    return BoundEdit(edit, slot, place(edit.positions, slot, batch), intervention, constant)


def _check_positions(
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


def _check_fit(edit: BoundEdit, read: BoundRead, into: tuple[Inputs, int], out_of: tuple[Inputs, int]) -> None:
    """Refuse a read that cannot fill the places of its edit.

    Args:
        edit: what is written.
        read: what is read for it.
        into: the edited run's input, and how many examples the run has.
        out_of: the read run's, likewise.
    """
    written, read_at = edit.edit.positions, read.read.positions
    where = f"{edit.edit.site} (source: {read.read.site} of run {read.read.run!r})"
    (base, count), (source, source_count) = into, out_of
    batches = count, read_at.batch or source_count
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

"""Plan + model + inputs -> `Bound`: every word is a module, an index tensor or a value. User errors surface here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from jaxtyping import Int64
from torch import Tensor, nn

from .._checked import checked
from ..interventions import Intervention
from ..models import Slot, find_slot, uncompiled
from ..models.sequence import Inputs, check_tokens
from ..plan import Constant, Edit, Plan, Read, Run
from ..sites import Site
from .inputs import Spans, count, read_columns
from .places import Places, place
from .refusals import (
    check_columns,
    check_constant,
    check_edit,
    check_examples,
    check_fit,
    check_positions,
    check_read,
    look_up,
)


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
        reads: the reads that it comes from, where it does.
        lines: the examples of the run that a pass is about; `None` for all. Sources and subspaces are of all of them.
        pure: the operation is known to write into nothing that it is given.
    """

    edit: Edit
    slot: Slot
    places: Places
    intervention: Intervention
    constant: Tensor | None
    reads: tuple[BoundRead, ...] = ()
    lines: range | None = None
    pure: bool = False

    @property
    def named(self) -> bool:
        """Whether positions are named, by what is written or by what is read for it."""
        return self.places.index is not None or any(one.read.positions.rows is not None for one in self.reads)


@dataclass(frozen=True, eq=False)
class Bound:
    """A plan that fits one model and its inputs; it can be run as it is.

    Args:
        model: the user's, uncompiled.
        plan: what is to happen.
        order: the runs that are needed, each after those that it reads.
        inputs: by name.
        edits: by name.
        reads: everything that is read of the runs in `order`.
        generates: the run whose output is wanted is a generation.
        notes: what a planner has worked out for this plan and model, whatever the inputs hold; shared by copies.
    """

    model: nn.Module
    plan: Plan
    order: tuple[Run, ...]
    inputs: Mapping[str, Inputs]
    edits: Mapping[str, BoundEdit]
    reads: Mapping[Read, BoundRead]
    generates: bool = False
    notes: dict[Any, Any] = field(default_factory=dict, repr=False)

    def count(self, run: Run, stack: str = "") -> int:
        """Return how many examples a run works on, or a stack in it."""
        return count(run, self.inputs, stack)

    def reads_of(self, run: Run) -> tuple[Read, ...]:
        """Return what is read of a run."""
        return self._reads_of.get(run.name, ())

    def columns(self, run: Run) -> Int64[Tensor, " examples"] | None:
        """Return the column at which the logits of each example of a run are read; `None`: whole outputs, or the last.

        The last column is meant where only logits are wanted of an input whose sequence is not known.
        """
        columns = self._columns.get(run.input)
        return columns if columns is None or run.examples is None else columns[list(run.examples)]

    @cached_property
    def _reads_of(self) -> dict[str, tuple[Read, ...]]:
        found: dict[str, tuple[Read, ...]] = {}
        for read in self.reads:
            found[read.run] = (*found.get(read.run, ()), read)
        return found

    @cached_property
    def _columns(self) -> dict[str, Int64[Tensor, " batch"] | None]:
        """By input the column at which the logits of each of its examples are read; worked out once for all runs."""
        logits = self.plan.logits
        return (
            {} if logits is None else {name: read_columns(name, given, logits) for name, given in self.inputs.items()}
        )


@checked
def bind(
    model: nn.Module,
    plan: Plan,
    inputs: Mapping[str, Inputs],
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor] | None = None,
) -> Bound:
    """Make a plan fit a model and its inputs. No forward pass is run, but the one that finds the model's components.

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
    for name, given in inputs.items():
        check_tokens(model, given, f"the input {name!r}")
    for run in plan.runs:
        check_examples(run, look_up(inputs, run.input, "input"))
    for name, columns in () if plan.logits is None else plan.logits.at:
        check_columns(name, columns, look_up(inputs, name, "input"))
    slots = {site: find_slot(model, site) for site in _sites(plan)}
    order, spans = plan.order(), Spans(inputs)
    wanted = dict.fromkeys(read for run in order for edit in run.edits for read in edit.reads)
    reads = {
        read: _bind_read(slots[read.site], read, plan.run(read.run), spans)
        for read in wanted | dict.fromkeys(plan.values)
    }
    edits = {}
    for run in order:
        for edit in run.edits:
            bound = _bind_edit(slots[edit.site], edit, run, spans, interventions, constants or {})
            for read in edit.reads:
                source, into = plan.run(read.run), (inputs[run.input], count(run, inputs, edit.site.sequence))
                out_of = inputs[source.input], count(source, inputs, read.site.sequence)
                check_fit(edit, bound.slot, bound.intervention, read, reads[read].slot, into, out_of)
            edits[edit.name] = replace(bound, reads=tuple(reads[read] for read in edit.reads))
    return Bound(uncompiled(model), plan, order, inputs, edits, reads)


def _sites(plan: Plan) -> list[Site]:
    sites = dict.fromkeys(edit.site for edit in plan.edits())
    return list(sites | dict.fromkeys(read.site for read in plan.reads()))


def _bind_read(slot: Slot, read: Read, run: Run, spans: Spans) -> BoundRead:
    batch = count(run, spans.inputs, read.site.sequence)
    check_read(read, batch)
    check_positions(read.positions, read.site, spans.of(run, read.site.sequence), f"run {run.name!r}", read.examples)
    return BoundRead(read, slot, place(read.positions, slot, batch, read.examples))


def _bind_edit(
    slot: Slot,
    edit: Edit,
    run: Run,
    spans: Spans,
    interventions: Mapping[str, Intervention],
    constants: Mapping[str, Tensor],
) -> BoundEdit:
    intervention = look_up(interventions, edit.intervention, "intervention")
    constant = look_up(constants, edit.source.name, "constant") if isinstance(edit.source, Constant) else None
    constant = intervention.source_representation if edit.source is None else constant
    batch = count(run, spans.inputs, edit.site.sequence)
    check_edit(edit, intervention, constant, batch)
    check_positions(edit.positions, edit.site, spans.of(run, edit.site.sequence), f"run {run.name!r}")
    if constant is not None:
        check_constant(constant, edit, batch, slot)
    return BoundEdit(
        edit, slot, place(edit.positions, slot, batch), intervention, constant, pure=_is_pure(intervention)
    )


def _is_pure(intervention: Intervention) -> bool:
    """Whether an intervention is one of the library's own, other than a function of the user's."""
    return intervention.repeatable and type(intervention).__module__.startswith(f"{__package__.partition('.')[0]}.")

"""Carrying out a bound plan: capture, read, intervene, write, and count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._errors import InterventionError, NeverFiredError, PlanError
from ..plan import Read
from .bind import Bound, BoundEdit, BoundRead
from .hooks import Tap, tapped
from .inputs import Inputs
from .ledger import Effect, Tally, close
from .places import Places
from .schedule import Pass
from .window import Window, visible


@dataclass(frozen=True, eq=False)
class Collected:
    """What a collecting edit saw.

    Args:
        values: for each firing `(batch, units, width)`; zeros at padding.
        real: for each firing `(batch, units)`, False at padding.
    """

    values: tuple[Tensor, ...]
    real: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a plan.

    Args:
        outputs: for each wanted run what the model returned.
        collected: for each collecting edit what it saw.
        effects: the ledger, one entry an edit, in the order of the passes.
    """

    outputs: Mapping[str, Any]
    collected: Mapping[str, Collected]
    effects: tuple[Effect, ...]


@dataclass(eq=False)
class Work:
    """The state of a plan that is being carried out."""

    bound: Bound
    captured: dict[Read, list[Tensor]] = field(default_factory=dict)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    window: Window = field(default_factory=Window)


Forward = Callable[[Work, Inputs, Callable[[], None]], Any]
"""How a pass is run: called with the work, the input, and a function that says a new forward pass begins."""


def forward_once(work: Work, inputs: Inputs, _restart: Callable[[], None]) -> Any:
    """Run one forward pass of the model."""
    return work.bound.model(inputs) if isinstance(inputs, Tensor) else work.bound.model(**inputs)


def execute(bound: Bound, last: Forward = forward_once) -> Outcome:
    """Carry out a bound plan.

    Args:
        bound: from `bind`.
        last: how to run the last pass: one forward pass, or a whole generation.

    Returns:
        The outputs asked for, what was collected, and the ledger.

    Raises:
        NeverFiredError: an edit or a read was never reached.
        InterventionError: an intervention returned another shape.
    """
    _check_clocks(bound, last)
    work = Work(bound)
    outputs: dict[str, Any] = {}
    for number, one in enumerate(bound.passes, start=1):
        forward = last if number == len(bound.passes) else forward_once
        with _hooked(work, one) as restart:
            output = forward(work, bound.inputs[one.run.input], restart)
        _check_reads(work, one)
        if one.wanted:
            outputs[one.run.name] = output
    seen = work.collected.items()
    collected = {name: Collected(tuple(v for v, _ in pairs), tuple(r for _, r in pairs)) for name, pairs in seen}
    return Outcome(outputs, collected, close(list(work.tallies.values())))


def _check_clocks(bound: Bound, last: Forward) -> None:
    """Refuse edits of generated tokens in runs that generate none."""
    for number, one in enumerate(bound.passes, start=1):
        generates = number == len(bound.passes) and last is not forward_once
        for edit in one.run.edits:
            if edit.positions.steps and not generates:
                raise PlanError(f"{edit.site}: generated tokens are edited, but run {one.run.name!r} generates none")


@contextmanager
def _hooked(work: Work, one: Pass) -> Iterator[Callable[[], None]]:
    """Hold the hooks of one pass: its edits in their order, then what others read of it."""
    edits = [work.bound.edits[edit.name] for edit in one.run.edits]
    work.tallies.update({edit.edit.name: Tally(edit.edit) for edit in edits})
    taps = [_edit_tap(work, edit) for edit in edits]
    taps += [_read_tap(work, work.bound.reads[read]) for read in one.reads]
    with tapped(taps) as restart:
        yield restart


def _check_reads(work: Work, one: Pass) -> None:
    missed = [str(read.site) for read in one.reads if read not in work.captured]
    if missed:
        raise NeverFiredError(f"run {one.run.name!r} never reached {'; '.join(missed)}, which another run reads")


def _read_tap(work: Work, read: BoundRead) -> Tap:
    def act(tensor: Tensor, _call: int) -> None:
        read.places.check(tensor, str(read.read.site))
        work.captured.setdefault(read.read, []).append(read.places.fitted(tensor).gather(tensor))

    return Tap(read.slot, act)


def _edit_tap(work: Work, edit: BoundEdit) -> Tap:
    def act(tensor: Tensor, call: int) -> Tensor | None:
        new = tensor
        for places in visible(edit.edit, edit.places, work.window, tensor, not edit.intervention.writes):
            new = _apply(work, edit, places, new, call)
        return None if new is tensor else new

    return Tap(edit.slot, act)


def _apply(work: Work, edit: BoundEdit, places: Places, tensor: Tensor, call: int) -> Tensor:
    """Gather, intervene and scatter once; return the new activation, or the old one if the edit only looks."""
    places.check(tensor, str(edit.edit.site))
    places = places.fitted(tensor)
    old = places.gather(tensor)
    new = _intervene(edit, old, _source(work, edit, call, old), work.window.repeats)
    tally, mask = work.tallies[edit.edit.name], places.real_values(old)
    if not edit.intervention.writes:
        tally.count(old, None, mask)
        real = torch.ones(old.shape[:-1], dtype=torch.bool) if places.real is None else places.real
        work.collected.setdefault(edit.edit.name, []).append((new, real))
        return tensor
    if tuple(new.shape) != tuple(old.shape):
        new = _broadcast(edit, new, old)
    # The intervention may have written into its private copy of the base, so the old value is gathered again.
    tally.count(places.gather(tensor), new, mask)
    return places.scatter(tensor, new.to(tensor.dtype))


def _source(work: Work, edit: BoundEdit, call: int, old: Tensor) -> Tensor | None:
    """Return the value from outside, broadcastable to `old`; `None` if there is none."""
    source = edit.edit.source
    if isinstance(source, Read):
        values = work.captured[source]
        if 1 < len(values) <= call:
            raise PlanError(
                f"{edit.edit.site} was reached {call + 1} times in the base, but {len(values)} times in its source run"
            )
        value = values[call] if len(values) > 1 else values[0]
        if work.window.prompt is not None and source.positions.rows is None:  # a prompt processed in chunks
            value = value[:, work.window.start : work.window.start + old.shape[1]]
    elif edit.constant is not None:
        value = edit.constant
    else:
        return None
    repeats = work.window.repeats
    if repeats > 1 and value.ndim == old.ndim and value.shape[0] > 1:
        value = value.repeat_interleave(repeats, 0)
    return value.to(old.device)


def _intervene(edit: BoundEdit, old: Tensor, source: Tensor | None, repeats: int) -> Tensor:
    """Call the intervention on the values in the shape that it asks for."""
    intervention, subspace, base = edit.intervention, edit.edit.subspace, old
    value, version = source, _version(source)
    if not intervention.keep_last_dim:
        base = old.flatten(1)
        source = None if source is None else source.expand_as(old).flatten(1)
    if subspace is None:
        new = intervention(base, source)
    else:
        new = intervention(base, source, tuple(parts for parts in subspace for _ in range(repeats)))
    if _version(value) != version:
        raise InterventionError(
            f"{type(intervention).__name__} at {edit.edit.site} wrote into its source, which other edits may read: "
            "return a new tensor"
        )
    if not isinstance(new, Tensor):
        raise InterventionError(f"{type(intervention).__name__} at {edit.edit.site} returned {type(new).__name__}")
    return new if intervention.keep_last_dim or new.shape != base.shape else new.view_as(old)


def _version(tensor: Tensor | None) -> int:
    """Return how often a tensor was written into, as far as PyTorch counts it."""
    return 0 if tensor is None or tensor.is_inference() else tensor._version


def _broadcast(edit: BoundEdit, new: Tensor, old: Tensor) -> Tensor:
    try:
        return new.expand_as(old)
    except RuntimeError as error:
        raise InterventionError(
            f"{type(edit.intervention).__name__} at {edit.edit.site} returned shape {tuple(new.shape)}; "
            f"the base has {tuple(old.shape)}"
        ) from error

"""Carrying out a bound plan: capture, read, intervene, write, and count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._errors import InterventionError, NeverFiredError, PlanError
from ..plan import Read
from .bind import Bound, BoundEdit, BoundRead
from .hooks import Tap, tapped
from .inputs import Inputs, token_axis
from .ledger import Effect, Tally, close
from .places import Places
from .schedule import Pass
from .steps import Assembly, Step, at_step, check_one_vector, counts_steps
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
    assembled: dict[Read | str, Assembly] = field(default_factory=dict)


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
        _check_steps(work, one)
        _check_reads(work, one)
        if one.wanted:
            outputs[one.run.name] = output
    collected = {name: _collected(pairs) for name, pairs in work.collected.items()}
    return Outcome(outputs, collected, close(list(work.tallies.values())))


def _collected(pairs: list[tuple[Tensor, Tensor]]) -> Collected:
    """Return what a collecting edit saw; each of several calls without a sequence axis is one unit."""
    if len(pairs) > 1:
        pairs = [(v.unsqueeze(1), r.unsqueeze(1)) if v.ndim == 2 else (v, r) for v, r in pairs]
    return Collected(tuple(value for value, _ in pairs), tuple(real for _, real in pairs))


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


def _check_steps(work: Work, one: Pass) -> None:
    """Refuse time steps that this pass never came to, and hand on what was collected step by step."""
    tokens = token_axis(work.bound.inputs[one.run.input])
    keys: list[Read | str] = [*one.reads, *(edit.name for edit in one.run.edits)]
    for key in keys:
        assembly = work.assembled.get(key)
        if assembly is not None:
            assembly.check(None if tokens is None else int(tokens.shape[1]))
            if isinstance(key, str) and assembly.values is not None and assembly.real is not None:
                work.collected[key] = [(assembly.values, assembly.real)]


def _check_reads(work: Work, one: Pass) -> None:
    missed = [str(read.site) for read in one.reads if read not in work.captured]
    if missed:
        raise NeverFiredError(f"run {one.run.name!r} never reached {'; '.join(missed)}, which another run reads")


def _read_tap(work: Work, read: BoundRead) -> Tap:
    def act(tensor: Tensor, call: int) -> None:
        if counts_steps(read.slot, tensor, read.places.index is not None):
            _read_step(work, read, tensor, call)
            return
        read.places.check(tensor, str(read.read.site))
        work.captured.setdefault(read.read, []).append(read.places.fitted(tensor).gather(tensor))

    return Tap(read.slot, act)


def _read_step(work: Work, read: BoundRead, tensor: Tensor, call: int) -> None:
    """Read what one call of a module, one time step, has for a read; tensor is `(batch, width)`."""
    assembly = work.assembled.setdefault(read.read, Assembly(str(read.read.site), read.places.reach))
    assembly.calls = call + 1
    step = at_step(read.places.to(tensor.device), call)
    if step is None:
        return
    column = tensor.unsqueeze(1)
    step.places.check(column, assembly.where)
    values = step.places.gather(column)
    work.captured[read.read] = [values if step.mask is None else assembly.add(step.mask, values)]


def _edit_tap(work: Work, edit: BoundEdit) -> Tap:
    def act(tensor: Tensor, call: int) -> Tensor | None:
        source = edit.edit.source
        named = edit.places.index is not None or (isinstance(source, Read) and source.positions.rows is not None)
        if work.window.prompt is None and counts_steps(edit.slot, tensor, named):
            return _edit_step(work, edit, tensor, call)
        new = tensor
        seen = replace(work, window=_window(edit, work.window, tensor))
        for places in visible(edit.edit, edit.places, seen.window, tensor, not edit.intervention.writes):
            new = _apply(seen, edit, places, new, call)
        return None if new is tensor else new

    return Tap(edit.slot, act)


def _window(edit: BoundEdit, window: Window, tensor: Tensor) -> Window:
    """Return the columns that the tensor is about: those of the pass, but attention gets all keys of the cache again.

    The cache holds them as they were before edits, so that edits of earlier keys are made again.
    """
    end, keys = window.start + window.length, tensor.shape[1] if tensor.ndim > 1 else 0
    if edit.edit.site.name != "key_rotary" or window.prompt is None or keys > end:
        return window
    return replace(window, start=end - keys, length=keys)


def _edit_step(work: Work, edit: BoundEdit, tensor: Tensor, call: int) -> Tensor | None:
    """Edit what one call of a module, one time step, has for an edit; tensor is `(batch, width)`."""
    assembly = work.assembled.setdefault(edit.edit.name, Assembly(str(edit.edit.site), edit.places.reach))
    assembly.calls = call + 1
    step = at_step(edit.places.to(tensor.device), call)
    if step is None:
        return None
    if not edit.intervention.keep_last_dim:
        check_one_vector(edit.edit.positions, assembly.where)
    column = tensor.unsqueeze(1)
    new = _apply(work, edit, step.places, column, call, step)
    return None if new is column else new.squeeze(1)


def _apply(work: Work, edit: BoundEdit, places: Places, tensor: Tensor, call: int, step: Step | None = None) -> Tensor:
    """Gather, intervene and scatter once; return the new activation, or the old one if the edit only looks."""
    places.check(tensor, str(edit.edit.site))
    places = places.fitted(tensor)
    old = places.gather(tensor)
    source = _source(work, edit, call, old)
    if step is not None and source is not None:
        source = step.pick(source)
    new = _intervene(edit, old, source, work.window.repeats)
    tally, mask = work.tallies[edit.edit.name], places.real_values(old)
    if not edit.intervention.writes:
        tally.count(old, None, mask)
        if step is not None and step.mask is not None:
            work.assembled[edit.edit.name].add(step.mask, new)
            return tensor
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

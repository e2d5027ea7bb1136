"""What happens at a slot when a pass comes by: read, or gather, intervene, scatter, and count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from .._errors import InterventionError, PlanError
from .bind import Bound, BoundEdit, BoundRead
from .hooks import Tap
from .ledger import Tally
from .places import Places
from .steps import Assembly, Step, at_step, check_one_vector, counts_steps
from .window import Window, visible


@dataclass(eq=False)
class Work:
    """The state of a plan that is being carried out."""

    bound: Bound
    captured: dict[BoundRead, list[Tensor]] = field(default_factory=dict)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    assembled: dict[BoundRead | str, Assembly] = field(default_factory=dict)


def read_tap(work: Work, read: BoundRead) -> Tap:
    """Return what a read does at its slot."""
    return Tap(read.slot, partial(_read, work, read))


def _read(work: Work, read: BoundRead, tensor: Tensor, call: int) -> None:
    """Keep what is read."""
    places = read.places
    if counts_steps(read.slot, tensor, places.index is not None):
        _read_step(work, read, tensor, call)
        return
    places.check(tensor, read.read.site)
    work.captured.setdefault(read, []).append(places.fitted(tensor).gather(tensor))


def _read_step(work: Work, read: BoundRead, tensor: Tensor, call: int) -> None:
    """Read what one call of a module, one time step, has for a read; tensor is `(batch, width)`."""
    assembly = work.assembled.setdefault(read, Assembly(str(read.read.site), read.places.reach))
    assembly.calls = call + 1
    step = at_step(read.places.to(tensor.device), call)
    if step is None:
        return
    column = tensor.unsqueeze(1)
    step.places.check(column, assembly.where)
    values = step.places.gather(column)
    work.captured[read] = [values if step.mask is None else assembly.add(step.mask, values)]


def edit_tap(work: Work, edit: BoundEdit) -> Tap:
    """Return what an edit does at its slot."""
    return Tap(edit.slot, partial(_edit, work, edit))


def _edit(work: Work, edit: BoundEdit, tensor: Tensor, call: int) -> Tensor | None:
    """Return the new activation, or `None` if the edit only looks."""
    if work.window.prompt is not None:
        new = _edit_window(work, edit, tensor, call)
    elif counts_steps(edit.slot, tensor, _names_positions(edit)):
        return _edit_step(work, edit, tensor, call)
    else:
        new = _apply(work, edit, edit.places, tensor, call)
    return None if new is tensor else new


def _names_positions(edit: BoundEdit) -> bool:
    return edit.places.index is not None or (edit.read is not None and edit.read.read.positions.rows is not None)


def _edit_window(work: Work, edit: BoundEdit, tensor: Tensor, call: int) -> Tensor:
    """Edit what a pass of a generation can see of an edit's places."""
    new, window = tensor, _window(edit, work.window, tensor)
    seen = work if window is work.window else replace(work, window=window)
    for places in visible(edit.edit, edit.places, window, tensor, not edit.intervention.writes):
        new = _apply(seen, edit, places, new, call)
    return new


def apply_edits(work: Work, edits: Sequence[BoundEdit], state: Tensor) -> Tensor:
    """Return a state with edits made, one after the other, as their taps would."""
    for edit in edits:
        new = _edit(work, edit, state, 0)
        state = state if new is None else new
    return state


def _window(edit: BoundEdit, window: Window, tensor: Tensor) -> Window:
    """Return the columns that the tensor is about: those of the pass, but attention gets all keys of the cache again.

    The cache holds them as they were before edits, so that edits of earlier keys are made again.
    """
    if edit.edit.site.name != "key_rotary":
        return window
    end, keys = window.start + window.length, tensor.shape[1] if tensor.ndim > 1 else 0
    if keys > end:
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
    places.check(tensor, edit.edit.site)
    places = places.fitted(tensor)
    old = places.gather(tensor)
    version = _version(old)
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
    if new.shape != old.shape:
        new = _broadcast(edit, new, old)
    if version is None or _version(old) != version:  # the intervention wrote into its private copy of the base
        old = places.gather(tensor)
    tally.count(old, new, mask)
    return places.scatter(tensor, new if new.dtype == tensor.dtype else new.to(tensor.dtype))


def _source(work: Work, edit: BoundEdit, call: int, old: Tensor) -> Tensor | None:
    """Return the value from outside, broadcastable to `old`; `None` if there is none."""
    read = edit.read
    if read is not None:
        values = work.captured[read]
        if 1 < len(values) <= call:
            raise PlanError(
                f"{edit.edit.site} was reached {call + 1} times in the base, but {len(values)} times in its source run"
            )
        value = values[call] if len(values) > 1 else values[0]
        if work.window.prompt is not None and read.read.positions.rows is None:  # a prompt processed in chunks
            value = value[:, work.window.start : work.window.start + old.shape[1]]
    elif edit.constant is not None:
        value = edit.constant
    else:
        return None
    repeats = work.window.repeats
    if repeats > 1 and value.ndim == old.ndim and value.shape[0] > 1:
        value = value.repeat_interleave(repeats, 0)
    return value if value.device == old.device else value.to(old.device)


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


def _version(tensor: Tensor | None) -> int | None:
    """Return how often a tensor was written into; `None` where PyTorch does not count it."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def _broadcast(edit: BoundEdit, new: Tensor, old: Tensor) -> Tensor:
    try:
        return new.expand_as(old)
    except RuntimeError as error:
        raise InterventionError(
            f"{type(edit.intervention).__name__} at {edit.edit.site} returned shape {tuple(new.shape)}; "
            f"the base has {tuple(old.shape)}"
        ) from error

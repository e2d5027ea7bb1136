"""What happens at a slot when a pass comes by: read, or gather, intervene, scatter, and count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._errors import InterventionError, PlanError, PositionError
from ..models.recomputing import check_computed_once, recomputation
from ..models.scope import plainly
from ..positions import Positions
from ..sites import Site
from .bind import BoundEdit, BoundRead
from .hooks import Tap
from .ledger import Tally
from .places import Places
from .recurrent import Assembly, CellCall, at_step, check_one_vector, counts_steps


@dataclass(frozen=True)
class Window:
    """The columns of the whole sequence that a forward pass works on; all of them, except while generating.

    With a cache, the pass after the prompt's works on one column at a time. Without one, every pass begins at column 0
    again, and edits of earlier columns are made again, so that both give the same text.

    Args:
        start: first column of this forward pass.
        length: number of columns of this forward pass.
        fresh: first column that no earlier pass has worked on.
        prompt: length of the prompt: columns from there on are generated tokens; `None` outside generation.
        repeats: rows of this pass for each example of the input (beams, samples); 0 where they are of other examples.
        added: columns of the prompt beyond the tokens of the input.
        kept: of how many columns, the last, the logits are computed; 0: of all.
        own: the text that the pass is about begins with the input; guidance, for example, runs the model over others.
    """

    start: int = 0
    length: int = 0
    fresh: int = 0
    prompt: int | None = None
    repeats: int = 1
    added: int = 0
    kept: int = 0
    own: bool = True


Captured = dict[BoundRead, list[Tensor]]
"""By read what was there, one tensor a call of the module."""


@dataclass(eq=False)
class Record:
    """What a pass takes from earlier ones, and what it leaves.

    Args:
        values: what earlier passes captured.
        captured: what this one did.
        collected: by name of the edit what it saw, and which of it is real.
        tallies: by name of the edit what it counted.
        window: the columns that the pass works on.
        assembled: what is gathered time step by time step.
        tokens: ids of the tokens whose logits are wanted of it; `None` for all.
        leading: says how many of some columns the model put before the tokens of a stack.
        part: in which it is run, if that is run again as a whole in the backward pass.
    """

    values: Mapping[BoundRead, list[Tensor]]
    captured: Captured = field(default_factory=dict)
    collected: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    window: Window = field(default_factory=Window)
    assembled: dict[BoundRead | str, Assembly] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = None
    leading: Callable[[int, str], int] = lambda _columns, _stack: 0
    part: Any = field(default_factory=recomputation)

    def placed(self, places: Places, tensor: Tensor, site: Site) -> Places:
        """Return places of tokens in an activation `(batch, columns, channels)` that may have further columns."""
        known = places.index is None or tensor.ndim < 3
        return places if known else places.moved(self.leading(tensor.shape[1], site.sequence))


def read_tap(record: Record, read: BoundRead) -> Tap:
    """Return what a read does at its slot."""
    return Tap(read.slot, partial(_read, record, read))


def _read(record: Record, read: BoundRead, tensor: Tensor, call: int, _owned: bool) -> None:
    """Keep what is read."""
    places = read.places
    if tensor.ndim == 2 and counts_steps(read.slot, tensor, places.index is not None):
        _read_step(record, read, tensor, call)
        return
    places = record.placed(places, tensor, read.read.site)
    places.check(tensor, read.read.site)
    record.captured.setdefault(read, []).append(places.fitted(tensor).gather(tensor))


def _read_step(record: Record, read: BoundRead, tensor: Tensor, call: int) -> None:
    """Read what one call of a module, one time step, has for a read; tensor is `(batch, width)`."""
    assembly = record.assembled.setdefault(read, Assembly(str(read.read.site), read.places.reach))
    assembly.calls = call + 1
    step = at_step(read.places.to(tensor.device), call)
    if step is None:
        return
    column = tensor.unsqueeze(1)
    step.places.check(column, assembly.where)
    values = step.places.gather(column)
    record.captured[read] = [values if step.mask is None else assembly.add(step.mask, values)]


def edit_tap(record: Record, edit: BoundEdit) -> Tap:
    """Return what an edit does at its slot."""
    return Tap(edit.slot, partial(_edit, record, edit))


def _edit(record: Record, edit: BoundEdit, tensor: Tensor, call: int, owned: bool) -> Tensor | None:
    """Return the new activation, or `None` if the edit only looks, or wrote into one that is `owned`."""
    if record.window.prompt is not None:
        new = _edit_window(record, edit, tensor, call)
    elif tensor.ndim == 2 and counts_steps(edit.slot, tensor, edit.named):
        return _edit_step(record, edit, tensor, call)
    else:
        new = _apply(record, edit, record.placed(edit.places, tensor, edit.edit.site), tensor, call, owned=owned)
    return None if new is tensor else new


def _edit_window(record: Record, edit: BoundEdit, tensor: Tensor, call: int) -> Tensor:
    """Edit what a pass of a generation can see of an edit's places."""
    window = record.window
    if window.added and edit.places.index is not None:
        lead = record.leading(window.prompt or 0, edit.edit.site.sequence)
        edit = replace(edit, places=edit.places.moved(lead))
    new, window = tensor, _window(edit, window, tensor)
    if not window.repeats:
        raise PlanError(
            f"{edit.edit.site} was reached by a call of the model inside generate() that has no tokens, or not a whole "
            "number of rows for each example of the prompt: which rows are which example's is not known"
        )
    seen = record if window is record.window else replace(record, window=window)
    for places in _visible(edit, window, tensor):
        new = _apply(seen, edit, places, new, call)
    return new


def apply_edits(record: Record, edits: Sequence[BoundEdit], state: Tensor) -> Tensor:
    """Return a state with edits made, one after the other, as their taps would."""
    owned = False
    for edit in edits:
        new = _edit(record, edit, state, 0, owned)
        state, owned = (state, owned) if new is None else (new, True)
    return state


def _window(edit: BoundEdit, window: Window, tensor: Tensor) -> Window:
    """Return the columns that the tensor is about: those of the pass, but for attention's keys and for logits.

    Attention gets all keys of the cache again. The cache holds them as they were before edits, so that edits of earlier
    keys are made again. Logits are often computed of the last columns only.
    """
    definition, columns = edit.edit.site.definition, tensor.shape[1] if tensor.ndim > 1 else 0
    end = window.start + window.length
    if definition is not None and definition.over_keys:
        return window if columns > end else replace(window, start=end - columns, length=columns)
    if not window.kept or columns != window.kept or (definition is not None and definition.other_sequence):
        return window
    places = edit.places
    if places.index is not None and any(edit.edit.positions.rows or ()):
        hidden = (places.index >= window.fresh) & (places.index < end - columns)
        if bool((hidden if places.real is None else hidden & places.real).any()):
            return window
    return replace(window, start=end - columns, length=columns)


def _edit_step(record: Record, edit: BoundEdit, tensor: Tensor, call: int) -> Tensor | None:
    """Edit what one call of a module, one time step, has for an edit; tensor is `(batch, width)`."""
    assembly = record.assembled.setdefault(edit.edit.name, Assembly(str(edit.edit.site), edit.places.reach))
    assembly.calls = call + 1
    step = at_step(edit.places.to(tensor.device), call)
    if step is None:
        return None
    if not edit.intervention.keep_last_dim:
        check_one_vector(edit.edit.positions, assembly.where)
    column = tensor.unsqueeze(1)
    new = _apply(record, edit, step.places, column, call, step)
    return None if new is column else new.squeeze(1)


def _apply(
    record: Record,
    edit: BoundEdit,
    places: Places,
    tensor: Tensor,
    call: int,
    step: CellCall | None = None,
    *,
    owned: bool = False,
) -> Tensor:
    """Gather, intervene and scatter once; return the new activation, or the old one if the edit only looks.

    Args:
        record: of the pass.
        edit: what is done.
        places: where.
        tensor: the activation.
        call: number of earlier calls of the module in this pass.
        step: of a recurrent module.
        owned: the activation may be written into.
    """
    places.check(tensor, edit.edit.site)
    places = places.fitted(tensor)
    old = places.gather(tensor)
    version = None if edit.pure else _version(old)
    source = _source(record, edit, call, old, step)
    new = _intervene(edit, old, source, record.window.repeats)
    tally, mask = record.tallies[edit.edit.name], places.real_values(old)
    if not edit.intervention.writes:
        tally.count(old, None, mask)
        if step is not None and step.mask is not None:
            record.assembled[edit.edit.name].add(step.mask, new)
            return tensor
        real = torch.ones(old.shape[:-1], dtype=torch.bool) if places.real is None else places.real
        record.collected.setdefault(edit.edit.name, []).append((new, real))
        # The pass goes on with what was handed back as it was, so that gradients of the output reach it.
        in_graph = new is old and new.requires_grad and edit.edit.positions.distinct
        return places.scatter(tensor, new) if in_graph else tensor
    check_computed_once(record.part, edit.edit.site)
    if new.shape != old.shape:
        new = _broadcast(edit, new, old)
    if not edit.pure and (version is None or _version(old) != version):
        old = places.gather(tensor)  # the intervention wrote into its private copy of the base
    tally.count(old, new, mask)
    return places.scatter(tensor, new if new.dtype == tensor.dtype else new.to(tensor.dtype), owned=owned)


Value = Tensor | tuple[Tensor, ...] | None
"""What an intervention gets beside the base: a source's value, those of several, or nothing."""


def _source(record: Record, edit: BoundEdit, call: int, old: Tensor, step: CellCall | None) -> Value:
    """Return what comes from outside, broadcastable to `old` where it is one value."""
    if not edit.reads:
        return None if edit.constant is None else _fitted(record, edit, edit.constant, old, step)
    values = tuple(_fitted(record, edit, _read_value(record, edit, read, call, old), old, step) for read in edit.reads)
    return values if isinstance(edit.edit.source, tuple) else values[0]


def _read_value(record: Record, edit: BoundEdit, read: BoundRead, call: int, old: Tensor) -> Tensor:
    """Return what was read of an earlier pass, or of this one."""
    values = record.captured.get(read) or record.values.get(read)
    if values is None:
        raise PlanError(
            f"run {read.read.run!r} comes by {edit.edit.site} before its own {read.read.site}, which is read for it"
        )
    if 1 < len(values) <= call:
        raise PlanError(
            f"{edit.edit.site} was reached {call + 1} times in the base, but {len(values)} times in its source run"
        )
    value = values[call] if len(values) > 1 else values[0]
    if record.window.prompt is not None and read.read.positions.rows is None:  # a prompt processed in chunks
        value = value[:, record.window.start : record.window.start + old.shape[1]]
    return value


def _fitted(record: Record, edit: BoundEdit, value: Tensor, old: Tensor, step: CellCall | None) -> Tensor:
    """Return the part of a value that this pass is about, where the base is."""
    if edit.lines is not None and value.ndim == old.ndim and value.shape[0] > 1:
        value = value[edit.lines.start : edit.lines.stop]
    repeats = record.window.repeats
    if repeats > 1 and value.ndim == old.ndim and value.shape[0] > 1:
        value = value.repeat_interleave(repeats, 0)
    value = value if value.device == old.device else value.to(old.device)
    return value if step is None else step.pick(value)


def _intervene(edit: BoundEdit, old: Tensor, source: Value, repeats: int) -> Tensor:
    """Call the intervention on the values in the shape that it asks for."""
    intervention, subspace, base = edit.intervention, edit.edit.subspace, old
    if subspace is not None and edit.lines is not None:
        subspace = subspace[edit.lines.start : edit.lines.stop]
    given = () if source is None else source if isinstance(source, tuple) else (source,)
    versions = [] if edit.pure else list(map(_version, given))
    if not intervention.keep_last_dim:
        base = old.flatten(1)
        if isinstance(source, Tensor):
            source = source.expand_as(old).flatten(1)
    if subspace is None:
        new = plainly(intervention, base, source)  # which may run the same model
    else:
        new = plainly(intervention, base, source, tuple(parts for parts in subspace for _ in range(repeats)))
    if not edit.pure and versions != list(map(_version, given)):
        raise InterventionError(
            f"{type(intervention).__name__} at {edit.edit.site} wrote into its source, which other edits may read: "
            "return a new tensor"
        )
    if not isinstance(new, Tensor):
        raise InterventionError(f"{type(intervention).__name__} at {edit.edit.site} returned {type(new).__name__}")
    if new is base:
        return old
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


# --- generation: what a pass over some of the columns can see ---------------------------------------------------------


def _visible(edit: BoundEdit, window: Window, tensor: Tensor) -> Iterator[Places]:
    """Yield the places of an edit that a pass of a generation can see: those of the prompt, then each generated token.

    Args:
        edit: what was asked, with its places in the prompt.
        window: the columns of this pass.
        tensor: `(rows, columns, channels)` the activation.

    Raises:
        PositionError: the activation has another number of columns than the pass.
    """
    for seen in _visible_places(edit, window, tensor.shape[0]):
        if tensor.ndim < 3 or tensor.shape[1] != window.length:
            raise PositionError(
                f"{edit.edit.site} has shape {tuple(tensor.shape)} in a forward pass over {window.length} tokens: it "
                "is not known which of them it is about (a model that generates computes the last logits only)"
            )
        yield seen


def _visible_places(edit: BoundEdit, window: Window, rows: int) -> Iterator[Places]:
    """Yield them; of an edit that only looks, those in columns of the generated text that it has not seen before."""
    positions, looks_only, prompt = edit.edit.positions, not edit.intervention.writes, window.prompt or 0
    places = edit.places.repeated(window.repeats)
    if looks_only and not window.own:
        return
    # Positions, and what is read of a source, are those of the prompt; other texts have prompts of their own.
    if (window.own or (positions.rows is None and not edit.reads)) and not (looks_only and window.fresh >= prompt):
        yield from _in_prompt(positions, places, window, rows)
    first = max(prompt, window.start, window.fresh if looks_only else 0)
    for column in range(first, window.start + window.length):
        if positions.steps == "all" or column - prompt in positions.steps:
            yield places.at_columns([column - window.start], rows)


def _in_prompt(positions: Positions, places: Places, window: Window, rows: int) -> Iterator[Places]:
    end, prompt = window.start + window.length, window.prompt or 0
    if window.start >= min(end, prompt):
        return
    if positions.rows is None:
        yield places if end <= prompt else places.at_columns(range(min(end, prompt) - window.start), rows)
    elif any(positions.rows):
        seen = places.shifted(window.start, window.length)
        if seen is not None:
            yield seen

"""The copies of several runs in one pass: where each joins, what is done to it, and where it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..engine import Bound, Inputs, batch_size
from ..engine.bind import BoundEdit
from ..engine.edits import Record, apply_edits
from ..engine.step import Inheritance, Part, Pass, Step
from ..plan import Run
from ..sites import Site
from .depth import END, INSIDE, Blocks, Depth
from .last_block import LastBlock
from .partial import Join, PartialPass
from .reasons import SETTINGS
from .states import States
from .tails import Copies, Layout


@dataclass(frozen=True, eq=False)
class Origin:
    """What a pass starts from.

    Args:
        blocks: of the model.
        depths: of the plan's sites.
        states: those of the donor.
        starts: for each part how deep it starts.
        inherited: for each part the edits that the donor made in its place, each with the donor's own.
    """

    blocks: Blocks
    depths: Mapping[Site, Depth | None]
    states: States
    starts: tuple[Depth, ...]
    inherited: tuple[tuple[tuple[str, str], ...], ...]

    def of(self, numbers: Sequence[int]) -> Origin:
        """Return what some of the parts start from."""
        starts = tuple(self.starts[number] for number in numbers)
        return replace(self, starts=starts, inherited=tuple(self.inherited[number] for number in numbers))

    def edits(self, bound: Bound, number: int, run: Run) -> list[BoundEdit]:
        """Return the edits of a part that are still to be made."""
        done = {name for name, _ in self.inherited[number]}
        return [bound.edits[edit.name] for edit in run.edits if edit.name not in done]


def copies_of(bound: Bound, part: Part, batch: int, edits: Sequence[BoundEdit] = (), *, tails: bool = False) -> Copies:
    """Return the copies of a part, with the first position of each that is worked on.

    Args:
        bound: the plan.
        part: some examples of a run.
        batch: examples of its input.
        edits: those that are still to be made.
        tails: only what follows the first position that is edited or read is worked on.
    """
    examples = tuple(range(batch)) if part.examples is None else part.examples
    if not tails:
        return Copies(examples, (0,) * len(examples))
    lines = range(len(examples)) if part.lines is None else part.lines
    columns = columns_of(bound, part)
    read = [None] * len(lines) if columns is None else columns.tolist()
    starts = []
    for line, column in zip(lines, read, strict=True):
        first = [] if column is None else [column]
        for edit in edits:
            rows = edit.edit.positions.rows or ((0,),)
            first += rows[line if len(rows) > 1 else 0]
        starts.append(min(first, default=0))
    return Copies(examples, tuple(starts))


def columns_of(bound: Bound, part: Part) -> Tensor | None:
    """Return the column at which the logits of each copy of a part are read; `None` if that is not known."""
    columns = bound.columns(part.run)
    return columns if columns is None or part.lines is None else columns[part.lines.start : part.lines.stop]


def joining(
    bound: Bound,
    step: Step,
    record: Record,
    origin: Origin,
    layout: Layout,
    *,
    moved: bool = False,
    shortens: bool = False,
) -> tuple[Pass, int]:
    """Return a pass in which parts join where their first edit is, and the number of the first block that it runs.

    Args:
        bound: the plan.
        step: the parts, ordered by depth.
        record: takes what comes by.
        origin: what they start from.
        layout: where their copies lie.
        moved: they lie elsewhere than in a batch of their own.
        shortens: of the last block, run only what is read, if no edit needs more.
    """
    joins: list[Join] = []
    hooked: list[BoundEdit] = []
    inherited: list[Inheritance] = []
    joined: list[str] = []
    for number, (part, start) in enumerate(zip(step.parts, origin.starts, strict=True)):
        block, output = origin.blocks.find(start)
        edits, rows = origin.edits(bound, number, part.run), layout.rows[number]
        here = [e for e in edits if origin.depths[e.edit.site] == start and start.point != INSIDE and start < END]
        at_join = [_moved(edit, layout, number, part, rows.start) if moved else edit for edit in here]
        joins.append(Join(block, output, rows, partial(apply_edits, record, at_join)))
        joined += [edit.edit.name for edit in here]
        hooked += [_moved(edit, layout, number, part, 0) if moved else edit for edit in edits if edit not in here]
        inherited += [
            Inheritance(name, made, part.examples or tuple(range(origin.states.batch)))
            for name, made in origin.inherited[number]
        ]
    at = _read_at(bound, step.parts, layout)
    last = None
    if at is not None and shortens and _can_be_shortened(origin, hooked, layout):
        last = LastBlock(origin.blocks.calls[-1], *at)
    parts = PartialPass(origin.blocks, origin.states, layout, joins, last)
    shape = int(layout.example.shape[0]), int(layout.example.shape[1])
    made = Pass({}, hooked, shape, at, [parts.around()], [parts.within()], inherited, joined)
    return made, parts.first


def _read_at(bound: Bound, parts: Sequence[Part], layout: Layout) -> tuple[Tensor, Tensor] | None:
    """Return the row and the column at which each copy is read; `None` where whole outputs are wanted."""
    columns = [columns_of(bound, part) for part in parts]
    known = [one for one in columns if one is not None]
    return layout.ends(torch.cat(known)) if len(known) == len(columns) else None


def _can_be_shortened(origin: Origin, edits: Sequence[BoundEdit], layout: Layout) -> bool:
    """Whether the last block can be cut down: it attends once, and nothing is done in it or behind it."""
    last, attended = len(origin.blocks) - 1, origin.states.attended
    depths = [origin.depths[edit.edit.site] for edit in edits]
    early = all(depth is not None and depth < END and origin.blocks.find(depth)[0] < last for depth in depths)
    return early and layout.position.shape[1] > 1 and (last, 0) in attended and (last, 1) not in attended


def _moved(edit: BoundEdit, layout: Layout, number: int, part: Part, first_row: int) -> BoundEdit:
    places = edit.places if part.lines is None else edit.places.of(part.lines)
    if len(layout.copies) == 1 and not layout.packed:  # all rows are its own
        return replace(edit, places=places, lines=part.lines)
    return replace(edit, places=layout.places(places, number, first_row), lines=part.lines)


def tails_of(inputs: Inputs, layout: Layout) -> Inputs:
    """Return what the model is called with where only tails are run: the input's tokens where the layout has them."""
    assert isinstance(inputs, Mapping)
    name = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
    tokens, positions = inputs[name], inputs.get("position_ids")
    at = layout.example.to(tokens.device), layout.position.to(tokens.device)
    placed = at[1] if positions is None else positions.expand(batch_size(inputs), -1)[at]
    others = {setting: value for setting, value in inputs.items() if setting in SETTINGS}
    if "attention_mask" in inputs:  # who sees whom is settled where attention is computed
        others["attention_mask"] = torch.ones_like(layout.position, device=tokens.device)
    return {name: tokens[at], "position_ids": placed, **others}

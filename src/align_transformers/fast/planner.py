"""The decisions about the passes of a plan. Nothing here runs a model: what came of a pass is a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ..engine import Bound, batch_size
from ..engine.step import NotANumber, OutOfMemory, Part, Reply, Step
from ..plan import Edit, Run
from .budget import TIMES_FOR_ONE, room
from .contents import same_inputs
from .depth import START, Depth, blocks_of, depths_of
from .joining import Origin, copies_of
from .reasons import why_never
from .schedule import Facts, Stage, schedule
from .states import States
from .unembedding import unembedding_of
from .ways import (
    Case,
    Full,
    Leaving,
    Packed,
    Partial,
    PlannedWay,
    Stop,
    Together,
    Trials,
    choose,
)

Room = Callable[[States], float]
"""How many tokens a pass that starts from some states may have."""


def tokens_for(states: States) -> float:
    """Return how many tokens a pass may have: as many as fit into a part of the memory that is free."""
    return room(states.main.device) / max(states.bytes, 1.0)


class Decisions:
    """What is decided about a plan as its passes are run.

    Args:
        bound: the plan.
        trials: what was found out about partial passes of the model.
        known: by name of an input the states of its unedited run, where they are known already.
        most: how large a pass may be.
    """

    def __init__(
        self, bound: Bound, trials: Trials, known: Mapping[str, States] | None = None, most: Room = tokens_for
    ) -> None:
        self._bound, self._trials, self._known, self._most = bound, trials, known or {}, most
        self._blocks = blocks_of(bound.model)
        self._states: dict[str, States] = {}

    def steps(self) -> Generator[Step, Reply, None]:
        """Yield the steps.

        Raises:
            RuntimeError: there was no memory for the smallest pass that a step could be divided into.
        """
        left = Counter(stage.donor for stage in self._stages)
        for stage in self._stages:
            states = self._known.get(stage.runs[0].input) if stage.donor is None else self._states.get(stage.donor)
            for step in self._steps(stage, states):
                reply = yield from self._divided(step)
                if isinstance(reply, States):
                    self._states[stage.runs[0].name] = reply
            left[stage.donor] -= 1
            if stage.donor is not None and not left[stage.donor]:
                self._states.pop(stage.donor, None)

    def _steps(self, stage: Stage, states: States | None) -> Iterator[Step]:
        """Yield the steps of a stage."""
        way, refused = choose(self._case(stage, states)) if stage.starts else (Full, {})
        unembedding = unembedding_of(self._bound, stage, self._blocks)
        leaving, stop = self._leaving(stage), self._stop(stage)
        if states is None or self._blocks is None or way is Full:
            for run in stage.runs:
                full = Full(stop, leaving, unembedding)
                yield Step((Part(run),), stage.reads, stage.wanted, full, refused, stage.twins)
            return
        origin, fewer = Origin(self._blocks, self._depths, states, stage.starts, stage.inherited), self._trials.tokens()
        if way is Partial:
            for number, run in enumerate(stage.runs):
                one = Partial(origin.of([number]), stop, leaving, unembedding, fewer)
                yield Step((Part(run),), stage.reads, stage.wanted, one, refused, stage.twins)
            return
        shortens = way is Packed and not self._trials.why_not("shortened")
        for numbers, parts in self._groups(stage, origin, way):
            picked = origin.of(numbers)
            packed = Packed(picked, unembedding, fewer, shortens)
            one_way = packed if way is Packed else Together(picked, unembedding, fewer)
            yield Step(parts, (), stage.wanted, one_way, refused)

    def _groups(
        self, stage: Stage, origin: Origin, way: type[PlannedWay]
    ) -> Iterator[tuple[list[int], tuple[Part, ...]]]:
        """Yield numbers of runs with what of them goes into one pass: as much as is fast, and as memory allows."""
        states, packed = origin.states, way is Packed
        most, length = self._most(states), int(states.main.shape[1])
        group: list[tuple[int, Part, int]] = []
        filled = 0
        for number, run in enumerate(stage.runs):
            edits = origin.edits(self._bound, number, run)
            copies = copies_of(self._bound, Part(run), states.batch, edits, tails=packed)
            for part, size in _pieces(run, [length - start for start in copies.starts], most * TIMES_FOR_ONE):
                if group and filled + size > most:
                    yield from _told_apart(group, states.batch * length, packed)
                    group, filled = [], 0
                group.append((number, part, size))
                filled += size
        yield from _told_apart(group, states.batch * length, packed)

    def _divided(self, step: Step) -> Generator[Step, Reply, Reply]:
        """Yield a step; where memory runs out, two of half the size; where NaN may have spread, its copies apart."""
        reply = yield step
        if not isinstance(reply, OutOfMemory | NotANumber):
            return reply
        smaller = tuple(self._apart(step)) if isinstance(reply, NotANumber) else halves(self._bound, step)
        if isinstance(reply, OutOfMemory) and not smaller:
            raise reply.error
        for one in smaller:
            reply = yield from self._divided(one)
        return reply

    def _apart(self, step: Step) -> Iterator[Step]:
        """Yield steps that do what a packed one does, each copy in a row of its own."""
        if isinstance(step.way, Packed):
            step = replace(step, way=step.way.apart(), refused={Packed.name: "what is not a number would spread"})
        assert isinstance(step.way, Together)
        states = step.way.origin.states
        copies = [self._bound.count(part.run) if part.lines is None else len(part.lines) for part in step.parts]
        fits = sum(copies) * int(states.main.shape[1]) <= self._most(states) * TIMES_FOR_ONE
        as_many = len(copies) > 1 and sum(copies) == states.batch  # as examples: see _told_apart
        smaller = () if fits and not as_many else halves(self._bound, step)
        for one in smaller:
            yield from self._apart(one)
        if not smaller:
            yield step

    def _case(self, stage: Stage, states: States | None) -> Case:
        return Case(self._bound, self._blocks, stage, states, self._depths, self._trials, self._never)

    def _leaving(self, stage: Stage) -> Leaving | None:
        """Return what a stage leaves for others, if any of these is going to start from it."""
        users = [other for other in self._stages if other.donor == stage.runs[0].name] if stage.keep else []
        if self._blocks is None or not any(self._may_start(other) for other in users):
            return None
        heads = stage.stop is None and self._bound.plan.logits is not None
        return Leaving(self._blocks, frozenset(self._blocks.find(depth) for depth in stage.keep), heads)

    def _may_start(self, stage: Stage) -> bool:
        """Whether a stage starts from known states, if its donor leaves some."""
        placeholder = States(0)
        return not Partial.refuses(self._case(stage, placeholder))

    def _stop(self, stage: Stage) -> Stop | None:
        if stage.stop is None or self._blocks is None:
            return None
        if stage.stop <= START:
            return Stop(self._blocks.calls[0].module, before=True)
        number, output = self._blocks.find(stage.stop)
        at_input = not output and stage.stop == stage.stop.state
        return Stop(self._blocks.calls[number].module, before=at_input)

    # --- facts that are worked out once -----------------------------------------------------------------------------

    @cached_property
    def _never(self) -> str:
        return why_never(self._bound, self._blocks)

    @cached_property
    def _depths(self) -> dict[Any, Depth | None]:
        notes = self._bound.notes
        if "depths" not in notes:
            slots = {one.edit.site: one.slot for one in self._bound.edits.values()}
            slots |= {one.read.site: one.slot for one in self._bound.reads.values()}
            notes["depths"] = depths_of(slots, self._blocks)
        depths: dict[Any, Depth | None] = notes["depths"]
        return depths

    @cached_property
    def _stages(self) -> tuple[Stage, ...]:
        bound = self._bound
        same = same_inputs(bound.inputs, {run.input for run in bound.order})
        key = "stages", tuple(same.items()), tuple(self._known)
        if key not in bound.notes:
            facts = Facts(self._depths.__getitem__, frozenset(self._known), same, self._repeatable)
            bound.notes[key] = schedule(bound.plan, bound.order, facts)
        stages: tuple[Stage, ...] = bound.notes[key]
        return stages

    def _repeatable(self, edit: Edit) -> bool:
        """Whether an equal edit of an equal run need not be made again."""
        bound = self._bound.edits[edit.name]
        if bound.constant is not None and bound.constant.ndim > 2 and bound.constant.shape[0] > 1:
            return False  # it is by example
        if _may_not_be_by_example(self._bound, edit):
            return False  # what was counted could not be told apart
        return bound.intervention.writes and bound.intervention.repeatable


def _may_not_be_by_example(bound: Bound, edit: Edit) -> bool:
    """Whether the rows of an activation may be others than the examples of the run."""
    stack, given = edit.site.stack, bound.inputs.values()
    unknown = edit.site.path is not None and edit.positions.rows is None
    return unknown or (bool(stack) and any(batch_size(one, stack) != batch_size(one) for one in given))


# --- dividing ---------------------------------------------------------------------------------------------------------


def _pieces(run: Run, sizes: Sequence[int], most: float) -> Iterator[tuple[Part, int]]:
    """Yield a run as it is, or its copies in pieces of at most so many tokens, each with its size."""
    if sum(sizes) <= most or len(sizes) < 2:
        yield Part(run), sum(sizes)
        return
    begin = size = 0
    for line, tokens in enumerate(sizes):
        if line > begin and size + tokens > most:
            yield Part(run, range(begin, line)), size
            begin, size = line, 0
        size += tokens
    yield Part(run, range(begin, len(sizes))), size


def _told_apart(
    group: list[tuple[int, Part, int]], own: int, packed: bool
) -> Iterator[tuple[list[int], tuple[Part, ...]]]:
    """Yield a group as it is, but as two if it has just as many rows as the input has examples.

    An axis that has this length by chance could not be told from that of the examples.
    """
    apart = not packed and len(group) > 1 and sum(size for *_, size in group) == own
    for some in (group[:1], group[1:]) if apart else (group,):
        yield [number for number, *_ in some], tuple(part for _, part, _ in some)


def halves(bound: Bound, step: Step) -> tuple[Step, ...]:
    """Return two steps that do what one does; none if it cannot be divided.

    Args:
        bound: the plan.
        step: in a way of this file.
    """
    way, parts = step.way, step.parts
    assert isinstance(way, PlannedWay)
    middle = len(parts) // 2
    pieces = [([*range(middle)], parts[:middle]), ([*range(middle, len(parts))], parts[middle:])]
    if len(parts) == 1:
        run, lines = parts[0].run, parts[0].lines or range(bound.count(parts[0].run))
        middle = lines.start + len(lines) // 2
        whole = bound.plan.logits is None or bound.generates or bool(step.reads or step.twins)
        unknown = any(_may_not_be_by_example(bound, edit) for edit in run.edits)
        if whole or unknown or len(lines) < 2 or getattr(way, "leaving", None) is not None:
            return ()
        halved = Part(run, range(lines.start, middle)), Part(run, range(middle, lines.stop))
        pieces = [([0], (half,)) for half in halved]
    return tuple(replace(step, parts=tuple(some), way=way.of(numbers)) for numbers, some in pieces)

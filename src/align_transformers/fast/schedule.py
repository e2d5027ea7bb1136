"""From a plan to stages: which runs start from which states, and how far each has to go. No model is needed."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..plan import Edit, Plan, Read, Run
from ..sites import Site
from .depth import END, OUTPUT, START, Depth, depth_of


@dataclass(frozen=True)
class Stage:
    """Runs that start from the states of one donor, or one run that starts at the beginning.

    Args:
        runs: more than one only where nothing is read of them and nobody starts from them.
        reads: what is read of the run.
        wanted: whether the runs' outputs are.
        donor: the run from whose states they start; `None`: they start at the beginning, or from states handed in.
        starts: for each run how deep it starts; empty where it starts at the beginning.
        inherited: for each run the edits that its donor has made in its place, each with the donor's own.
        stop: how far it has to go; `None`: to the end.
        keep: the depths at which others start from its states.
        twins: runs without edits of equal inputs, which are done with the only run.
    """

    runs: tuple[Run, ...]
    reads: tuple[Read, ...] = ()
    wanted: bool = False
    donor: str | None = None
    starts: tuple[Depth, ...] = ()
    inherited: tuple[tuple[tuple[str, str], ...], ...] = ()
    stop: Depth | None = None
    keep: tuple[Depth, ...] = ()
    twins: tuple[Run, ...] = ()


@dataclass(frozen=True, eq=False)
class Facts:
    """What a schedule asks about a plan, besides the plan.

    Args:
        depth: how deep a site is; `None` where that is not known.
        known: names of inputs whose unedited states are handed in.
        same: by name of an input the first one that holds the same; inputs that are not named are only like themselves.
        repeatable: whether an equal edit of an equal run, by its name, need not be made twice.
    """

    depth: Callable[[Site], Depth | None] = depth_of
    known: Collection[str] = ()
    same: Mapping[str, str] = field(default_factory=dict)
    repeatable: Callable[[Edit], bool] = lambda edit: True


@dataclass(eq=False)
class _ScheduledRun:
    """A run on its way into the schedule.

    Args:
        run: the run.
        edits: its edits with their depths, in the order in which they act; `None` if a depth is not known.
        reads: what is read of it, and of its twins.
        deepest: depth of the shallowest read; `END` without one, `None` if one is not known.
        donor: the entry that it starts from.
        shared: how many of its edits that one has made already.
        start: how deep it starts; `None`: at the beginning.
        keep: the depths at which others start from it.
        twins: entries without edits that are done with it.
    """

    run: Run
    edits: list[tuple[Depth, Edit]] | None
    reads: list[Read]
    deepest: Depth | None
    donor: _ScheduledRun | None = None
    shared: int = 0
    start: Depth | None = None
    keep: set[Depth] = field(default_factory=set)
    twins: list[Run] = field(default_factory=list)

    @property
    def first(self) -> Depth:
        """How deep its first edit is; `START` where that is not known, `END` where it has none."""
        return START if self.edits is None else self.edits[0][0] if self.edits else END


def schedule(plan: Plan, order: Sequence[Run], facts: Facts | None = None) -> tuple[Stage, ...]:
    """Return the stages of a plan, each after those that it reads or starts from.

    - A run that is only read stops after the last of its edits and of what is read of it.
    - A run starts at its first edit, if another run of the same input comes by there unedited; or at its first edit
      that is not the other's, too, if that one comes by there with equal edits and no others.
    - Where only logits are wanted, the runs that start from one donor, and are not read, are one stage.
    - Runs without edits of equal inputs are one, if the same logits of them are wanted.

    The work grows in proportion to the number of runs.

    Args:
        plan: what is to happen.
        order: the runs that are needed.
        facts: what else there is to know.

    >>> from align_transformers import Edit, Plan, Read, Run, Site
    >>> site = Site("block_output", 1)
    >>> swap = Edit("swap", site, "vanilla", source=Read("source", site))
    >>> plan = Plan((Run("base", "b", (swap,)), Run("source", "s"), Run("idle", "i")), outputs=("base",))
    >>> [([run.name for run in s.runs], s.wanted, s.stop) for s in schedule(plan, plan.order())]
    [(['source'], False, Depth(rank=1, layer=1, point=2)), (['base'], True, None)]
    """
    facts = facts or Facts()
    entries = _entries(plan, order, facts)
    found: list[_ScheduledRun] = []
    donors = _Donors(facts, plan)
    for entry in _in_order(plan, entries):
        twin = donors.twin(entry)
        if twin is not None:
            twin.reads += entry.reads
            twin.twins.append(entry.run)
            continue
        donors.find(entry)
        found.append(entry)
    return tuple(_stages(plan, found, facts))


def _entries(plan: Plan, order: Sequence[Run], facts: Facts) -> list[_ScheduledRun]:
    reads: dict[str, dict[Read, None]] = {run.name: {} for run in order}
    for run in order:
        for edit in run.edits:
            for read in edit.reads:
                reads[read.run][read] = None
    for read in plan.values:
        reads[read.run][read] = None
    entries = []
    for run in order:
        depths = [facts.depth(edit.site) for edit in run.edits]
        known = [(depth, edit) for depth, edit in zip(depths, run.edits, strict=True) if depth is not None]
        edits = sorted(known, key=lambda pair: pair[0]) if len(known) == len(depths) else None
        of_run = list(reads[run.name])
        entries.append(_ScheduledRun(run, edits, of_run, _first([facts.depth(read.site) for read in of_run])))
    return entries


def _first(depths: list[Depth | None]) -> Depth | None:
    """Return the smallest depth, `END` if there is none; `None` if one is not known."""
    return None if None in depths else min((d for d in depths if d is not None), default=END)


def _in_order(plan: Plan, entries: Sequence[_ScheduledRun]) -> Iterator[_ScheduledRun]:
    """Yield entries after those that they need; among these first those from which others can best start."""
    by_name = {entry.run.name: entry for entry in entries}
    needs = {name: set(plan.needs(entry.run)) for name, entry in by_name.items()}
    needed_by: dict[str, list[str]] = {name: [] for name in by_name}
    for name, others in needs.items():
        for other in others:
            needed_by[other].append(name)
    place = {name: number for number, name in enumerate(by_name)}

    def key(name: str) -> tuple[Any, ...]:
        entry, number = by_name[name], place[name]
        if entry.run.examples is not None:
            return 2, 0, 0, 0, number, name
        first = entry.first
        return int(first < END), -first.rank, -first.layer, -first.point, number, name

    ready = [key(name) for name, others in needs.items() if not others]
    heapq.heapify(ready)
    while ready:
        name = heapq.heappop(ready)[-1]
        yield by_name[name]
        for other in needed_by[name]:
            needs[other].discard(name)
            if not needs[other]:
                heapq.heappush(ready, key(other))


# --- donors ----------------------------------------------------------------------------------------------------------


class _Donors:
    """The runs that others may start from.

    Args:
        facts: about the plan.
        plan: which of their logits it wants.
    """

    _MOST = 4  # that are remembered for runs with the same first edits

    def __init__(self, facts: Facts, plan: Plan) -> None:
        self._facts, self._wanted = facts, set(plan.outputs)
        self._columns = {} if plan.logits is None else dict(plan.logits.at)
        self._answers = () if plan.logits is None else plan.logits.answers_of
        self._found: dict[Any, list[tuple[_ScheduledRun, Depth]]] = {}
        self._unedited: dict[Any, _ScheduledRun] = {}

    def _input(self, run: Run) -> str:
        return self._facts.same.get(run.input, run.input)

    def twin(self, entry: _ScheduledRun) -> _ScheduledRun | None:
        """Return the entry of an earlier run that is the same in everything; `None` if there is none."""
        if entry.run.edits or entry.run.examples is not None:
            return None
        run = entry.run  # of twins the same logits are read, too, and none waits for answers
        waits = bool(self._answers) and run.name in self._wanted and run.name not in self._answers
        key = self._input(run), self._columns.get(run.input), waits
        first = self._unedited.setdefault(key, entry)
        return None if first is entry else first

    def find(self, entry: _ScheduledRun) -> None:
        """Find what a run starts from, and let later ones start from it."""
        if entry.edits is None:
            return
        if entry.run.input in self._facts.known and entry.edits and entry.deepest is not None:
            start = min(entry.first, entry.deepest)
            entry.start = start if start > START else None
        elif entry.edits and entry.deepest is not None:
            self._start(entry, entry.edits, entry.deepest)
        if entry.run.examples is None:
            self._offer(entry, entry.edits)

    def _start(self, entry: _ScheduledRun, edits: list[tuple[Depth, Edit]], deepest: Depth) -> None:
        """Start a run from the donor that has made the most of its edits."""
        for shared in range(min(self._leading(edits), len(edits) - 1), -1, -1):
            start = min(edits[shared][0], deepest)
            if start <= START or (shared and (start >= END or edits[shared - 1][0].state >= start.state)):
                continue
            if start.rank == 1 and any(depth.rank == 0 and depth.point == OUTPUT for depth, _ in edits[:shared]):
                continue  # what an encoder's last block gives is kept as it was before edits
            for donor, until in self._found.get(self._key(entry.run, edits[:shared]), ()):
                since = START if donor.start is None else donor.start
                fits = until.state >= start.state and (since == START or since.state < start.state)
                if fits and _equal(donor, entry, shared):
                    entry.donor, entry.shared, entry.start = donor, shared, start
                    donor.keep.add(start)
                    return

    def _offer(self, entry: _ScheduledRun, edits: list[tuple[Depth, Edit]]) -> None:
        """Let others start from a run, wherever it comes by with its first so many edits made and no others."""
        for shared in range(self._leading(edits) + 1):
            until = edits[shared][0] if shared < len(edits) else END
            offers = self._found.setdefault(self._key(entry.run, edits[:shared]), [])
            if len(offers) < self._MOST:
                offers.append((entry, until))

    def _leading(self, edits: Sequence[tuple[Depth, Edit]]) -> int:
        """Return how many of the first edits of a run another one may have made in its place."""
        count = 0
        for _, edit in edits:
            if edit.positions.steps or isinstance(edit.source, tuple) or not self._facts.repeatable(edit):
                break
            count += 1
        return count

    def _key(self, run: Run, edits: Sequence[tuple[Depth, Edit]]) -> Any:
        """Return what equal edits have in common, whatever the examples."""
        kinds = []
        for _, edit in edits:
            source: Any = edit.source
            if isinstance(source, Read):
                source = source.run, source.site
            kinds.append((edit.site, edit.intervention, source))
        return self._input(run), tuple(kinds)


def _equal(donor: _ScheduledRun, entry: _ScheduledRun, shared: int) -> bool:
    """Whether the first edits of two runs do the same to each example of the second."""
    examples = entry.run.examples
    for (_, made), (_, edit) in zip((donor.edits or ())[:shared], (entry.edits or ())[:shared], strict=True):
        if examples is None:
            if _unnamed(made) != _unnamed(edit):
                return False
        elif any(_line(made, example) != _line(edit, line) for line, example in enumerate(examples)):
            return False
    return True


def _unnamed(edit: Edit) -> tuple[Any, ...]:
    """Return all of an edit but its name."""
    return edit.site, edit.intervention, edit.positions, edit.subspace, edit.source


def _line(edit: Edit, line: int) -> tuple[Any, ...]:
    """Return what an edit does to one example of its run."""
    found: list[Any] = [_of(edit.positions.rows, line), _of(edit.positions.heads, line), _of(edit.subspace, line)]
    source = edit.source
    if isinstance(source, Read):
        at = source.positions
        example = line if source.examples is None else source.examples[line]
        found += [_of(at.rows, line), _of(at.heads, line), example]
    return tuple(found)


def _of(lines: Sequence[Any] | None, line: int) -> Any:
    return None if lines is None else lines[line if len(lines) > 1 else 0]


# --- stages ----------------------------------------------------------------------------------------------------------


def _stages(plan: Plan, entries: Sequence[_ScheduledRun], facts: Facts) -> Iterator[Stage]:
    """Yield the stages; runs that go together are one, when the last of them has everything that it needs."""
    waiting: dict[tuple[str | None, str, bool], list[_ScheduledRun]] = {}
    left: dict[tuple[str | None, str, bool], int] = {}
    wanted = set(plan.outputs)
    answers = () if plan.logits is None else plan.logits.answers_of  # which all others need

    def group(entry: _ScheduledRun) -> tuple[str | None, str, bool] | None:
        alone = plan.logits is None or entry.start is None or entry.reads or entry.keep
        if alone or entry.run.name not in wanted:
            return None
        name, given = (None, entry.run.input) if entry.donor is None else (entry.donor.run.name, "")
        return name, given, entry.run.name in answers

    for entry in entries:
        key = group(entry)
        if key is not None:
            left[key] = left.get(key, 0) + 1
    for entry in entries:
        key = group(entry)
        if key is None:
            yield _alone(plan, entry, facts, entry.run.name in wanted)
            continue
        waiting.setdefault(key, []).append(entry)
        left[key] -= 1
        if not left[key]:
            together = sorted(waiting[key], key=lambda one: one.start or START)
            yield Stage(
                tuple(one.run for one in together),
                wanted=True,
                donor=key[0],
                starts=tuple(one.start or START for one in together),
                inherited=tuple(_inherited(one) for one in together),
            )


def _alone(plan: Plan, entry: _ScheduledRun, facts: Facts, wanted: bool) -> Stage:
    keep = tuple(sorted(entry.keep))
    wanted = wanted or any(twin.name in plan.outputs for twin in entry.twins)
    places = [*(read.site for read in entry.reads), *(edit.site for edit in entry.run.edits)]
    whole = wanted or (plan.logits is not None and bool(keep))  # its keys and values are wanted, too
    stop = None if whole else _stop([*map(facts.depth, places), *keep])
    donor = None if entry.donor is None else entry.donor.run.name
    starts = () if entry.start is None else (entry.start,)
    inherited = () if entry.start is None else (_inherited(entry),)
    reads = tuple(dict.fromkeys(entry.reads))
    return Stage((entry.run,), reads, wanted, donor, starts, inherited, stop, keep, tuple(entry.twins))


def _inherited(entry: _ScheduledRun) -> tuple[tuple[str, str], ...]:
    if entry.donor is None or not entry.shared:
        return ()
    pairs = zip((entry.edits or ())[: entry.shared], (entry.donor.edits or ())[: entry.shared], strict=True)
    return tuple((edit.name, made.name) for (_, edit), (_, made) in pairs)


def _stop(depths: list[Depth | None]) -> Depth | None:
    """Return the largest depth; `None`, the end, if one is not known or lies after the blocks."""
    if not depths or None in depths:
        return None
    last = max(d for d in depths if d is not None)
    return None if last >= END else last

"""The interpreter: it runs the steps that a planner yields, one after the other, and decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor

from .._errors import NeverFiredError, PlanError
from ..models.added_columns import leading_columns
from ..models.recomputing import computed_once
from ..models.scope import scope
from ..models.sequence import Inputs, logits_stack, token_axis
from ..plan import Read, Run
from .bind import Bound, BoundRead
from .edits import Captured, Record, edit_tap, read_tap
from .hooks import Stopped, tapped
from .ledger import Counts, Effect, Passed, PickedTally, Tally, check_fired
from .logits import logits_of, pick_logits
from .step import NotANumber, OutOfMemory, Part, Pass, Planner, Reply, Step, one_by_one

Forward = Callable[[Record, Inputs, Callable[[], None]], Any]
"""How a pass is run: called with its record, the input, and a function that says a new forward pass begins."""
Ready = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


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
        outputs: for each wanted run what the model returned; or, where the plan wants logits only, these: `(examples,
            vocab)`, or `(examples, tokens)`, at each example's last real token.
        collected: for each collecting edit what it saw.
        values: for each read that the plan wants the value, `(lines, units, width)`; zeros at padding.
        passes: what was run for it, in order.
        tallies: by name of the edit what it counted, in parts where its run was divided.
        bound: the plan that was carried out.
    """

    outputs: Mapping[str, Any]
    collected: Mapping[str, Collected]
    values: Mapping[Read, Tensor]
    passes: tuple[Passed, ...]
    tallies: Mapping[str, Sequence[Tally | PickedTally]] = field(repr=False)
    bound: Bound = field(repr=False)

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """The ledger: one entry an edit, in the order of the runs."""
        return tuple(
            Counts.of_parts([tally.counts() for tally in self.tallies[edit.name]]).effect(
                edit, self.bound.count(run, edit.site.sequence)
            )
            for run in self.bound.order
            for edit in run.edits
        )


def execute(
    bound: Bound, planner: Planner = one_by_one, *, forward: Forward | None = None, ready: Ready | None = None
) -> Outcome:
    """Carry out a bound plan.

    Args:
        bound: from `bind`.
        planner: yields the passes; `one_by_one` runs every run in full: others give the same with less work.
        forward: how to run the pass whose output is wanted: a whole generation. Default: one forward pass.
        ready: called after every pass with what it gave of the outputs, by run; what it returns is kept instead.

    Returns:
        The outputs asked for, what was collected, and the ledger.

    Raises:
        NeverFiredError: an edit or a read was never reached.
        InterventionError: an intervention returned another shape.
        RuntimeError: there was no memory for a pass, and the planner knew no smaller one.
    """
    _check_clocks(bound)
    results = Results(bound, ready)
    steps = planner(bound)
    step = next(steps, None)
    while step is not None:
        step = _following(steps, run_step(results, step, forward if step.wanted else None))
    return results.outcome()


def _following(steps: Generator[Step, Reply, None], reply: Reply) -> Step | None:
    """Tell a planner what came of its step, and return the next; `None` at the end."""
    try:
        return steps.send(reply)
    except StopIteration:
        return None


def run_step(results: Results, step: Step, forward: Forward | None) -> Reply:
    """Run one forward pass with all its hooks, and return what the planner is told.

    Args:
        results: what came of the passes before; what comes of this one is added.
        step: says everything.
        forward: how the model is called; `None`: once.
    """
    bound = results.bound
    record = Record(results.values, tokens=results.tokens(step))
    this = step.way.prepare(bound, step, record)
    if step.way.name == "full":
        record.leading = cache(partial(leading_columns, bound.model, this.inputs))
    names = [*this.joined, *(edit.edit.name for edit in this.edits)]
    reads = [bound.reads[read] for read in step.reads]
    record.tallies.update({name: Tally() for name in names})
    taps = [*(edit_tap(record, edit) for edit in this.edits), *(read_tap(record, read) for read in reads)]
    with ExitStack() as stack:
        stack.enter_context(scope())
        for context in this.around:
            stack.enter_context(context)
        stack.enter_context(computed_once(bound.model, (tap.slot.module for tap in taps)))
        restart = stack.enter_context(tapped(taps))
        for context in this.within:
            stack.enter_context(context)
        try:
            output = _call(bound, this.inputs) if forward is None else forward(record, this.inputs, restart)
        except Stopped:
            output = None  # as far as the way said
        except RuntimeError as error:
            if not _says_no_memory(error):
                raise
            return OutOfMemory(error)
    check_steps(record, [*reads, *names], this.inputs)
    _check_reads(record, reads, step)
    if step.wanted and bound.plan.logits is not None:
        at = this.at
        if at is not None and not this.narrowed() and logits_of(output).ndim == 3:
            at = at[0], at[1] + record.leading(logits_of(output).shape[1], logits_stack(this.inputs))
        output = pick_logits(output, at, record.tokens, this.narrowed())
    if step.way.mixes and bool(output.isnan().any()):
        return NotANumber()
    left = this.leaves()
    results.add(step, this, record, output)
    return left


def _call(bound: Bound, inputs: Inputs) -> Any:
    return bound.model(inputs) if isinstance(inputs, Tensor) else bound.model(**inputs)


class Results:
    """What the passes of a plan leave, as long as somebody needs it.

    Args:
        bound: the plan.
        ready: as for `execute`.
    """

    def __init__(self, bound: Bound, ready: Ready | None = None) -> None:
        self.bound, self._ready = bound, ready
        self.values: Captured = {}
        self._passes: list[Passed] = []
        self._outputs: dict[str, dict[int, Any]] = {}
        self._collected: dict[str, dict[int, list[tuple[Tensor, Tensor]]]] = {}
        self._tallies: dict[str, dict[int, Tally | PickedTally]] = {}
        self._waiting: Counter[BoundRead] = Counter(bound.reads[read] for read in bound.plan.values)
        for run in bound.order:
            sources = self._sources(run)
            count = bound.count(run) if sources else 0
            for read in sources:
                self._waiting[read] += count

    def tokens(self, step: Step) -> tuple[int, ...] | None:
        """Return the tokens whose logits are wanted of a step; `None` for all."""
        logits = self.bound.plan.logits
        if logits is None or not logits.answers_of:
            return None if logits is None else logits.tokens
        if not step.wanted or any(run.name in logits.answers_of for run in (*step.runs, *step.twins)):
            return None
        said = [self._output(name).argmax(-1).tolist() for name in logits.answers_of]
        return tuple(dict.fromkeys(token for tokens in said for token in tokens))

    def add(self, step: Step, this: Pass, record: Record, output: Any) -> None:
        """Take what came of a pass; let go of what nobody reads any more."""
        runs = (*step.runs, *step.twins)
        self._passes.append(Passed(tuple(run.name for run in runs), step.way.name, *this.shape, step.refused))
        self.values.update(record.captured)
        starts = {part.run.name: part.lines.start if part.lines else 0 for part in step.parts}
        owners = {edit.name: starts[run.name] for run in step.runs for edit in run.edits}
        for name, tally in record.tallies.items():
            self._tallies.setdefault(name, {})[owners[name]] = tally
        for name, pairs in record.collected.items():
            self._collected.setdefault(name, {})[owners[name]] = pairs
        for one in this.inherited:
            (made,) = self._tallies[one.donor].values()
            self._tallies.setdefault(one.name, {})[owners[one.name]] = PickedTally(made, one.examples)
        self._release(step)
        outputs: Mapping[str, Any] = self._divided(step, output) if step.wanted else {}
        if outputs and self._ready is not None:
            outputs = self._ready(outputs) or outputs
        for name, rows in outputs.items():
            self._outputs.setdefault(name, {})[starts.get(name, 0)] = rows

    def outcome(self) -> Outcome:
        """Return what came of the plan.

        Raises:
            NeverFiredError: an edit was never reached.
        """
        plan = self.bound.plan
        tallies = {name: [tally for _, tally in _in_order(parts)] for name, parts in self._tallies.items()}
        # A plain pass may be asked for no place at all; a generation that came to none missed its tokens.
        fired = attrgetter("touched" if self.bound.generates else "fired")
        check_fired((bound.edit, any(map(fired, tallies[name]))) for name, bound in self.bound.edits.items())
        outputs = {name: self._output(name) for name in plan.outputs}
        collected = {
            name: _collected(_firings([pairs for _, pairs in _in_order(parts)]))
            for name, parts in self._collected.items()
        }
        values = {read: _value(self.values[self.bound.reads[read]]) for read in plan.values}
        return Outcome(outputs, collected, values, tuple(self._passes), tallies, self.bound)

    def _output(self, name: str) -> Any:
        parts = [rows for _, rows in _in_order(self._outputs[name])]
        self._outputs[name] = {0: parts[0] if len(parts) == 1 else torch.cat(parts)}  # the parts are let go of
        return self._outputs[name][0]

    def _divided(self, step: Step, output: Any) -> dict[str, Any]:
        """Return the output of each wanted run of a step."""
        if len(step.parts) == 1:
            runs = (*step.runs, *step.twins)
            return {run.name: output for run in runs if run.name in self.bound.plan.outputs}
        sizes = [self._size(part) for part in step.parts]
        return dict(zip((run.name for run in step.runs), output.split(sizes), strict=True))

    def _size(self, part: Part) -> int:
        return self.bound.count(part.run) if part.lines is None else len(part.lines)

    def _sources(self, run: Run) -> list[BoundRead]:
        """Return what the edits of a run read."""
        return [read for edit in run.edits for read in self.bound.edits[edit.name].reads]

    def _release(self, step: Step) -> None:
        """Forget what was read for edits that have all been made."""
        for part in step.parts:
            sources = self._sources(part.run)
            size = self._size(part) if sources else 0
            for read in sources:
                self._waiting[read] -= size
                if not self._waiting[read]:
                    del self.values[read]


def _in_order(parts: Mapping[int, Any]) -> list[tuple[int, Any]]:
    return sorted(parts.items(), key=itemgetter(0)) if len(parts) > 1 else list(parts.items())


def _value(calls: list[Tensor]) -> Tensor:
    """Return what a read has as one tensor; the units of several calls stand one call after the other."""
    return calls[0] if len(calls) == 1 else torch.cat([one if one.ndim > 2 else one.unsqueeze(1) for one in calls], 1)


def _firings(parts: list[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """Return for each firing what was seen in all parts of a run, below each other."""
    if len(parts) == 1:
        return parts[0]
    firings = zip(*parts, strict=True)
    return [(torch.cat([v for v, _ in firing]), torch.cat([r for _, r in firing])) for firing in firings]


def _collected(pairs: list[tuple[Tensor, Tensor]]) -> Collected:
    """Return what a collecting edit saw; each of several calls without a sequence axis is one unit."""
    if len(pairs) > 1:
        pairs = [(v.unsqueeze(1), r.unsqueeze(1)) if v.ndim == 2 else (v, r) for v, r in pairs]
    return Collected(tuple(value for value, _ in pairs), tuple(real for _, real in pairs))


def _says_no_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check_clocks(bound: Bound) -> None:
    """Refuse edits of generated tokens in runs that generate none."""
    for run in bound.order:
        for edit in run.edits:
            generated = bound.generates and run.name in bound.plan.outputs
            if edit.positions.steps and not generated:
                raise PlanError(f"{edit.site}: generated tokens are edited, but run {run.name!r} generates none")
            if generated and run.name in (read.run for read in edit.reads):
                raise PlanError(f"{edit.site}: a run that generates cannot read itself, only runs that are over")


def check_steps(record: Record, keys: Sequence[BoundRead | str], inputs: Inputs) -> None:
    """Refuse time steps that this pass never came to, and hand on what was collected step by step.

    Args:
        record: of the pass.
        keys: its reads, and the names of its edits.
        inputs: of the pass.
    """
    tokens = token_axis(inputs) if record.assembled else None
    for key in keys if record.assembled else ():
        assembly = record.assembled.get(key)
        if assembly is not None:
            assembly.check(None if tokens is None else int(tokens.shape[1]))
            if isinstance(key, str) and assembly.values is not None and assembly.real is not None:
                record.collected[key] = [(assembly.values, assembly.real)]


def _check_reads(record: Record, reads: Sequence[BoundRead], step: Step) -> None:
    missed = [str(read.read.site) for read in reads if read not in record.captured]
    if missed:
        names = ", ".join(repr(run.name) for run in step.runs)
        raise NeverFiredError(f"run {names} never reached {'; '.join(missed)}, which another run reads")

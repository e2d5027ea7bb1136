"""The passes of a plan: each run from the first block on, or late, with as many others as go together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import NeverFiredError, SiteError
from ..models import find_slot
from ..plan import Run
from ..sites import Site
from .apply import Work, edit_tap, read_tap
from .bind import BoundRead
from .chain import Chain, Stopped
from .hooks import Tap, after_call, before_call, tapped
from .inputs import (
    Inputs,
    batch_size,
    examples_of,
    logits_stack,
    token_axis,
    whole_run_only,
    without_cache,
)
from .kept import Kept, Steps, keeping
from .late import (
    Abilities,
    Late,
    has_hooks,
    in_chunks,
    own_caches,
    prepare,
    why_not_late,
    why_not_packed,
    why_not_together,
)
from .ledger import Passed, Tally
from .reading import can_narrow, only, pick_logits
from .schedule import INPUT, START, Depth, Pass

Forward = Callable[[Work, Inputs, Callable[[], None]], Any]
"""How a pass is run: called with the work, the input, and a function that says a new forward pass begins."""


def forward_once(work: Work, inputs: Inputs, _restart: Callable[[], None]) -> Any:
    """Run one forward pass of the model."""
    return work.bound.model(inputs) if isinstance(inputs, Tensor) else work.bound.model(**inputs)


class Execution:
    """A plan being carried out: what its passes leave for each other, and what was run.

    Args:
        work: the plan's state.
        able: tells what was found out about late passes of this model.
    """

    def __init__(self, work: Work, able: Abilities) -> None:
        self.work = work
        self.bound = work.bound
        self.passed: list[Passed] = []
        self._kept: dict[str, Kept] = {}
        late = any(one.start is not None for one in self.bound.passes)
        self._never_late = why_not_late(self.bound) if late else ""
        self._able = able

    def carry_out(self, one: Pass, forward: Forward) -> Iterator[dict[str, Any]]:
        """Run what a pass says, as one forward pass or several; yield the outputs of each."""
        if one.start is None:
            yield self._full(one, one.runs[0], forward, "")
            return
        why = self._why_full(one) or ("" if forward is forward_once else "it generates")
        kept = self.bound.known[one.runs[0].input] if one.start.donor is None else self._kept.get(one.start.donor)
        if why or kept is None:
            for run in one.runs:
                yield self._full(one, run, forward, why or "the run it could start from left no states")
            return
        for group, way, reason in self._groups(one, kept):
            yield from self._as_large_as_fits(one, group, kept, way, reason)

    def _why_full(self, one: Pass) -> str:
        inputs, config = self.bound.inputs[one.runs[0].input], getattr(self.bound.model, "config", None)
        whole = one.wanted and self.bound.logits is None
        return self._never_late or whole_run_only(inputs, config, whole) or self._able.why_not("late")

    def _groups(self, one: Pass, kept: Kept) -> Iterator[tuple[Sequence[tuple[Run, Depth]], str, str]]:
        """Yield the runs that go together, how, and why not in a better way."""
        assert one.start is not None
        runs = list(zip(one.runs, one.start.depths, strict=True))
        if self.bound.logits is None or one.reads or one.keep:
            apart = "whole outputs are wanted, or others need its states"
        else:
            apart = why_not_together(self.bound, one.runs) or self._able.why_not("together")
        if apart:
            yield from (([run], "late", apart) for run in runs)
            return
        whole = why_not_packed(self.bound, one.runs, kept) or self._able.why_not("packed")
        way = "together" if whole else "packed"
        yield from ((group, way, whole) for group in in_chunks(self.bound, runs, kept, packed=not whole))

    def _as_large_as_fits(
        self, one: Pass, group: Sequence[tuple[Run, Depth]], kept: Kept, way: str, why: str
    ) -> Iterator[dict[str, Any]]:
        """Run a group as one pass; where memory runs out, as two of half the size."""
        try:
            outputs = self._late(one, group, kept, way, why)
        except RuntimeError as error:
            if len(group) < 2 or not _out_of_memory(error):
                raise
        else:
            yield outputs
            return
        half = len(group) // 2
        yield from self._as_large_as_fits(one, group[:half], kept, way, why)
        yield from self._as_large_as_fits(one, group[half:], kept, way, why)

    def _full(self, one: Pass, run: Run, forward: Forward, why: str) -> dict[str, Any]:
        inputs = self._lean(examples_of(own_caches(self.bound.inputs[run.input]), run.examples), one)
        taps = [edit_tap(self.work, self.bound.edits[edit.name]) for edit in run.edits]
        columns = self.bound.columns(run)
        at = None if columns is None else (torch.arange(len(columns)), columns)
        output = self._forward(one, [run], inputs, taps, forward, at, None)
        tokens = token_axis(inputs)
        length = 0 if tokens is None else int(tokens.shape[1])
        self.passed.append(Passed((run.name,), "full", batch_size(inputs), length, why))
        return {run.name: output} if one.wanted else {}

    def _late(self, one: Pass, group: Sequence[tuple[Run, Depth]], kept: Kept, way: str, why: str) -> dict[str, Any]:
        runs, depths = [run for run, _ in group], [depth for _, depth in group]
        ended = way == "packed" and not self._able.why_not("ended")
        late = prepare(self.work, runs, depths, kept, packed=way == "packed", ended=ended)
        layout = late.layout
        output = self._forward(one, runs, self._lean(late.inputs, one), late.taps, forward_once, late.at, late)
        rows, columns = layout.example.shape
        self.passed.append(Passed(tuple(run.name for run in runs), way, rows, columns, why))
        if not one.wanted:
            return {}
        if self.bound.logits is None:
            return {runs[0].name: output}
        return {run.name: output[copies.start : copies.stop] for run, copies in zip(runs, layout.copies, strict=True)}

    def _forward(
        self,
        one: Pass,
        runs: Sequence[Run],
        inputs: Inputs,
        taps: Sequence[Tap],
        forward: Forward,
        at: tuple[Tensor, Tensor] | None,
        late: Late | None,
    ) -> Any:
        """Run one forward pass with all its hooks; return its output, or the logits that are wanted of it."""
        work, names = self.work, [edit.name for run in runs for edit in run.edits]
        work.tallies.update({name: Tally(self.bound.edits[name].edit) for name in names})
        for name in names:
            work.collected.pop(name, None)
        reads = [self.bound.reads[read] for read in one.reads]
        taps = [*taps, *(read_tap(work, read) for read in reads)]
        with ExitStack() as stack:
            finishers = [] if late is None else [stack.enter_context(late.replay.running())]
            if one.keep and self._starts_from(one):
                finishers.append(stack.enter_context(self._keeping(one)))
            restart = stack.enter_context(tapped(taps))
            for finish in finishers:
                finish(stack)
            if one.stop is not None:
                stack.enter_context(self._stopping(one.stop))
            narrow = self._narrow(taps) if at is not None and one.wanted else None
            narrowed: Callable[[], bool] = bool
            shape = _shape(inputs)
            if narrow is not None and at is not None and shape is not None and self.bound.logits is not None:
                tokens = self.bound.logits.tokens if one.start is not None and self._able.tokens() else None
                narrowed = stack.enter_context(only(narrow, *at, tokens, shape))
            try:
                output = forward(work, inputs, restart)
            except Stopped:
                output = None
        if work.assembled:
            _check_steps(work, [*reads, *names], self.bound.inputs[runs[0].input])
        _check_reads(work, reads, runs[0])
        if self.bound.logits is None or not one.wanted:
            return output
        return pick_logits(output, at, self.bound.logits.tokens, narrowed())

    def _starts_from(self, one: Pass) -> bool:
        """Whether a later pass is going to start from the states of this one."""
        later = (p for p in self.bound.passes if p.start is not None and p.start.donor == one.runs[0].name)
        return any(not self._why_full(p) for p in later)

    def _keeping(self, one: Pass) -> Any:
        """Return a context in which the states that others start from are kept."""
        chain, run = self.bound.chain, one.runs[0]
        assert chain is not None
        kept = self._kept[run.name] = Kept(batch_size(self.bound.inputs[run.input]))
        heads = not run.edits and one.stop is None and self.bound.logits is not None
        return keeping(kept, chain, {chain.find(depth) for depth in one.keep}, Steps(chain), heads)

    def _stopping(self, stop: Depth) -> Any:
        """Return a context in which a pass ends where nothing more is needed of it."""
        chain = self.bound.chain
        assert chain is not None
        if stop <= START:
            return before_call(chain.links[0].module, _enough)
        link = chain.links[chain.find(stop)[0]]
        return before_call(link.module, _enough) if stop.point == INPUT else after_call(link.module, _enough)

    def _narrow(self, taps: Sequence[Tap]) -> nn.Module | None:
        """Return the layer that gives the logits, if it can be asked for a part of them."""
        try:
            slot = find_slot(self.bound.model, Site("logits")) if self.bound.chain is not None else None
        except SiteError:
            return None
        if slot is None or not can_narrow(slot) or any(tap.slot.module is slot.module for tap in taps):
            return None
        return None if has_hooks(slot.module) or self.bound.model._forward_hooks else slot.module

    def _lean(self, inputs: Inputs, one: Pass) -> Inputs:
        """Return an input with which the model makes no cache where nobody wants one."""
        whole = one.wanted and self.bound.logits is None
        return inputs if whole else without_cache(self.bound.model, inputs)


def _enough(*_: Any) -> None:
    raise Stopped


def _shape(inputs: Inputs) -> tuple[int, int] | None:
    """Return rows and columns of the sequence that the logits are of; `None` if that is not known."""
    tokens = token_axis(inputs, logits_stack(inputs))
    return None if tokens is None else (int(tokens.shape[0]), int(tokens.shape[1]))


@torch.no_grad()
def keep_states(
    model: nn.Module, chain: Chain, inputs: Inputs, places: Collection[tuple[int, bool]], *, heads: bool
) -> Kept:
    """Return the unedited states of an input at some places, from one pass that goes no further than it needs to.

    Args:
        model: the user's.
        chain: its blocks.
        inputs: its input.
        places: number of a link, and whether its output is asked for rather than its input.
        heads: also keep all keys and values.
    """
    kept, inputs = Kept(batch_size(inputs)), without_cache(model, inputs)
    with ExitStack() as stack:
        finish = stack.enter_context(keeping(kept, chain, places, Steps(chain), heads))
        finish(stack)
        last = len(chain) - 1 if heads else max(number for number, _ in places)
        stack.enter_context(after_call(chain.links[last].module, _enough))
        with suppress(Stopped):
            _ = model(inputs) if isinstance(inputs, Tensor) else model(**inputs)
    return kept


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check_steps(work: Work, keys: Sequence[BoundRead | str], inputs: Inputs) -> None:
    """Refuse time steps that this pass never came to, and hand on what was collected step by step.

    Args:
        work: the plan's state.
        keys: the reads of the pass, and the names of its edits.
        inputs: of the pass.
    """
    tokens = token_axis(inputs)
    for key in keys:
        assembly = work.assembled.get(key)
        if assembly is not None:
            assembly.check(None if tokens is None else int(tokens.shape[1]))
            if isinstance(key, str) and assembly.values is not None and assembly.real is not None:
                work.collected[key] = [(assembly.values, assembly.real)]


def _check_reads(work: Work, reads: Sequence[BoundRead], run: Run) -> None:
    missed = [str(read.read.site) for read in reads if read not in work.captured]
    if missed:
        raise NeverFiredError(f"run {run.name!r} never reached {'; '.join(missed)}, which another run reads")

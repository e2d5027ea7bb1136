"""Carrying out a bound plan: all its passes, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from .._errors import PlanError
from .abilities import abilities
from .apply import Work
from .bind import Bound
from .ledger import Effect, Passed, Tally, check_fired
from .passes import Execution, Forward, forward_once


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
        passes: what was run for it, in order.
        tallies: what the edits counted.
    """

    outputs: Mapping[str, Any]
    collected: Mapping[str, Collected]
    passes: tuple[Passed, ...]
    tallies: tuple[Tally, ...] = field(repr=False)

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """The ledger: one entry an edit, in the order of the passes."""
        return tuple(tally.effect() for tally in self.tallies)


def execute(
    bound: Bound, last: Forward = forward_once, *, ready: Callable[[Mapping[str, Any]], None] | None = None
) -> Outcome:
    """Carry out a bound plan.

    Args:
        bound: from `bind`.
        last: how to run the last pass: one forward pass, or a whole generation.
        ready: called after every pass with the outputs of its runs, by name.

    Returns:
        The outputs asked for, what was collected, and the ledger.

    Raises:
        NeverFiredError: an edit or a read was never reached.
        InterventionError: an intervention returned another shape.
    """
    _check_clocks(bound, last)
    work = Work(bound)
    execution = Execution(work, abilities(bound.model))
    outputs: dict[str, Any] = {}
    for number, one in enumerate(bound.passes, start=1):
        for new in execution.carry_out(one, last if number == len(bound.passes) else forward_once):
            outputs |= new
            if ready is not None and new:
                ready(new)
    collected = {name: _collected(pairs) for name, pairs in work.collected.items()}
    check_fired(work.tallies.values())
    return Outcome(outputs, collected, tuple(execution.passed), tuple(work.tallies.values()))


def _collected(pairs: list[tuple[Tensor, Tensor]]) -> Collected:
    """Return what a collecting edit saw; each of several calls without a sequence axis is one unit."""
    if len(pairs) > 1:
        pairs = [(v.unsqueeze(1), r.unsqueeze(1)) if v.ndim == 2 else (v, r) for v, r in pairs]
    return Collected(tuple(value for value, _ in pairs), tuple(real for _, real in pairs))


def _check_clocks(bound: Bound, last: Forward) -> None:
    """Refuse edits of generated tokens in runs that generate none."""
    for number, one in enumerate(bound.passes, start=1):
        generates = number == len(bound.passes) and last is not forward_once
        for run in one.runs:
            for edit in run.edits:
                if edit.positions.steps and not generates:
                    raise PlanError(f"{edit.site}: generated tokens are edited, but run {run.name!r} generates none")

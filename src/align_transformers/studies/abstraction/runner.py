"""The interchanges of many candidates as one plan, started from what the frozen model makes of each input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..._errors import SiteError
from ...engine import bind, token_axis
from ...models import resolve
from ...models.sequence import examples_of
from ...plan import Logits, Plan
from ...planners import HAS_FAST, execute
from .._sweep import vocabulary
from .hypothesis import Candidate, Interchanges, copies_of
from .task import CounterfactualPairs, Indices, Task

if HAS_FAST:
    from ...fast import ActivationCache, Remembered, planned, remembered

_FLOATS = 16
"""So many numbers for each coordinate of a state a block's modules are taken to return, where it is not measured."""


class Runner:
    """Carries out interchanges of one task.

    Args:
        task: the inputs.
        memory: bytes: of states of inputs that are kept, and of what one plan may hold.
        passes: is counted up: the forward passes of each way.
    """

    def __init__(self, task: Task, memory: int, passes: Counter[str] | None = None) -> None:
        self.task, self.memory = task, memory
        self.passes: Counter[str] = Counter() if passes is None else passes
        self._cache = ActivationCache(memory) if HAS_FAST else None

    def run(self, several: Sequence[Interchanges], tokens: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """Return the logits of some copies, by name of their run: of all tokens, or of some."""
        bound, planner = self._bound(several, tokens)
        outcome = execute(bound, planner)
        self.passes.update(passed.way for passed in outcome.passes)
        return dict(outcome.outputs)

    def _bound(self, several: Sequence[Interchanges], tokens: tuple[int, ...] | None) -> tuple[Any, Any]:
        task = self.task
        runs = [one.run for one in several]
        used = sorted({number for run in runs for number in run.examples or ()})
        at = {number: place for place, number in enumerate(used)}
        renamed = tuple(replace(run, examples=tuple(at[number] for number in run.examples or ())) for run in runs)
        inputs = {"inputs": examples_of(task.inputs, tuple(used))}
        constants = {name: value for one in several for name, value in one.constants.items()}
        interventions = {name: value for one in several for name, value in one.interventions.items()}
        plan = Plan(renamed, tuple(run.name for run in renamed), Logits(tokens))
        if self._cache is None:
            return bind(task.model, plan, inputs, interventions, constants), None
        found: Remembered = remembered(task.model, plan, inputs, constants, self._cache)
        bound = bind(task.model, found.plan, inputs, interventions, found.constants)
        return bound, partial(planned, known=found.known)

    def bytes_of_token(self, candidate: Candidate, pairs: CounterfactualPairs) -> float:
        """Return how many bytes a block's modules return for one token of one example."""
        chosen = pairs.of(candidate.hypothesis.variables)[:1]
        copies = copies_of("one", candidate, self.task, pairs, chosen)
        _, planner = self._bound([copies], None)
        known = getattr(planner, "keywords", {}).get("known", {})
        measured = [float(states.bytes) for states in known.values()]
        units, width = self.task.width(candidate.hypothesis.container)
        return max([*measured, 1.0]) if measured else float(_FLOATS * units * width * 4)

    def tokens(self, candidate: Candidate) -> int:
        """Return how many tokens of an input are computed after a candidate's edit, in all blocks above it."""
        axis = token_axis(self.task.inputs)
        length = 1 if axis is None else int(axis.shape[1])
        each = [self.task.rows(container) for container in candidate.hypothesis.containers]
        tail = max(length if rows is None else max(length - min(row) for row in rows) for rows in each)
        return tail * max(1, layers_of(self.task) - (candidate.hypothesis.container.site.layer or 0))


def layers_of(task: Task) -> int:
    """Return how many blocks a model's longest stack has; 1 where its blocks are not known."""
    try:
        return max((len(stack) for stack in resolve(task.model).stacks.values()), default=1)
    except SiteError:
        return 1


def measured(
    runner: Runner,
    candidates: Sequence[Candidate],
    pairs: CounterfactualPairs,
    chosen: Callable[[Candidate], Indices],
    reduce: Callable[[Tensor], Tensor],
    tell: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """Return what is made of the logits of each candidate's interchanges, a line a pair.

    Args:
        runner: of the task.
        candidates: any number.
        pairs: of one part.
        chosen: which of them are those of a candidate.
        reduce: from logits `(n, vocabulary)` to `(n, ...)`.
        tell: called with the candidates that are done.
    """
    vocabulary_size = vocabulary(runner.task.model) or 1024
    most = max(1, runner.memory // (4 * vocabulary_size))
    found: dict[int, list[Tensor]] = {number: [] for number in range(len(candidates))}
    order = sorted(found, key=lambda number: candidates[number].hypothesis.container.site.layer or 0)
    pieces = [(number, piece) for number in order for piece in _pieces(chosen(candidates[number]), most)]
    for group in _groups(pieces, most):
        copies = [
            copies_of(f"{place}", candidates[number], runner.task, pairs, rows)
            for place, (number, rows) in enumerate(group)
        ]
        with torch.no_grad():
            outputs = runner.run(copies)
        for (number, _), one in zip(group, copies, strict=True):
            found[number].append(reduce(outputs[one.run.name]))
        tell(len({number for number, _ in group}))
    return [torch.cat(several) for several in found.values()]


def _pieces(rows: Indices, most: int) -> Iterator[Indices]:
    for start in range(0, max(1, len(rows)), most):
        yield rows[start : start + most]


def _groups(pieces: Sequence[tuple[int, Indices]], most: int) -> Iterator[list[tuple[int, Indices]]]:
    group: list[tuple[int, Indices]] = []
    size = 0
    for number, rows in pieces:
        if group and size + len(rows) > most:
            yield group
            group, size = [], 0
        group.append((number, rows))
        size += len(rows)
    if group:
        yield group


def hits(
    runner: Runner,
    candidates: Sequence[Candidate],
    pairs: CounterfactualPairs,
    most: int | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Float[np.ndarray, " _"]]:
    """Return for each pair of each candidate 1.0 where the network says what the causal model does, else 0.0.

    Args:
        runner: of the task.
        candidates: any number.
        pairs: of one part.
        most: of a candidate's pairs only the first so many.
        tell: called with the candidates that are done.
    """

    def chosen(candidate: Candidate) -> Indices:
        return pairs.of(candidate.hypothesis.variables)[:most]

    says = measured(runner, candidates, pairs, chosen, lambda logits: logits.argmax(-1), tell)
    return [
        (said == pairs.labels[torch.from_numpy(chosen(one)).to(said.device)]).double().cpu().numpy()
        for said, one in zip(says, candidates, strict=True)
    ]

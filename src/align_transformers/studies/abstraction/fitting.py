"""Many fits at once: the pairs of all of them are rows of one pass, and each has an optimiser of its own.

Every fit is the one that it would be alone: its batches, its optimiser, its schedule. They are taken in chunks, so that
what autograd keeps of a pass stays within a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..._errors import SpecError
from ...interventions import TrainableIntervention
from ...learning.checkpoints import Checkpoint, damaged, optimizer_state, set_optimizer_state
from ...learning.held import frozen, learning
from ...learning.losses import Measure
from ...learning.settings import FitError, Settings, make_optimizer, make_scheduler
from .._sweep import vocabulary
from .hypothesis import Candidate, Interchanges, copies_of
from .runner import Runner
from .task import CounterfactualPairs, Indices

_LOGITS = 3
"""Logits, their logarithms of probabilities and the gradient are there at once."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """How candidates are fitted.

    Args:
        settings: epochs, learning rate, schedule, ...
        batch_size: pairs a step.
        loss: `(logits, labels)` -> one number a row.
        tokens: whose logits the loss reads, ascending; `None` for all. Labels are then numbers of these.
    """

    settings: Settings
    batch_size: int
    loss: Measure
    tokens: tuple[int, ...] | None = None

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row."""
        if self.tokens is not None:
            labels = torch.searchsorted(torch.tensor(self.tokens, device=labels.device), labels)
        found: Tensor = self.loss(logits, labels)
        return found


@dataclass(eq=False)
class Learner:
    """One candidate that is being fitted.

    Args:
        candidate: with the intervention that learns.
        optimizer: of its parameters.
        scheduler: of its learning rate.
        batches: of pairs, one a step.
        losses: of the steps that were made.
    """

    candidate: Candidate
    optimizer: Optimizer
    scheduler: LRScheduler
    batches: Sequence[Indices]
    losses: list[float] = field(default_factory=list)

    @property
    def trained(self) -> TrainableIntervention:
        """The intervention."""
        assert isinstance(self.candidate.intervention, TrainableIntervention)
        return self.candidate.intervention

    def anneal(self) -> None:
        """Set the temperature with which the next step is made."""
        schedule = self.trained.temperature_schedule
        if schedule is not None:
            done = len(self.losses) / max(len(self.batches) - 1, 1)
            self.trained.set_temperature(schedule[0] + (schedule[1] - schedule[0]) * min(1.0, done))


def learner_of(candidate: Candidate, pairs: CounterfactualPairs, lesson: Lesson) -> Learner:
    """Return a candidate ready to be fitted: its batches are drawn by its seed, epoch by epoch."""
    settings, rows = lesson.settings, pairs.of(candidate.hypothesis.variables)
    per_epoch = math.ceil(len(rows) / lesson.batch_size)
    total = settings.steps(per_epoch)
    batches: list[Indices] = []
    epoch = 0
    while len(batches) < total:
        order = np.random.default_rng([settings.seed, candidate.hypothesis.seed, epoch]).permutation(rows)
        batches += [order[start : start + lesson.batch_size] for start in range(0, len(rows), lesson.batch_size)]
        epoch += 1
    optimizer = make_optimizer({"": candidate.intervention}, settings, None)
    return Learner(candidate, optimizer, make_scheduler(optimizer, settings, total, None), batches[:total])


def chunks(
    learners: Sequence[Learner], runner: Runner, pairs: CounterfactualPairs, lesson: Lesson
) -> Iterator[list[Learner]]:
    """Yield learners whose passes hold no more than the runner's memory at a time, ascending by layer."""
    order = sorted(learners, key=lambda one: one.candidate.hypothesis.container.site.layer or 0)  # of several the first
    if not order:
        return
    size = runner.bytes_of_token(order[0].candidate, pairs)
    logits = len(lesson.tokens) if lesson.tokens is not None else vocabulary(runner.task.model) or 0
    chunk: list[Learner] = []
    used = 0.0
    for one in order:
        need = lesson.batch_size * (runner.tokens(one.candidate) * size + _LOGITS * 4 * logits)
        if chunk and used + need > runner.memory:
            yield chunk
            chunk, used = [], 0.0
        chunk.append(one)
        used += need
    if chunk:
        yield chunk


def advance(
    learners: Sequence[Learner],
    runner: Runner,
    pairs: CounterfactualPairs,
    lesson: Lesson,
    *,
    until: int | None = None,
    store: Stored | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """Make steps of all learners: up to a number of steps, or to the end.

    Args:
        learners: their interventions are changed.
        runner: of the task.
        pairs: to learn from.
        lesson: how.
        until: so many steps in all; default: all.
        store: where what is done is kept, chunk by chunk.
        tell: called after each step with the steps made.

    Raises:
        FitError: a loss is not finite, or does not depend on what learns.
    """
    for number, chunk in enumerate(chunks(learners, runner, pairs, lesson)):
        kept = None if store is None else store.load(number, chunk)
        if kept:
            tell(sum(len(one.losses) for one in chunk))
            continue
        _train(chunk, Runner(runner.task, runner.memory, runner.passes), pairs, lesson, until, tell)
        if store is not None:
            store.save(number, chunk)


def _train(
    chunk: Sequence[Learner],
    runner: Runner,
    pairs: CounterfactualPairs,
    lesson: Lesson,
    until: int | None,
    tell: Callable[[int], None],
) -> None:
    with ExitStack() as stack:
        stack.enter_context(frozen(runner.task.model))
        for one in chunk:
            stack.enter_context(learning(one.trained))
        while active := [one for one in chunk if len(one.losses) < min(len(one.batches), until or len(one.batches))]:
            _step(active, runner, pairs, lesson)
            tell(len(active))


def _step(active: Sequence[Learner], runner: Runner, pairs: CounterfactualPairs, lesson: Lesson) -> None:
    """Make one step of each learner."""
    several: list[Interchanges] = []
    for number, one in enumerate(active):
        one.optimizer.zero_grad(set_to_none=True)
        one.anneal()
        several.append(copies_of(f"fit {number}", one.candidate, runner.task, pairs, one.batches[len(one.losses)]))
    outputs = runner.run(several, lesson.tokens)
    losses = [lesson.losses(outputs[of.run.name], of.labels).mean() for of in several]
    total = torch.stack([loss + one.trained.penalty().to(loss) for loss, one in zip(losses, active, strict=True)])
    for one, value, loss in zip(active, total.tolist(), losses, strict=True):
        if not math.isfinite(value):
            raise FitError(
                f"{one.candidate.hypothesis}: the loss is {value} at step {len(one.losses) + 1}: a smaller lr helps"
            )
        if not loss.requires_grad:
            raise FitError(f"{one.candidate.hypothesis}: the loss does not depend on what learns")
    total.sum().backward()
    for one, value in zip(active, total.tolist(), strict=True):
        if lesson.settings.clip is not None:
            nn.utils.clip_grad_norm_(one.trained.parameters(), lesson.settings.clip)
        one.optimizer.step()
        one.scheduler.step()
        one.losses.append(value)


@dataclass(frozen=True, eq=False)
class Stored:
    """A folder with a file for each chunk of one stage of a search.

    Args:
        folder: of the search.
        stage: its name.
        facts: what must be the same in the search that wrote a file.
    """

    folder: Path
    stage: str
    facts: Mapping[str, Any]

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.stage}-{number:05d}"

    def load(self, number: int, chunk: Sequence[Learner]) -> bool:
        """Set the learners of a chunk to where they were; return whether they were kept.

        Raises:
            SpecError: the file is another search's.
            ArtifactError: it is damaged.
        """
        found = Checkpoint.read(self._path(number))
        if found is None:
            return False
        with damaged(self._path(number)):
            self._restore(found, number, chunk)
        return True

    def _restore(self, found: Checkpoint, number: int, chunk: Sequence[Learner]) -> None:
        names = [str(one.candidate.hypothesis) for one in chunk]
        different = [name for name, value in self.facts.items() if found.data["search"].get(name) != value]
        if different or found.data["learners"] != names:
            raise SpecError(
                f"{self._path(number)} belongs to another search, with another {', '.join(different or ['grid'])}: "
                "give another store=, or remove it"
            )
        for place, one in enumerate(chunk):
            one.trained.load_state_dict(found.tensors.get(f"weights {place}", {}))
            set_optimizer_state(
                one.optimizer, found.tensors.get(f"optimizer {place}", {}), found.data["optimizers"][place]
            )
            one.scheduler.load_state_dict(found.data["schedulers"][place])
            one.losses[:] = found.data["losses"][place]
            one.anneal()

    def save(self, number: int, chunk: Sequence[Learner]) -> None:
        """Keep the learners of a chunk, in one step."""
        states = [optimizer_state(one.optimizer) for one in chunk]
        tensors: dict[str, dict[str, Tensor]] = {}
        for place, (one, (of_optimizer, _)) in enumerate(zip(chunk, states, strict=True)):
            tensors[f"weights {place}"] = dict(one.trained.state_dict())
            tensors[f"optimizer {place}"] = of_optimizer
        data = {
            "search": dict(self.facts),
            "learners": [str(one.candidate.hypothesis) for one in chunk],
            "optimizers": [data for _, data in states],
            "schedulers": [one.scheduler.state_dict() for one in chunk],
            "losses": [one.losses for one in chunk],
        }
        self._path(number).mkdir(parents=True, exist_ok=True)
        Checkpoint(tensors, data).write(self._path(number))

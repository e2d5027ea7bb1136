"""`Step`: one forward pass with all that is decided about it. `one_by_one`: what a plan means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from .._checked import checked
from ..models.cache_copies import own_caches
from ..models.sequence import Inputs, batch_size, examples_of, token_axis
from ..plan import Read, Run
from .bind import Bound, BoundEdit
from .edits import Record


@dataclass(frozen=True)
class Part:
    """Some of the examples that a run works on.

    Args:
        run: the run.
        lines: which of its examples, by their number in the run; `None` for all.
    """

    run: Run
    lines: range | None = None

    @property
    def examples(self) -> tuple[int, ...] | None:
        """The examples of the input, as `Run.examples` has them."""
        if self.lines is None:
            return self.run.examples
        return tuple(self.lines) if self.run.examples is None else self.run.examples[self.lines.start : self.lines.stop]


@dataclass(frozen=True, eq=False)
class Inheritance:
    """An edit that a pass need not make, since it starts from the states of a run that made an equal one.

    Args:
        name: of the edit.
        donor: name of the other run's edit.
        examples: for each example of the pass, which of the other run's examples it is.
    """

    name: str
    donor: str
    examples: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass, ready to run: a `Step` in terms of the model's modules and tensors.

    Args:
        inputs: what the model is called with.
        edits: what hooks do on the way, at places of this pass.
        shape: rows and columns.
        at: for each example the row and the column at which its logits are read; `None`: the last column of its row.
        around: what is entered before the hooks of edits and reads stand.
        within: what is entered after that.
        inherited: edits that were made already.
        joined: names of further edits, which are made by what is in `around` or `within`.
        narrowed: tells, after the pass, whether the model gave the logits at `at` and no others.
        leaves: gives, after the pass, what others may start from.
    """

    inputs: Inputs
    edits: Sequence[BoundEdit]
    shape: tuple[int, int]
    at: tuple[Tensor, Tensor] | None = None
    around: Sequence[AbstractContextManager[Any]] = ()
    within: Sequence[AbstractContextManager[Any]] = ()
    inherited: Sequence[Inheritance] = ()
    joined: Sequence[str] = ()
    narrowed: Callable[[], bool] = bool
    leaves: Callable[[], Any] = lambda: None


class Way(ABC):
    """How the parts of a step become one forward pass. A way is a value: all that it does is decided."""

    name: ClassVar[str]
    """What the ledger calls it."""
    mixes: ClassVar[bool] = False
    """Whether copies share rows, in which what is not a number spreads."""

    @abstractmethod
    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run.

        Args:
            bound: the plan.
            step: what is to be run.
            record: takes what comes by.
        """


@final
@dataclass(frozen=True)
class WholeRun(Way):
    """The run alone, from the first module to the last, with nothing left out."""

    name = "full"

    def prepare(self, bound: Bound, step: Step, record: Record) -> Pass:
        """Return the pass, ready to run."""
        (part,) = step.parts
        inputs = examples_of(own_caches(bound.inputs[part.run.input]), part.examples)
        columns = bound.columns(part.run)
        tokens = token_axis(inputs)
        shape = batch_size(inputs), 0 if tokens is None else int(tokens.shape[1])
        at = None if columns is None else (torch.arange(len(columns)), columns)
        return Pass(inputs, [bound.edits[edit.name] for edit in part.run.edits], shape, at)


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass, with all that is decided about it.

    Args:
        parts: runs, or some of their examples, that it carries out.
        reads: what is read of them, for other runs or for the caller.
        wanted: whether their outputs are.
        way: how: what it starts from, where it starts and stops, what it keeps for others.
        refused: better ways, and why they are not taken.
        twins: runs that are equal to the only one in everything, so that they are done with it.
    """

    parts: tuple[Part, ...]
    reads: tuple[Read, ...] = ()
    wanted: bool = False
    way: Way = field(default_factory=WholeRun)
    refused: Mapping[str, str] = field(default_factory=dict)
    twins: tuple[Run, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs, in the order of the parts."""
        return tuple(part.run for part in self.parts)


@dataclass(frozen=True, eq=False)
class OutOfMemory:
    """The answer to a step for which there was no memory; nothing of it is left.

    Args:
        error: what was raised.
    """

    error: RuntimeError


class NotANumber:
    """The answer to a step of copies that share rows, and of which some came out as NaN; nothing of it is left."""


Reply = Any
"""What a planner is told of its step: what the pass leaves for others, `None` for nothing, or one of these two."""

Planner = Callable[[Bound], Generator[Step, Reply, None]]
"""Yields the steps of a plan, each once it was told what came of the one before. It decides, and touches no model."""


@checked
def one_by_one(bound: Bound) -> Generator[Step, Reply, None]:
    """Yield every run as a pass of its own, with nothing left out, after those that it reads: what a plan means.

    Args:
        bound: the plan.

    Raises:
        RuntimeError: there was no memory for a pass.

    >>> import torch
    >>> from align_transformers import Plan, Run, bind
    >>> plan = Plan((Run("base", "x"), Run("idle", "x")), ("base",))
    >>> steps = one_by_one(bind(torch.nn.Linear(2, 3), plan, {"x": torch.ones(1, 2)}, {}))
    >>> [run.name for step in steps for run in step.runs]
    ['base']
    """
    for run in bound.order:
        reply = yield Step((Part(run),), bound.reads_of(run), run.name in bound.plan.outputs)
        if isinstance(reply, OutOfMemory):
            raise reply.error

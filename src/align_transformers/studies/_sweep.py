"""The sweep that studies share: runs whose examples are the cells of a table, carried out part by part.

A study says which runs there are, which cells they are, and what their logits are worth. The sweep makes plans of
them, stores parts, goes on where a killed one was, tells how far it is, and returns a `Table`. `docs/new_study.md`
writes a study with it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._bar import HowFar, telling
from .._errors import SiteError, SpecError
from ..engine import Effect, Inputs, Outcome, Planner, batch_size, bind
from ..interventions import Intervention
from ..models import evaluating, find_slot
from ..models.detours import is_detoured
from ..models.fingerprint import digest, fingerprint
from ..plan import Logits, Plan, Run
from ..planners import execute
from ..sites import Site
from ..table import Table
from ._cell_run import CellRun
from ._made_with import made_with
from ._store import Store

_STORED = 2**11  # cells between two parts of a store: what is lost at most
_HELD = 2**13  # cells of a plan without one: what they read of other runs waits in memory
_CLEAN = 32  # a part has that many times the examples of the clean runs, which each part runs again
_BYTES = 2**27  # of logits that wait in a plan, where those of all tokens are wanted
_VOCABULARY = 2**17  # where the model does not tell


@dataclass(frozen=True, eq=False)
class Clean:
    """What came of the runs that cells are compared with.

    Args:
        logits: by name of the run, one line for each of its examples, float32.
        tokens: ids of the tokens that the columns are; `None` for the whole vocabulary.
        says: by name of the run the most probable token of each example; only of runs whose logits of all tokens were
            asked for.
    """

    logits: Mapping[str, Float[Tensor, "examples tokens"]]
    tokens: tuple[int, ...] | None
    says: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What came of the cells of one run.

    Args:
        of: the run and its cells.
        logits: one line for each cell, float32; the columns are those of the clean runs, or what the scorer kept.
        effects: what each edit of the run did, in their order; `changes` has a number for each cell.
    """

    of: CellRun
    logits: Float[Tensor, "cells kept"]
    effects: tuple[Effect, ...]

    @property
    def cells(self) -> tuple[Mapping[str, Any], ...]:
        """The columns that say which cell it is."""
        return self.of.cells


class Scorer(ABC):
    """What logits are worth. One is made as soon as all clean runs are in; unedited ones come before any cell."""

    def kept(self, logits: Float[Tensor, "cells tokens"]) -> Float[Tensor, "cells kept"]:
        """Return what `rows` needs of some lines of logits, which is all that waits for the end of a plan.

        Args:
            logits: some lines, float32; of which cells they are is not said.
        """
        return logits

    @abstractmethod
    def rows(self, found: Measurement) -> Iterable[Mapping[str, Any]]:
        """Yield what the table says of each cell, besides the columns that the cell has itself."""

    @abstractmethod
    def meta(self) -> Mapping[str, Any]:
        """Return JSON-able facts about the whole table."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """All that a sweep is but the model: it can be pickled if its parts can.

    Args:
        name: of the study.
        inputs: by name, as `bind` takes them.
        clean: runs that cells are compared with or read from; every part runs them again.
        runs: the runs of the cells.
        interventions: by the names that edits have for them.
        scorer: makes a `Scorer` of what the clean runs gave, or says what is wrong with it.
        logits: which ones are wanted of clean runs and cells; `answers_of` names clean runs.
        constants: by name, as `bind` takes them.
        facts: what an error about a store shall call by a name of its own. Model, inputs, runs, interventions and the
            scorer are told apart without.
    """

    name: str
    inputs: Mapping[str, Inputs]
    clean: tuple[Run, ...]
    runs: tuple[CellRun, ...]
    interventions: Mapping[str, Intervention]
    scorer: Callable[[Clean], Scorer]
    logits: Logits = field(default_factory=Logits)
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def table(
        self,
        model: nn.Module,
        *,
        store: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | bool | None = None,
        planner: Planner | None = None,
    ) -> Table:
        """Carry the sweep out, in eval mode.

        Args:
            model: the user's; it is not changed.
            store: a folder that parts are written to, each in one step. An equal sweep goes on where a killed one was.
            progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
            planner: as for `execute`.

        Returns:
            One row a cell, in the order of the runs: the columns of the cell, then those of the scorer.
            `meta["passes"]` counts the forward passes of each way.

        Raises:
            SpecError: the store holds another sweep, or something of this one cannot be told from others.
        """
        if store is not None and is_detoured(model, "forward"):
            raise SpecError("a store keeps what comes of the model without the edits that are applied to it here")
        with telling(self.name, progress) as tell, evaluating(model):
            kept = None if store is None else Store(store, self._facts(model))
            return self._table(model, kept, tell, planner)

    def _table(
        self,
        model: nn.Module,
        store: Store | None,
        progress: HowFar,
        planner: Planner | None,
    ) -> Table:
        rows: list[dict[str, Any]] = []
        meta: dict[str, Any] = {}
        passes: Counter[str] = Counter()
        total = sum(len(run) for run in self.runs)
        says: Mapping[str, Sequence[int]] = {}
        for number, runs in enumerate(self.parts(model, stored=store is not None)):
            begin, cells = len(rows), sum(len(run) for run in runs)

            def tell(done: int, begin: int = begin) -> None:
                if done:
                    progress(begin + done, total)

            part = None if store is None else store.load(number, cells)
            if part is None:
                part = self.part(model, runs, says, tell, planner)
                if store is not None:
                    store.save(number, part)
            else:
                tell(cells)
            rows += part.rows()
            meta, says = meta or dict(part.meta["whole"]), part.meta["says"]
            passes.update(part.meta["passes"])
        return Table.from_rows(rows, meta={**made_with(model), **meta, "passes": dict(passes)})

    def parts(self, model: nn.Module, *, stored: bool) -> Iterator[list[CellRun]]:
        """Yield the runs in lists, each to be carried out as one plan: always cut in the same way.

        Args:
            model: the user's.
            stored: what is done is to be stored now and then.
        """
        examples = sum(_count(run, self.inputs[run.input]) for run in self.clean)
        most = max(_STORED if stored else _HELD, _CLEAN * examples)
        if self.logits.tokens is None and not self.logits.answers_of:
            most = max(1, min(most, _BYTES // (4 * (vocabulary(model) or _VOCABULARY))))
        group: list[CellRun] = []
        size = 0
        for run in self.runs:
            begin = 0
            while begin < len(run):
                end = min(len(run), begin + most - size)
                group.append(run.part(begin, end))
                begin, size = end, size + end - begin
                if size == most:
                    yield group
                    group, size = [], 0
        if group:
            yield group

    @torch.no_grad()
    def part(
        self,
        model: nn.Module,
        runs: Sequence[CellRun],
        says: Mapping[str, Sequence[int]] | None = None,
        tell: Callable[[int], None] = lambda done: None,
        planner: Planner | None = None,
    ) -> Table:
        """Carry some of the runs out as one plan.

        Args:
            model: the user's.
            runs: of this sweep.
            says: the answers of the clean runs, as an earlier part had them in `meta["says"]`.
            tell: called after every pass with the number of cells that are done.
            planner: as for `execute`.

        Returns:
            Their rows; `meta` has the facts about the whole, the passes, and what the clean runs say.
        """
        known = {name: tuple(tokens) for name, tokens in (says or {}).items()}
        logits = self.logits
        if logits.answers_of and known:
            logits = replace(logits, answers_of=(), tokens=_each_once(known[name] for name in logits.answers_of))
        runs_of_cells = (run for one in runs for run in (*one.through, one.run))
        wanted = tuple(run.name for run in (*self.clean, *(one.run for one in runs)))
        plan = Plan((*self.clean, *runs_of_cells), wanted, logits)
        with evaluating(model, *self.interventions.values()):
            bound = bind(model, plan, self.inputs, self.interventions, self.constants)
            watch = _Watch({run.name: bound.count(run) for run in self.clean}, logits, known, self.scorer, tell)
            outcome = execute(bound, planner, ready=watch)
        scorer, clean = watch.scorer(), watch.clean()
        rows = [
            {**cell, **row}
            for found in _measurements(outcome, runs, watch)
            for cell, row in zip(found.cells, scorer.rows(found), strict=True)
        ]
        passes = Counter(passed.way for passed in outcome.passes)
        return Table.from_rows(rows, meta={"whole": scorer.meta(), "says": clean.says, "passes": passes})

    def _facts(self, model: nn.Module) -> dict[str, Any]:
        """Return what makes a sweep what it is, as plain data."""
        names = ("inputs", "clean", "runs", "interventions", "scorer", "logits", "constants")
        held = {**self.facts, **{name: getattr(self, name) for name in names}}
        return {"model": fingerprint(model), **{name: digest(value, f"the {name}") for name, value in held.items()}}


class _Watch:
    """Looks at what passes give as they give it, and makes the scorer as soon as the clean runs are in."""

    def __init__(
        self,
        examples: Mapping[str, int],
        logits: Logits,
        says: Mapping[str, tuple[int, ...]],
        make: Callable[[Clean], Scorer],
        tell: Callable[[int], None],
    ) -> None:
        self._whole: set[str] = set()  # runs of cells of which something came before the last clean run
        self._examples, self._logits, self._says, self._make, self._tell = examples, logits, says, make, tell
        self._seen: dict[str, list[Tensor]] = {name: [] for name in examples}
        self._made: tuple[Clean, Scorer] | None = None
        self._done = 0

    def __call__(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, rows in outputs.items():
            if name in self._seen:
                self._seen[name].append(rows)
            else:
                self._done += len(rows)
        if self._made is None and all(sum(map(len, self._seen[name])) == self._examples[name] for name in self._seen):
            clean = self._clean({name: torch.cat(rows) for name, rows in self._seen.items()})
            self._made = clean, self._make(clean)
        self._tell(self._done)
        cells = outputs.keys() - self._seen.keys()
        if self._made is None:
            self._whole |= cells
        return {**outputs, **{name: self._kept(outputs[name]) for name in cells - self._whole}}

    def kept(self, name: str, logits: Tensor) -> Tensor:
        """Return what the scorer is to see of a run of cells: of what waited for a clean run all is there yet."""
        return (self._kept(logits) if name in self._whole else logits).float()

    def _kept(self, logits: Tensor) -> Tensor:
        scorer = self.scorer()
        return logits if type(scorer).kept is Scorer.kept else scorer.kept(logits.float())

    def scorer(self) -> Scorer:
        """Return the scorer."""
        assert self._made is not None
        return self._made[1]

    def clean(self) -> Clean:
        """Return what the clean runs gave."""
        assert self._made is not None
        return self._made[0]

    def _clean(self, outputs: Mapping[str, Tensor]) -> Clean:
        tokens, says, answering = self._logits.tokens, self._says, self._logits.answers_of
        if tokens is None:
            says = {name: tuple(outputs[name].argmax(-1).tolist()) for name in answering or outputs}
        if answering:
            tokens = _each_once(says[name] for name in answering)
            outputs = {**outputs, **{name: outputs[name][:, list(tokens)] for name in answering}}
        return Clean({name: logits.float() for name, logits in outputs.items()}, tokens, says)


def _measurements(outcome: Outcome, runs: Sequence[CellRun], watch: _Watch) -> Iterator[Measurement]:
    effects = {effect.name: effect for effect in outcome.effects}
    for one in runs:
        logits = watch.kept(one.run.name, outcome.outputs[one.run.name])
        yield Measurement(one, logits, tuple(effects[edit.name] for edit in one.run.edits))


def _count(run: Run, given: Inputs) -> int:
    return batch_size(given) if run.examples is None else len(run.examples)


def _each_once(tokens: Iterable[Iterable[int]]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(token for several in tokens for token in several))


def vocabulary(model: nn.Module) -> int | None:
    """Return how many tokens a model has logits for; `None` where it does not tell."""
    try:
        return find_slot(model, Site("logits")).width
    except SiteError:
        return None

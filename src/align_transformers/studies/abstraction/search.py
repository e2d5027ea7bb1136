"""A search: all hypotheses fitted and scored, one of each set of variables chosen, controls beside it."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..._errors import SpecError
from ...learning.losses import Measure, cross_entropy
from ...learning.scores import Interval
from ...learning.settings import Settings
from ...models import evaluating
from ...models.fingerprint import digest, fingerprint
from .._made_with import made_with
from .controls import permuted_labels, reinitialised
from .finding import Finding, Hits, best_of_each
from .fitting import Learner, Lesson, Stored, advance, learner_of
from .flags import Checks
from .hypothesis import Candidate, Hypothesis
from .methods import Dictionaries, Methods, hard, learns, random_like
from .regions import regions_of
from .result import AlignmentResult
from .runner import Runner, hits, measured
from .signatures import signatures
from .statistics import entity_bootstrap
from .task import Container, CounterfactualPairs, Task

SearchOrder = Literal["all", "halving", "signatures"]
Control = Literal["random", "full", "permuted", "reinitialised"]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""What an alignment is compared with."""

_LOOKED_AT = 64
"""CounterfactualPairs on which a random subspace, and the effect of a swap, is measured."""

_AUDITED = 2
"""A tenth of what is not nominated, and at least so many, is fitted all the same: to see what is missed."""

_LEAST_CHANGED = 0.1
"""Share of the pairs that permuting entities has to give another label, or there is no control in it."""

_IN_TRAINING = 256
"""CounterfactualPairs of training on which a fitted hypothesis is measured, too."""


@dataclass(frozen=True, eq=False)
class Search:
    """All that a search is; the arguments are those of `align`."""

    task: Task
    facts: Mapping[str, Mapping[str, Any]]
    hypotheses: tuple[Hypothesis, ...]
    methods: Methods
    settings: Settings
    loss: Measure | Literal["all", "answers"]
    batch_size: int
    order: SearchOrder
    controls: tuple[Control, ...]
    draws: int
    only_solved: bool
    random_model: nn.Module | Sequence[nn.Module] | None
    networks: int
    memory: int
    resamples: int
    confidence: float
    seed: int
    store: str | os.PathLike[str] | None
    kept: Mapping[str, float] = field(default_factory=dict)
    passes: Counter[str] = field(default_factory=Counter)

    def result(self, tell: Callable[[int, int], None]) -> AlignmentResult:
        """Carry the search out.

        Raises:
            SpecError: the network solves too little, or no pair is left for some variables.
        """
        started = time.perf_counter()
        solved = self.task.solved()
        work = replace(self, task=self._solved(solved)) if self.only_solved else self
        before, after = (sum(map(len, one.task.parts.values())) for one in (self, work))
        work = replace(work, kept={"base_accuracy": float(solved.mean()), "kept": after / before})
        findings = work._carried_out(tell)
        meta = {
            **made_with(self.task.model),
            "study": "align",
            "seconds": time.perf_counter() - started,
            "passes": dict(self.passes),
        }
        return AlignmentResult.of(work, findings, meta)

    def _solved(self, solved: Bool[np.ndarray, " inputs"]) -> Task:
        """Return the task without the pairs that the network itself answers wrongly."""
        parts = {}
        for name, pairs in self.task.parts.items():
            right = solved[pairs.base]
            for numbers in pairs.sources.values():
                right = right & solved[numbers]
            parts[name] = pairs.take(np.flatnonzero(right))
            if not len(parts[name]):
                raise SpecError(
                    f"the network solves {solved.mean():.0%} of the inputs, and both sides of none of the {len(pairs)} "
                    f"pairs of the part {name!r}: train it, or only_solved=False"
                )
        return replace(self.task, parts=parts)

    def interval(self, variables: Sequence[str], pairs: CounterfactualPairs, found: Hits) -> Interval:
        """Return the mean of numbers of the first pairs of some variables, with its interval over entities."""
        rows = pairs.of(variables)[: len(found)]
        entities = pairs.entities[0][rows], pairs.source_entities(variables)[rows]
        return entity_bootstrap(found, *entities, resamples=self.resamples, confidence=self.confidence, seed=self.seed)

    @property
    def lesson(self) -> Lesson:
        """How candidates are fitted."""
        if self.loss == "answers":
            labels = [pairs.labels for pairs in self.task.parts.values()] + [self.task.writer(self._possible())]
            tokens = torch.cat(labels).unique().tolist()
            return Lesson(self.settings, self.batch_size, cross_entropy, tuple(tokens))
        loss = cross_entropy if self.loss == "all" else self.loss
        return Lesson(self.settings, self.batch_size, loss)

    def _possible(self) -> list[Any]:
        return list(dict.fromkeys(self.task.values(self.task.output)))

    # --- fits ---------------------------------------------------------------------------------------------------------

    def _carried_out(self, tell: Callable[[int, int], None]) -> list[Finding]:
        task, lesson = self.task, self.lesson
        runner, train = Runner(task, self.memory, self.passes), task.parts["train"]
        task.read(self._containers())
        findings = [self._begun(one) for one in self.hypotheses]
        learners = {
            number: learner_of(one.candidate, train, lesson)
            for number, one in enumerate(findings)
            if one.candidate is not None and learns(one.candidate)
        }
        if self.order == "signatures":
            self._nominated(findings, learners, runner)
        counter = _StepCounter(sum(len(one.batches) for one in learners.values()), tell)
        self._fit(findings, learners, runner, lesson, counter)
        fitted = [one for one in findings if one.status == "fitted"]
        self._score(fitted, runner)
        self._compare(fitted, runner, lesson, counter)
        doubts, answers = Checks(self, runner), task.answers()
        for one in best_of_each(fitted, methods=False):
            assert one.candidate is not None
            one.regions = regions_of(runner, hard(one.candidate), self.seed)
            one.self_swap = self._still(one, runner, answers)
        for one in best_of_each(fitted):
            one.checks = doubts.of(one)
        return findings

    def _begun(self, hypothesis: Hypothesis) -> Finding:
        """Return a hypothesis with a fresh intervention, if base and source differ where it is."""
        pairs = self.task.parts["train"]
        for part, of in self.task.parts.items():
            if not len(of.of(hypothesis.variables)):
                names = ", ".join(hypothesis.variables)
                raise SpecError(f"the part {part!r} has no pair in which {names} is interchanged and nothing else")
        if not any(self.task.differs(one.container, pairs, name) for one in hypothesis.alone for name in one.variables):
            return Finding(hypothesis, status="skipped")
        width = sum(int(np.prod(self.task.width(container))) for container in hypothesis.containers)
        return Finding(hypothesis, self.methods.candidate(self.task, hypothesis), width)

    def _fit(
        self,
        findings: Sequence[Finding],
        learners: dict[int, Learner],
        runner: Runner,
        lesson: Lesson,
        counter: _StepCounter,
    ) -> None:
        """Fit all learners, or those that the order of the search leaves."""
        train = self.task.parts["train"]
        alive = dict(learners)
        for stage, until in enumerate(self._rungs(learners)):
            advance(
                list(alive.values()),
                runner,
                train,
                lesson,
                until=until,
                store=self._stored(f"fits-{stage}"),
                tell=counter,
            )
            for number, one in alive.items():
                findings[number].steps = len(one.losses)
            if until is not None:
                for number in _worse_half(alive):
                    findings[number].status = "dropped"
                    del alive[number]

    def _nominated(self, findings: Sequence[Finding], learners: dict[int, Learner], runner: Runner) -> None:
        """Leave the learners whose containers are nominated by their effects, and a sample of the others."""
        containers = list(
            dict.fromkeys(place for number in learners for place in findings[number].hypothesis.containers)
        )
        names = list(dict.fromkeys(name for one in findings for name in one.hypothesis.variables))
        if not containers:
            return
        found = signatures(self.task, runner, self.methods, containers, names, "validation")
        others = [number for number in learners if not found.nominates(findings[number].hypothesis)]
        order = np.random.default_rng([self.seed, 2]).permutation(len(others))
        audited = {others[place] for place in order[: max(_AUDITED, len(others) // 10)]}
        for number in others:
            if number in audited:
                findings[number].audited = True
            else:
                findings[number].status = "dropped"
                del learners[number]

    def _rungs(self, learners: Mapping[int, Learner]) -> list[int | None]:
        """Return after how many steps the worse half is dropped; at last, all steps."""
        steps = max((len(one.batches) for one in learners.values()), default=0)
        if self.order != "halving" or steps < 8:
            return [None]
        first = max(4, steps // 4)
        return [first, max(first + 1, steps // 2), None]

    def _stored(self, stage: str) -> Stored | None:
        return None if self.store is None else Stored(Path(self.store), stage, self._identity)

    def _containers(self) -> list[Container]:
        return list(dict.fromkeys(container for one in self.hypotheses for container in one.containers))

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Return what makes a search what it is, as plain data."""
        held = {
            "inputs": self.task.inputs,
            "pairs": [(part, pairs.labels, pairs.base, dict(pairs.sources)) for part, pairs in self.task.parts.items()],
            "methods": dict(self.methods.asked),
            "dictionaries": _by_name(self.methods.dictionaries),
            "loss": self.loss,
            "places": [self.task.rows(container) for container in self._containers()],
        }
        told = {name: digest(value, f"the {name}") for name, value in held.items()}
        plain = {name: getattr(self, name) for name in ("batch_size", "memory", "seed", "order")}
        return {"model": fingerprint(self.task.model), **told, **plain, "settings": self.settings.to_dict()}

    # --- scores -------------------------------------------------------------------------------------------------------

    def _score(self, fitted: Sequence[Finding], runner: Runner) -> None:
        """Measure what was fitted on each part; masks hard."""
        candidates = [hard(one.candidate) for one in fitted if one.candidate is not None]
        for part, pairs in self.task.parts.items():
            most = _IN_TRAINING if part == "train" else None
            for one, found in zip(fitted, hits(runner, candidates, pairs, most), strict=True):
                one.hits[part] = found
        soft = [one for one, hard in zip(fitted, candidates, strict=True) if hard is not one.candidate]
        measured = hits(runner, [one.candidate for one in soft if one.candidate], self.task.parts["test"])
        for one, found in zip(soft, measured, strict=True):
            one.soft = found

    def _compare(self, fitted: Sequence[Finding], runner: Runner, lesson: Lesson, counter: _StepCounter) -> None:
        """Measure the controls."""
        test = self.task.parts["test"]
        if "full" in self.controls:
            alone = [one for one in fitted if all(len(at.variables) == 1 for at in one.hypothesis.alone)]
            whole = dict.fromkeys(one.hypothesis.whole() for one in alone)
            candidates = [self.methods.candidate(self.task, one) for one in whole]
            found = dict(zip(whole, hits(runner, candidates, test), strict=True))
            for one in alone:
                one.full = found[one.hypothesis.whole()]
        if "random" in self.controls:
            drawn = [
                (one, like)
                for one in fitted
                for draw in range(self.draws)
                if one.candidate is not None and (like := random_like(hard(one.candidate), self.seed + 1 + draw))
            ]
            found_random = hits(runner, [like for _, like in drawn], test, _LOOKED_AT)
            for (one, _), rows in zip(drawn, found_random, strict=True):
                one.random.append(float(rows.mean()))
                one.first = float(one.hits["test"][:_LOOKED_AT].mean())
        best = best_of_each(fitted)
        if "permuted" in self.controls:
            self._by_heart([one for one in best if one.candidate and learns(one.candidate)], runner, lesson, counter)
        if "reinitialised" in self.controls:
            given = self.random_model
            copies = (reinitialised(self.task.model, self.seed + 101 * number) for number in range(self.networks))
            for number, model in enumerate([given] if isinstance(given, nn.Module) else given or copies):
                self._in_another_network(best, model, f"reinitialised{f'-{number}' * (number > 0)}", lesson, counter)

    def _still(self, one: Finding, runner: Runner, answers: Tensor) -> float:
        """Return in which share of the test pairs a swap with the base itself leaves the answer as it is."""
        assert one.candidate is not None
        test = self.task.parts["test"]
        still = replace(test, sources=dict.fromkeys(test.sources, test.base))
        rows = test.of(one.hypothesis.variables)
        (said,) = measured(runner, [hard(one.candidate)], still, lambda _: rows, lambda logits: logits.argmax(-1))
        return float((said == answers[test.base[rows]]).double().mean())

    def _by_heart(self, best: Sequence[Finding], runner: Runner, lesson: Lesson, counter: _StepCounter) -> None:
        """Fit to labels permuted by entity, where they are other ones: an entity need not tell the variable."""
        pairs = permuted_labels(self.task, "train", self.seed)
        changed = (pairs.labels != self.task.parts["train"].labels).double().mean()
        if changed < _LEAST_CHANGED:
            return
        again = self._fitted_again([one.hypothesis for one in best], runner, pairs, lesson, "permuted", counter)
        for one, rows in zip(best, hits(runner, again, pairs, _IN_TRAINING), strict=True):
            one.by_heart, one.permuted = rows, pairs

    def _in_another_network(
        self, best: Sequence[Finding], model: nn.Module, stage: str, lesson: Lesson, counter: _StepCounter
    ) -> None:
        """Fit the same in a network that was never trained."""
        task = self.task.with_model(model)
        runner, train = Runner(task, self.memory, self.passes), task.parts["train"]
        hypotheses, other = [one.hypothesis for one in best], replace(self, task=task)
        with evaluating(model):
            again = other._fitted_again(hypotheses, runner, train, lesson, stage, counter)
            for part in ("train", "test"):
                most = _IN_TRAINING if part == "train" else None
                found = hits(runner, [hard(one) for one in again], task.parts[part], most)
                for one, rows in zip(best, found, strict=True):
                    one.again.setdefault(part, []).append(rows)

    def _fitted_again(
        self,
        hypotheses: Sequence[Hypothesis],
        runner: Runner,
        pairs: CounterfactualPairs,
        lesson: Lesson,
        stage: str,
        counter: _StepCounter,
    ) -> list[Candidate]:
        """Return candidates for the same hypotheses, fitted to something else."""
        candidates = [self.methods.candidate(self.task, one) for one in hypotheses]
        learners = [learner_of(one, pairs, lesson) for one in candidates if learns(one)]
        counter.total += sum(len(one.batches) for one in learners)
        advance(learners, runner, pairs, lesson, store=self._stored(stage), tell=counter)
        return candidates


class _StepCounter:
    """Counts steps, and tells of them."""

    def __init__(self, total: int, tell: Callable[[int, int], None]) -> None:
        self.total, self._tell, self._done = total, tell, 0

    def __call__(self, steps: int) -> None:
        self._done += steps
        self._tell(self._done, self.total)


def _by_name(dictionaries: Dictionaries | None) -> Any:
    """Return dictionaries as data that a digest can be made of."""
    if isinstance(dictionaries, Mapping):
        return {str(site): one.state_dict() for site, one in dictionaries.items()}
    return None if dictionaries is None else dictionaries.state_dict()


def _worse_half(alive: Mapping[int, Learner]) -> list[int]:
    """Return which learners are worse than half of those of the same variables, place, method and rank; never all."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, one in alive.items():
        hypothesis = one.candidate.hypothesis
        places = tuple(container.place for container in hypothesis.containers)
        key = hypothesis.variables, places, hypothesis.method, hypothesis.rank, hypothesis.seed
        groups[key].append(number)
    worse = []
    for numbers in groups.values():
        ordered = sorted(numbers, key=lambda number: float(np.mean(alive[number].losses[-2:])))
        worse += ordered[max(1, (len(ordered) + 1) // 2) :]
    return worse

"""Both planners on one case, what they disagree about, and the smallest part of it about which they still do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from tests.fuzz.draw import Case
from tests.fuzz.models import exact, model_of
from torch import Tensor

from align_transformers import AlignError, Bound, Outcome, bind, execute, one_by_one
from align_transformers.engine.step import OutOfMemory, Step
from align_transformers.fast.budget import TIMES_FOR_ONE
from align_transformers.fast.planner import Decisions, halves, tokens_for
from align_transformers.fast.trial import trials_of

TOLERANCE = 1e-5
"""In float32, of the largest number of its kind: rows are summed in another order where passes are merged."""

TIMES = 4.0
"""In half precision `planned` may be so many times further from the truth than `one_by_one` is."""


@dataclass
class Log:
    """What a planner was seen to do.

    Args:
        steps: those that were run.
        refused: how many there was said to be no memory for.
    """

    steps: list[Step]
    refused: int = 0

    def counts(self) -> Counter[str]:
        """Return how often everything happened that is to be tried."""
        found: Counter[str] = Counter()
        for step in self.steps:
            found[step.way.name] += 1
            found["twins"] += len(step.twins)
            found["parts"] += sum(part.lines is not None for part in step.parts)
            origin = getattr(step.way, "origin", None)
            found["inherited"] += 0 if origin is None else sum(map(len, origin.inherited))
            found["joint"] += len(step.parts) > 1
        found["no memory"] += self.refused
        return found


def planner_of(case: Case, log: Log) -> Any:
    """Return the planner of a case, which notes what it does."""

    def planner(bound: Bound) -> Iterator[Step]:
        room = tokens_for if case.most is None else lambda states: case.most / TIMES_FOR_ONE
        steps, random = Decisions(bound, trials_of(bound.model), most=room).steps(), Random(case.refusals)
        step = next(steps, None)
        while step is not None:
            if case.refusals is not None and random.random() < 0.6 and halves(bound, step):
                log.refused += 1
                reply: Any = OutOfMemory(RuntimeError("no memory, it is said"))
            else:
                log.steps.append(step)
                reply = yield step
            try:
                step = steps.send(reply)
            except StopIteration:
                return

    return planner


def problems(case: Case, log: Log) -> list[str]:
    """Return what is different if a case is run by both planners; nothing if all is well."""
    model = model_of(case.architecture, case.dtype)
    slow = _run(case, model, one_by_one)
    fast = _run(case, model, planner_of(case, log))
    if isinstance(slow, Exception) or isinstance(fast, Exception):
        said = [repr(one) if isinstance(one, Exception) else "has an outcome" for one in (slow, fast)]
        return [] if type(slow) is type(fast) else [f"{said[0]} one by one, but planned {said[1]}"]
    found = list(_structure(slow, fast, log))
    if not found:
        found = list(_numbers(case, slow, fast, None if case.dtype == "float32" else _truth(case)))
    return found


def _run(case: Case, model: Any, planner: Any) -> Any:
    try:
        with torch.no_grad():
            bound = bind(model, case.plan, case.inputs, case.interventions(), case.constants)
            return execute(bound, planner)
    except Exception as error:  # the other planner has to say the same
        return error


def valid(case: Case) -> bool:
    """Whether a case can be bound and run."""
    return not isinstance(_run(case, model_of(case.architecture, case.dtype), one_by_one), Exception)


def _truth(case: Case) -> Any:
    """Return what comes of a case in double precision, for the same weights and inputs."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    inputs = {name: {key: wide(v) for key, v in given.items()} for name, given in case.inputs.items()}
    constants = {name: wide(value) for name, value in case.constants.items()}
    case = replace(case, inputs=inputs, constants=constants)
    return _run(case, exact(case.architecture, case.dtype), one_by_one)


# --- what has to be the same ------------------------------------------------------------------------------------------


def _structure(slow: Outcome, fast: Outcome, log: Log) -> Iterator[str]:
    """Yield what differs in what was done, and in its shapes."""
    for ours, theirs in zip(slow.effects, fast.effects, strict=True):
        counted = [(e.name, e.site, e.fired, e.rows, e.positions, len(e.changes)) for e in (ours, theirs)]
        if counted[0] != counted[1]:
            yield f"effect {counted[0]} one by one, planned {counted[1]}"
    done: Counter[tuple[str, int]] = Counter()
    for step in log.steps:
        for part in step.parts:
            lines = range(fast.bound.count(part.run)) if part.lines is None else part.lines
            done.update((part.run.name, line) for line in lines)
        done.update((run.name, line) for run in step.twins for line in range(fast.bound.count(run)))
    needed = Counter((run.name, line) for run in slow.bound.order for line in range(slow.bound.count(run)))
    if done != needed:
        yield f"examples that are not done just once: {(done - needed) + (needed - done)}"
    for (name, one), (other_name, other) in zip(_tensors(slow), _tensors(fast), strict=True):
        if name != other_name or one.shape != other.shape or one.dtype != other.dtype:
            yield f"{name} is {tuple(one.shape)} {one.dtype}, {other_name} {tuple(other.shape)} {other.dtype}"


def _numbers(case: Case, slow: Outcome, fast: Outcome, truth: Any) -> Iterator[str]:
    """Yield where numbers are further apart than rounding explains."""
    true = dict(_tensors(truth)) if isinstance(truth, Outcome) else {}
    scales: Counter[str] = Counter()
    for name, one in _tensors(slow):
        largest = float(one.float().nan_to_num().abs().max()) if one.numel() else 0.0
        scales[name.split()[0]] = max(scales[name.split()[0]], largest)
    noise: dict[str, float] = {}
    for name, one in _tensors(slow):
        if name in true:
            kind = name.split()[0]
            noise[kind] = max(noise.get(kind, 0.0), _gap(one, true[name]))
    for (name, one), (_, other) in zip(_tensors(slow), _tensors(fast), strict=True):
        kind = name.split()[0]
        if case.dtype == "float32":
            gap, allowed = _gap(one, other), TOLERANCE * scales[kind]
        else:
            if not true:
                return
            gap = _gap(other, true[name])
            allowed = TIMES * max(noise[kind], torch.finfo(torch.bfloat16).eps * scales[kind])
        if not gap <= allowed:
            yield f"{name} is off by {gap:.2e}, {allowed:.2e} is allowed"


def _tensors(found: Outcome) -> Iterator[tuple[str, Tensor]]:
    """Yield all numbers of an outcome, each with the kind of thing and its name."""
    for name, output in found.outputs.items():
        yield f"logits {name}", output if isinstance(output, Tensor) else output.logits
    for number, value in enumerate(found.values.values()):
        yield f"value{number} ", value
    for name in sorted(found.collected):
        for number, (value, real) in enumerate(
            zip(found.collected[name].values, found.collected[name].real, strict=True)
        ):
            yield f"collected-{name} {number}", value
            yield f"real {name} {number}", real
    for effect in found.effects:
        yield f"change-{effect.name} ", torch.tensor([effect.change, *effect.changes])


def _gap(one: Tensor, other: Tensor) -> float:
    """Return the largest difference; infinite where only one of the two is a number."""
    one, other = one.double(), other.double()
    if not bool((one.isnan() == other.isnan()).all()):
        return math.inf
    return float((one - other).nan_to_num(0.0).abs().max()) if one.numel() else 0.0


# --- the smallest case ------------------------------------------------------------------------------------------------


def shrunk(case: Case) -> Case:
    """Return the case with as much left out as still leaves a problem."""
    while True:
        smaller = next((one for one in _smaller(case) if _fails(one)), None)
        if smaller is None:
            return case
        case = smaller


def _fails(case: Case) -> bool:
    try:
        return valid(case) and bool(problems(case, Log([])))
    except AlignError:
        return False


def _smaller(case: Case) -> Iterator[Case]:
    plan = case.plan
    for name in plan.outputs:
        yield from _with(case, outputs=tuple(one for one in plan.outputs if one != name))
    for value in plan.values:
        yield from _with(case, values=tuple(one for one in plan.values if one != value))
    for run in plan.runs:
        yield from _with(case, runs=tuple(one for one in plan.runs if one is not run))
        for edit in run.edits:
            less = replace(run, edits=tuple(one for one in run.edits if one is not edit))
            yield from _with(case, runs=tuple(less if one is run else one for one in plan.runs))
    if case.most is not None:
        yield replace(case, most=None)
    if case.refusals is not None:
        yield replace(case, refusals=None)
    if plan.logits is not None:
        for name, value in {"tokens": None, "at": (), "answers_of": ()}.items():
            if getattr(plan.logits, name) != value:
                yield from _with(case, logits=replace(plan.logits, **{name: value}))
    for name, given in case.inputs.items():
        for key in given.keys() - {"input_ids", "inputs_embeds", "attention_mask", "decoder_input_ids"}:
            less = {other: value for other, value in given.items() if other != key}
            yield replace(case, inputs={**case.inputs, name: less})


def _with(case: Case, **changed: Any) -> Iterator[Case]:
    try:
        yield replace(case, plan=replace(case.plan, **changed))
    except AlignError:
        return


def shown(case: Case) -> str:
    """Return a case as text that can be pasted into a test."""
    inputs: Mapping[str, Any] = {
        name: {k: v.tolist() if isinstance(v, Tensor) and k != "inputs_embeds" else type(v) for k, v in given.items()}
        for name, given in case.inputs.items()
    }
    runs = "\n".join(
        f"  {run.name!r} of {run.input!r}, examples {run.examples}:" + "".join(f"\n    {_said(e)}" for e in run.edits)
        for run in case.plan.runs
    )
    rest = f"outputs {case.plan.outputs}, {case.plan.logits}, values {case.plan.values}"
    return f"{case.architecture} {case.dtype}, most {case.most}, refusals {case.refusals}\n{runs}\n  {rest}\n  {inputs}"


def _said(edit: Any) -> str:
    at, source = edit.positions, edit.source
    if edit.reads:
        source = ", ".join(
            f"{read.run!r} {read.site} {read.positions.rows} {read.positions.heads} of examples {read.examples}"
            for read in edit.reads
        )
    parts = "" if edit.subspace is None else f" parts {edit.subspace}"
    return f"{edit.name}: {edit.intervention} at {edit.site} {at.rows} {at.heads}{parts} from {source}"

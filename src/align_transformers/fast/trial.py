"""What partial passes of a model can do: tried once on a dummy input, against passes from the first block on.

A partial pass rests on how a model hands things from block to block, which no description tells for sure. So it is
measured: edits of an early and of a middle block must give the logits of full passes, in the way that is in question.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..engine import Bound, batch_size, bind, execute, logits_stack, one_by_one, token_axis
from ..engine.step import Part, Planner, Reply, Step
from ..interventions import FunctionIntervention
from ..models import ComponentMap, evaluating
from ..models.dummy import dummy_inputs
from ..models.quiet import quietly
from ..models.resolve import known_map
from ..plan import Edit, Logits, Plan, Run
from ..positions import Positions
from ..sites import Site
from .planner import Decisions
from .ways import Full, Trials

WAYS = ("partial", "together", "packed", "shortened")
"""What is tried, each resting on those before it."""

_TOLERANCE = 1e-3
"""Of the largest logit, in full precision."""

_ROUNDING = 1e-5
"""Of the largest logit, in full precision: what products of other shapes may differ by."""

_TIMES = 4
"""So many times the difference that rounding makes is still rounding."""


@final
@dataclass(frozen=True)
class Assumed(Trials):
    """Trials that are taken to have gone well, up to one way and no further; `""` for none."""

    best: str = ""
    narrow: bool = False

    def why_not(self, way: str) -> str:
        """Return why a way is not to be taken."""
        return "" if self.best and WAYS.index(way) <= WAYS.index(self.best) else "not on trial"

    def tokens(self) -> bool:
        """Whether some logits are computed without the others."""
        return self.narrow


@dataclass(eq=False)
class _TrialResults:
    """What came of the trials of one model.

    Args:
        reasons: for each way that was tried why it is not to be taken; empty if it is.
        narrow: whether the logits of some tokens were right without the others.
        expected: the logits of full passes.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    narrow: bool = False
    expected: dict[str, Tensor] | str | None = None


_results: WeakKeyDictionary[ComponentMap, _TrialResults] = WeakKeyDictionary()


def trials_of(model: nn.Module) -> Trials:
    """Return what partial passes of a model can do: for each map of its components found out once, when it is asked.

    Args:
        model: to be tried, in eval mode whatever mode it is in.
    """
    found = known_map(model)
    return Assumed() if found is None else Measured(model, _results.setdefault(found, _TrialResults()))


@final
class Measured(Trials):
    """Trials that are made when they are first asked for.

    Args:
        model: to be tried; only this object holds on to it.
        results: what came of it; remembered with the map of the model's components.
    """

    def __init__(self, model: nn.Module, results: _TrialResults) -> None:
        self._model = model
        self._results = results

    def why_not(self, way: str) -> str:
        """Return why passes cannot be run in one of `WAYS`; empty if they can."""
        if way not in self._results.reasons:
            with torch.no_grad(), evaluating(self._model), quietly():
                self._results.reasons[way] = self._try(way)
        return self._results.reasons[way]

    def tokens(self) -> bool:
        """Whether the logits of some tokens can be had without the others."""
        return self._results.narrow

    def _try(self, way: str) -> str:
        """Try a way, with the logits of some tokens only; where that goes wrong, with all."""
        bound, results = _trial(self._model), self._results
        if isinstance(bound, str):
            return bound
        if way == "together" and _rows_matter(bound):
            return "other rows of a batch change a row, as scales or experts that all rows share do"
        if results.expected is None:
            results.expected = _outcome(bound, one_by_one)
        narrow = _differs(bound, Assumed(way, narrow=True), results.expected)
        results.narrow = results.narrow or not narrow
        return narrow and _differs(bound, Assumed(way), results.expected)


def _trial(model: nn.Module) -> Bound | str:
    """Return a plan with edits at two depths of a dummy input, or why there is none."""
    found = known_map(model)
    stack = "" if found is not None and "" in found.stacks else "decoder"
    inputs = next(iter(dummy_inputs(model)), None)
    tokens = None if inputs is None else token_axis(inputs, logits_stack(inputs))
    if found is None or inputs is None or tokens is None or tokens.shape[1] < 3 or stack not in found.stacks:
        return "there is no dummy text to try it on"
    name = f"{stack}.block_output" if stack else "block_output"
    batch = batch_size(inputs)
    runs = [Run("base", "base")]
    for layer in sorted({0, (len(found.stacks[stack]) - 1) // 2}):
        at = Positions(((1,),) * batch + ((int(tokens.shape[1]) - 1,),))
        edit = Edit(f"edit {layer}", Site(name, layer), "shift", at)
        runs.append(Run(f"run {layer}", "base", (edit,), (*range(batch), 0)))
    plan = Plan(tuple(runs), tuple(run.name for run in runs), Logits((1, 0, 2)))
    return bind(model, plan, {"base": inputs}, {"shift": FunctionIntervention(_shift)})


def _shift(base: Tensor) -> Tensor:
    """Return something else than the base, of the same size."""
    return base.roll(1, -1) * 1.5


def _rows_matter(bound: Bound) -> bool:
    """Whether a row depends on what other rows hold: scales of whole tensors do that, and experts with limited room.

    Args:
        bound: a trial; of its text, the rows are run as they are, and with another row that holds extremes.
    """
    found = []
    edit = next(run for run in bound.order if run.edits).edits[0]
    inputs, examples = bound.inputs["base"], (*range(batch_size(bound.inputs["base"])), 0)
    for other in (_alike, _extreme):
        run = Run("run", "base", (Edit("edit", edit.site, "other"),), examples)
        plan = Plan((run,), ("run",), Logits((1, 0, 2)))
        found.append(
            _outcome(bind(bound.model, plan, {"base": inputs}, {"other": FunctionIntervention(other)}), one_by_one)
        )
    plain, beside = found
    if isinstance(plain, str) or isinstance(beside, str):
        return False  # no pass of this model can be tried: the trial itself says so
    rows, others = plain["run"][:-1].float(), beside["run"][:-1].float()
    gap = float((rows - others).abs().max())
    return not gap <= max(_ROUNDING, _TIMES * torch.finfo(plain["run"].dtype).eps) * float(rows.abs().max())


def _alike(base: Tensor) -> Tensor:
    """Return the base."""
    return base


def _extreme(base: Tensor) -> Tensor:
    """Return the base with a last row of which one channel is as large as all others together, also behind a norm."""
    last = torch.zeros_like(base[-1:])
    last[..., 0] = 30 * base.abs().amax()
    return torch.cat([base[:-1], last])


def _outcome(bound: Bound, planner: Planner) -> dict[str, Tensor] | str:
    try:
        outputs: dict[str, Tensor] = dict(execute(bound, planner).outputs)
    except Exception as error:  # whatever a model says to being run in part
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return outputs


def _differs(bound: Bound, trials: Trials, expected: Mapping[str, Tensor] | str) -> str:
    """Return how a trial goes wrong; empty if it gives what full passes give."""
    found = _outcome(bound, lambda plan: Decisions(plan, trials).steps())
    if isinstance(found, str) or isinstance(expected, str):
        return f"a trial failed: {found if isinstance(found, str) else expected}"
    scale = max(float(value.abs().max()) for value in expected.values())
    worst = _gap(found, expected)
    return (
        ""
        if worst <= _allowed(bound, expected, scale)
        else (f"a trial gave other logits, by {worst / scale:.1e} of the largest")
    )


def _gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference; infinite where something is not a number."""
    worst = max(float((found[name].float() - value.float()).abs().max()) for name, value in expected.items())
    return worst if worst == worst else float("inf")


def _allowed(bound: Bound, expected: Mapping[str, Tensor], scale: float) -> float:
    """Return how far logits may be off: by what it does to a model of half precision to run examples apart.

    Never so far, though, that an edit which was not made would pass.
    """
    dtype = expected["base"].dtype
    allowed = _TOLERANCE * scale
    if dtype in (torch.float16, torch.bfloat16):
        alone = _outcome(bound, _apart)
        noise = float("inf") if isinstance(alone, str) else _gap(alone, expected)
        allowed = max(_TIMES * torch.finfo(dtype).eps * scale, _TIMES * noise)
    plain = expected["base"]
    effects = (expected[run.name] - plain[list(run.examples or ())] for run in bound.order if run.edits)
    return min(allowed, min(float(effect.abs().max()) for effect in effects) / _TIMES)


def _apart(bound: Bound) -> Generator[Step, Reply, None]:
    """Yield a full pass for every example of every run."""
    for run in bound.order:
        for line in range(bound.count(run)):
            yield Step((Part(run, range(line, line + 1)),), wanted=True, way=Full())

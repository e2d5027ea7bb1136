"""What late passes of a model can do: tried once on a dummy input, against passes from the first block on.

A late pass rests on how a model hands things from block to block, which no description tells for sure. So it is
measured: edits of an early and of a middle block must give the logits of full passes, in the way that is in question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..interventions import FunctionIntervention
from ..models import ComponentMap
from ..models.dummy import dummy_inputs
from ..models.resolve import known_map
from ..plan import Edit, Logits, Plan, Run
from ..positions import Positions
from ..sites import Site
from .apply import Work
from .bind import Bound, bind
from .inputs import batch_size, logits_stack, token_axis
from .late import WAYS, Abilities
from .passes import Execution, forward_once

_TOLERANCE = 1e-3


@final
@dataclass(frozen=True)
class Only(Abilities):
    """Abilities that are taken for granted, up to one way and no further; `""` for none."""

    best: str = ""
    narrow: bool = False

    def why_not(self, way: str) -> str:
        """Return why a way is not to be taken."""
        return "" if self.best and WAYS.index(way) <= WAYS.index(self.best) else "not on trial"

    def tokens(self) -> bool:
        """Whether some logits are computed without the others."""
        return self.narrow


@dataclass(eq=False)
class _Trials:
    """What came of the trials of one model.

    Args:
        reasons: for each way that was tried why it is not to be taken; empty if it is.
        narrow: whether the logits of some tokens were right without the others.
        expected: the logits of full passes.
    """

    reasons: dict[str, str] = field(default_factory=dict)
    narrow: bool = False
    expected: dict[str, Tensor] | str | None = None


_trials: WeakKeyDictionary[ComponentMap, _Trials] = WeakKeyDictionary()


def abilities(model: nn.Module) -> Abilities:
    """Return what late passes of a model can do: for each map of its components found out once, when it is asked.

    Args:
        model: in eval mode.
    """
    found = known_map(model)
    return Only() if found is None else Measured(model, _trials.setdefault(found, _Trials()))


@final
class Measured(Abilities):
    """Abilities that are tried when they are first asked for.

    Args:
        model: to be tried; only this object holds on to it.
        trials: what came of it; remembered with the map of the model's components.
    """

    def __init__(self, model: nn.Module, trials: _Trials) -> None:
        self._model = model
        self._trials = trials

    def why_not(self, way: str) -> str:
        """Return why passes cannot be run in one of `WAYS`; empty if they can."""
        if way not in self._trials.reasons:
            with torch.no_grad():
                self._trials.reasons[way] = self._try(way)
        return self._trials.reasons[way]

    def tokens(self) -> bool:
        """Whether the logits of some tokens can be had without the others."""
        return self._trials.narrow

    def _try(self, way: str) -> str:
        """Try a way, with the logits of some tokens only; where that goes wrong, with all."""
        bound, trials = _trial(self._model), self._trials
        if isinstance(bound, str):
            return bound
        if trials.expected is None:
            trials.expected = _outcome(bound, Only())
        narrow = _differs(bound, Only(way, narrow=True), trials.expected)
        trials.narrow = trials.narrow or not narrow
        return narrow and _differs(bound, Only(way), trials.expected)


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


def _outcome(bound: Bound, able: Abilities) -> dict[str, Tensor] | str:
    outputs: dict[str, Tensor] = {}
    try:
        execution = Execution(Work(bound), able)
        for one in bound.passes:
            for new in execution.carry_out(one, forward_once):
                outputs |= new
    except Exception as error:  # whatever a model says to being run in part
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return outputs


def _differs(bound: Bound, able: Abilities, expected: Mapping[str, Tensor] | str) -> str:
    """Return how a trial goes wrong; empty if it gives what full passes give."""
    found = _outcome(bound, able)
    if isinstance(found, str) or isinstance(expected, str):
        return f"a trial failed: {found if isinstance(found, str) else expected}"
    scale = max(float(value.abs().max()) for value in expected.values())
    worst = max(float((found[name] - value).abs().max()) for name, value in expected.items())
    return "" if worst <= _TOLERANCE * scale else f"a trial gave other logits, by {worst / scale:.1e} of the largest"

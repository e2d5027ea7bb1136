"""`planned`: the planner that leaves out what need not be computed."""

from __future__ import annotations

from collections.abc import Generator, Mapping

from .._checked import checked
from ..engine import Bound
from ..engine.step import Reply, Step
from .planner import Decisions
from .states import States
from .trial import trials_of
from .ways import Trials


@checked
def planned(
    bound: Bound, trials: Trials | None = None, known: Mapping[str, States] | None = None
) -> Generator[Step, Reply, None]:
    """Yield passes that do no more than the plan needs, as far as the model allows it.

    Args:
        bound: the plan.
        trials: tells what was found out about partial passes of the model; default: they are tried when first needed.
        known: by name of an input the states of its unedited run, where they are known already.

    Raises:
        RuntimeError: there was no memory for the smallest pass that a step could be divided into.

    >>> import torch
    >>> from align_transformers import Plan, Run, bind
    >>> plan = Plan((Run("base", "x"), Run("same", "y")), ("base", "same"))
    >>> inputs = {"x": torch.ones(1, 2), "y": torch.ones(1, 2)}
    >>> [step.runs[0].name for step in planned(bind(torch.nn.Linear(2, 3), plan, inputs, {}))]  # equal inputs run once
    ['base']
    """
    return Decisions(bound, trials or trials_of(bound.model), known).steps()

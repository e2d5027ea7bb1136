"""Which planner runs the passes of a call where none is named, and `execute` with that one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from . import engine
from ._checked import checked
from .engine import Bound, Inputs, Outcome, Planner, bind, one_by_one
from .models import evaluating
from .plan import Plan, Read, Run
from .positions import Positions
from .sites import Site

HAS_FAST = find_spec(f"{__package__}.fast") is not None
"""Whether the room that leaves out what need not be computed is there. The engine gives the same without it."""

DEFAULT: Planner = one_by_one

if HAS_FAST:
    from .fast import planned

    DEFAULT = planned  # type: ignore[assignment]  # mypy takes the function for the module of its name


@checked
def execute(
    bound: Bound,
    planner: Planner | None = None,
    *,
    ready: Callable[[Mapping[str, Any]], Mapping[str, Any] | None] | None = None,
) -> Outcome:
    """Carry out a bound plan.

    Args:
        bound: from `bind`.
        planner: says which passes are run. Default: `planned`, which leaves out what need not be computed.
            `one_by_one` runs every run in full, from the first module to the last: that is what the plan means, and
            how to check a number.
        ready: called after every pass with what it gave of the outputs, by name of the run. What it returns is kept
            instead, run by run as many lines as there are, and becomes the outcome's; `None`: as it was.

    Returns:
        The outputs asked for, what was collected, and the ledger.

    Raises:
        NeverFiredError: an edit or a read was never reached.
        InterventionError: an intervention returned another shape.

    >>> import torch
    >>> from align_transformers import Plan, Run, bind, one_by_one
    >>> bound = bind(torch.nn.Linear(2, 3), Plan((Run("base", "x"),), ("base",)), {"x": torch.ones(1, 2)}, {})
    >>> torch.equal(execute(bound).outputs["base"], execute(bound, one_by_one).outputs["base"])
    True
    """
    return engine.execute(bound, planner or DEFAULT, ready=ready)


def capture(
    model: nn.Module, inputs: Inputs, site: Site, positions: Positions, planner: Planner | None = None
) -> Tensor:
    """Return the activations of an input at one site, `(batch, units, width)`; zeros where an example has fewer units.

    The model is in eval mode meanwhile.

    Args:
        model: the user's; it is not changed.
        inputs: the model's keyword arguments, or its only tensor.
        site: where in the network.
        positions: at which places.
        planner: as for `execute`.

    Raises:
        SiteError: the model has no such site.
        PositionError: a position does not exist, or lies on padding.

    >>> capture(nn.Linear(2, 3), torch.ones(4, 2), Site("output"), Positions()).shape
    torch.Size([4, 3])
    """
    read = Read("run", site, positions)
    plan = Plan((Run("run", "inputs"),), (), None, (read,))
    with torch.no_grad(), evaluating(model):
        return execute(bind(model, plan, {"inputs": inputs}, {}), planner).values[read]

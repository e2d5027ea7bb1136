"""One site's activations of the unedited model, from a pass that ends where they are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..interventions import VanillaIntervention
from ..plan import Edit, Plan, Read, Run
from ..positions import Positions
from ..sites import Site
from .abilities import Only
from .apply import Work
from .bind import bind
from .inputs import Inputs
from .passes import Execution, forward_once


@torch.no_grad()
def capture(model: nn.Module, inputs: Inputs, site: Site, positions: Positions) -> Float[Tensor, "batch ..."]:
    """Return the activations of an input at one site, `(batch, units, width)`; zeros where an example has fewer units.

    Args:
        model: the user's; it is not changed.
        inputs: the model's keyword arguments, or its only tensor.
        site: where in the network.
        positions: at which places.

    Raises:
        SiteError: the model has no such site.
        PositionError: a position does not exist, or lies on padding.

    >>> capture(nn.Linear(2, 3), torch.ones(4, 2), Site("output"), Positions()).shape
    torch.Size([4, 3])
    """
    read = Read("source", site, positions)
    reader = Run("reader", "inputs", (Edit("reader", site, "swap", positions, source=read),))
    plan = Plan((Run("source", "inputs"), reader), ("reader",))
    work = Work(bind(model, plan, {"inputs": inputs}, {"swap": VanillaIntervention()}))
    for _ in Execution(work, Only()).carry_out(work.bound.passes[0], forward_once):
        pass
    return work.captured[work.bound.reads[read]][0]

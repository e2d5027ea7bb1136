"""Whether a site is computed from another: measured, since names do not tell what stands side by side in a block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._errors import SpecError
from ..engine import bind, one_by_one
from ..interventions import FunctionIntervention
from ..models import evaluating
from ..plan import Edit, Plan, Read, Run
from ..planners import execute
from ..sites import Site
from ._prompts import Prompts

if TYPE_CHECKING:
    from .causal_scrubbing import Claim


@torch.no_grad()
def refuse_unfed(model: nn.Module, prompts: Prompts, claims: Sequence[Claim]) -> None:
    """Refuse claims about sites that do not change with those which they are said to be computed from.

    What lies in different blocks of one stack is told by the layers and not looked at. Elsewhere the longest prompt is
    run with the site that is to feed stirred up, whole.

    Args:
        model: the user's; it is not changed.
        prompts: of which one is run.
        claims: with those below them.

    Raises:
        SpecError: a site stays what it is, bit for bit.
    """
    pairs = list(dict.fromkeys(pair for claim in claims for pair in _pairs(claim)))
    fed = {below: [above for above, one in pairs if one == below] for _, below in pairs}
    if not pairs:
        return
    lengths = [len(ids) for ids in prompts.tokens("").ids]
    example = (lengths.index(max(lengths)),)
    runs = [Run("clean", "data", (), example)]
    runs += [Run(f"{n}", "data", (Edit(f"stir {n}", site, "stir"),), example) for n, site in enumerate(fed)]
    reads = [Read("clean", above) for above, _ in pairs]
    reads += [Read(f"{n}", above) for n, sites in enumerate(fed.values()) for above in sites]
    with evaluating(model):
        bound = bind(model, Plan(tuple(runs), (), values=tuple(dict.fromkeys(reads))), {"data": prompts.inputs}, _STIR)
        values = execute(bound, one_by_one).values  # one way for all runs, so that what is the same is so bit for bit
    for number, (below, sites) in enumerate(fed.items()):
        for above in sites:
            if torch.equal(values[Read("clean", above)], values[Read(f"{number}", above)]):
                raise SpecError(
                    f"{above} is not computed from {below}: it stays what it is when that is changed. In the same "
                    "block it comes first, or the two stand side by side"
                )


def _pairs(claim: Claim) -> Iterator[tuple[Site, Site]]:
    """Yield what is said to be computed from what, as far as that has to be looked at."""
    for child in claim.children:
        above, below = claim.site, child.site
        known = above.layer is not None and below.layer is not None and above.stack == below.stack
        if not known or above.layer == below.layer:
            yield above, below
        yield from _pairs(child)


def _stirred(base: Tensor) -> Tensor:
    """Return other numbers, of a size that is seen through norms, gates and a softmax that is all but decided."""
    drawn = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    return drawn.to(base) * (1 + 10 * base.abs().max())


_STIR = {"stir": FunctionIntervention(_stirred)}

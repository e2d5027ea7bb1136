"""Activations of a data set at one site: what directions, components and probes are fitted from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._checked import checked
from .._errors import SpecError
from ..engine import Inputs, Planner, real_spans
from ..interventions import PCARotatedSpaceIntervention
from ..models.padding import check_counted, with_positions
from ..models.sequence import check_tokens
from ..planners import capture
from ..positions import Positions
from ..sites import Site

TokenChoice = Literal["last", "all"] | int
"""Which real tokens of an example: the last, all, or one by its number."""


@checked
@torch.no_grad()
def activations(
    model: nn.Module,
    data: Inputs | Iterable[Inputs],
    site: Site,
    positions: TokenChoice = "last",
    *,
    planner: Planner | None = None,
) -> Float[Tensor, "n width"]:
    """Return the activations of a data set at one site, one row an example (or a token).

    Every pass ends where the site is. The model is in eval mode meanwhile.

    Args:
        model: the user's; it is not changed.
        data: one input of the model, or batches of them.
        site: where in the network.
        positions: `"last"`: at the last real token of every example; `"all"`: at all real tokens; or a position,
            negative from the end of an example's real tokens; from 0 where no padding is in front of these.
        planner: says which passes are run, as for `execute`.

    Returns:
        `(examples, width)`, or `(tokens, width)`; a model without a sequence gives `(examples, width)`.

    Raises:
        SpecError: there is no data, or a position that an example does not have.
        SiteError: the model has no such site.

    >>> mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> activations(mlp, torch.ones(4, 2), Site("0.output")).shape
    torch.Size([4, 3])
    """
    batches = [data] if isinstance(data, Tensor | Mapping) else list(data)
    if not batches:
        raise SpecError("there is no data to take activations from")
    return torch.cat([_activations(model, batch, site, positions, planner) for batch in batches])


@checked
def fit_pca(
    model: nn.Module,
    data: Inputs | Iterable[Inputs],
    site: Site,
    k: int,
    *,
    positions: TokenChoice = "last",
    standardise: bool = True,
    planner: Planner | None = None,
    **options: Any,
) -> PCARotatedSpaceIntervention:
    """Return an interchange of the first `k` principal components of a data set's activations at a site.

    Args:
        model: the user's; it is not changed.
        data: one input of the model, or batches of them.
        site: where in the network.
        k: how many components.
        positions: as for `activations`.
        standardise: divide each coordinate by its standard deviation first.
        planner: as for `activations`.
        **options: further arguments of the intervention.

    Raises:
        SpecError: there are too few activations for `k` components.

    >>> _ = torch.manual_seed(0)
    >>> mlp = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> fit_pca(mlp, torch.randn(8, 2), Site("0.output"), 2).rotation.shape
    torch.Size([3, 2])
    """
    rows = activations(model, data, site, positions, planner=planner)
    return PCARotatedSpaceIntervention.fit(rows, k, standardise=standardise, **options)


def _activations(
    model: nn.Module, inputs: Inputs, site: Site, positions: TokenChoice, planner: Planner | None
) -> Tensor:
    """Return the activations of one batch: a run that is only read ends at the site."""
    check_tokens(model, inputs, "the data")
    spans = real_spans(inputs, site.sequence)
    check_counted(spans or [], [positions] if isinstance(positions, int) else [])
    inputs = with_positions(model, inputs)
    if spans is None:
        values = capture(model, inputs, site, Positions(), planner)
        return values.flatten(0, -2)
    rows = tuple(_row(start, end, positions) for start, end in spans)
    values = capture(model, inputs, site, Positions(rows), planner)
    return torch.cat([value[: len(row)] for value, row in zip(values, rows, strict=True)])


def _row(start: int, end: int, positions: TokenChoice) -> tuple[int, ...]:
    if positions == "all":
        return tuple(range(start, end))
    place = -1 if positions == "last" else positions
    if not start - end <= place < end - start:
        raise SpecError(f"position {place} does not exist in an example of {end - start} tokens")
    return ((end if place < 0 else start) + place,)

"""Directions to steer along: fitted to contrastive prompts, taken from an intervention, or handed in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._errors import SpecError
from ..engine import Planner, bind
from ..interventions import Intervention
from ..models import evaluating, find_slot
from ..plan import Plan, Read, Run
from ..planners import execute
from ..positions import Positions, Rows
from ..sites import Site
from ..subspaces import difference_of_means, linear_probe
from ._places import columns_of
from ._prompts import Prompts

FittedBy = Literal["mean", "pca", "probe"]
Pairing = tuple[int, int] | None
"""How many positive and negative prompts there are."""
DirectionGiven = FittedBy | Tensor
"""How a direction is fitted, a direction, or a basis of what it lies in."""
_DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Contrast:
    """What is read of contrastive prompts at one site.

    Args:
        positive: one row a prompt that shows what is steered towards.
        negative: one row a prompt that shows the contrary; of pairs in the same order.
    """

    positive: Float[Tensor, "positives width"]
    negative: Float[Tensor, "negatives width"]

    @property
    def mean(self) -> Float[Tensor, " width"]:
        """The mean of the positive ones less that of the negative ones."""
        rows = torch.cat([self.negative, self.positive])
        return difference_of_means(rows, self._labels())

    def fit(self, how: FittedBy) -> Float[Tensor, " width"]:
        """Return a direction of any length, from the negative prompts to the positive ones.

        Args:
            how: `mean`; `pca`: the first principal direction of the pairs' differences, not centred, with the sign of
                their mean; `probe`: that of a logistic regression.
        """
        if how == "mean":
            return self.mean
        if how == "probe":
            return linear_probe(torch.cat([self.negative, self.positive]), self._labels()).vector.float()
        differences = (self.positive - self.negative).double()
        first = torch.linalg.svd(differences, full_matrices=False).Vh[0].float()
        return -first if float(first @ self.mean) < 0 else first

    def agreement(self) -> dict[str, float | None]:
        """Return the mean cosine of the pairs' differences with each other, and its bootstrap interval over pairs.

        Nothing where there are not at least two pairs.
        """
        unknown: dict[str, float | None] = {"agreement": None, "agreement_low": None, "agreement_high": None}
        if len(self.positive) != len(self.negative) or len(self.positive) < 2:
            return unknown
        differences = (self.positive - self.negative).double()
        each = differences / differences.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.double).tiny)
        cosines, count = each @ each.T, len(each)
        mean = (cosines.sum() - cosines.trace()) / (count * (count - 1))
        drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(0))
        times = torch.zeros(_DRAWS, count, dtype=torch.double).scatter_add_(
            1, drawn, torch.ones(_DRAWS, count, dtype=torch.double)
        )
        same = (times.square() * cosines.diagonal()).sum(1)  # a pair with itself, and with its copies, tells nothing
        others = ((times @ cosines) * times).sum(1) - same
        pairs = count**2 - times.square().sum(1)
        low, high = torch.quantile(
            (others / pairs)[pairs > 0], torch.tensor([0.025, 0.975], dtype=torch.double)
        ).tolist()
        return {"agreement": float(mean), "agreement_low": low, "agreement_high": high}

    def _labels(self) -> Tensor:
        return torch.tensor([0] * len(self.negative) + [1] * len(self.positive))


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction at a site, and what its doses are counted in.

    Args:
        site: where.
        vector: of length 1, float32, on the CPU.
        norm: the mean norm of the prompts' activations there, but for their first tokens: the unit of doses.
        length: how long what was fitted or handed in is, in that unit.
        contrast: what it was fitted to, if it was.
    """

    site: Site
    vector: Float[Tensor, " width"]
    norm: float
    length: float
    contrast: Contrast | None

    def facts(self) -> dict[str, Any]:
        """Return what a table says of it."""
        pairs = None if self.contrast is None else [len(self.contrast.positive), len(self.contrast.negative)]
        agreed = {} if self.contrast is None else self.contrast.agreement()
        told = {"layer": self.site.layer, "norm": self.norm, "length": self.length, "prompts": pairs, **agreed}
        return {**told, "direction": self.vector.tolist()}


@dataclass(frozen=True, eq=False)
class MeanReader:
    """Reads activations of prompts, averaged over the tokens of each.

    Args:
        model: the user's.
        planner: as for `execute`.
        batch_size: prompts in a pass.
        passes: how many were made, by way.
    """

    model: nn.Module
    planner: Planner | None
    batch_size: int
    passes: Counter[str] = field(default_factory=Counter)

    def norms(self, prompts: Prompts, sites: Sequence[Site]) -> dict[Site, float]:
        """Return for each site the mean norm of what stands there, but at the prompts' first tokens."""
        rows = columns_of(prompts, sites[0].stack, "all", but_first=True)
        found = self._means(prompts, rows, sites, lambda found: found.norm(dim=-1, keepdim=True))
        return {site: float(norms.mean()) for site, norms in found.items()}

    def contrasts(self, sides: Sequence[Prompts], rows: Sequence[Rows], sites: Sequence[Site]) -> dict[Site, Contrast]:
        """Return for each site what is read there of positive and negative prompts, in the columns of `rows`."""
        towards, away = (self._means(*side, sites, lambda found: found) for side in zip(sides, rows, strict=True))
        return {site: Contrast(towards[site], away[site]) for site in sites}

    def _means(
        self, prompts: Prompts, rows: Rows, sites: Sequence[Site], of: Callable[[Tensor], Tensor]
    ) -> dict[Site, Tensor]:
        """Return for each site a row a prompt: the mean over its tokens of what `of` makes of `(tokens, width)`."""
        found: dict[Site, list[Tensor]] = {site: [] for site in sites}
        for begin in range(0, len(rows), self.batch_size):
            part = tuple(range(begin, min(begin + self.batch_size, len(rows))))
            places = Positions(tuple(rows[example] for example in part))
            reads = {site: Read("prompts", site, places) for site in sites}
            plan = Plan((Run("prompts", "prompts", (), part),), (), None, tuple(reads.values()))
            with torch.no_grad(), evaluating(self.model):
                outcome = execute(bind(self.model, plan, {"prompts": prompts.inputs}, {}), self.planner)
            self.passes.update(passed.way for passed in outcome.passes)
            for site, read in reads.items():
                values = outcome.values[read].float().cpu()
                found[site] += [
                    of(value[: len(rows[example])]).mean(0) for example, value in zip(part, values, strict=True)
                ]
        return {site: torch.stack(each) for site, each in found.items()}


def given_directions(given: Any, model: nn.Module, sites: Sequence[Site], pairs: Pairing) -> dict[Site, DirectionGiven]:
    """Return for each site what its direction is made of, before anything is run.

    Args:
        given: how one is fitted, a tensor, an intervention, or one of these for each layer.
        model: the user's.
        sites: where.
        pairs: how many positive and negative prompts there are; `None` without such.

    Raises:
        SpecError: what is given is no direction there, or has nothing to be fitted to.
    """
    found: dict[Site, DirectionGiven] = {}
    for site in sites:
        one = given
        if isinstance(given, Mapping):
            if site.layer not in given:
                raise SpecError(f"direction has none for layer {site.layer}: it has {sorted(given)}")
            one = given[site.layer]
        if isinstance(one, str):
            found[site] = _fit(one, pairs)
            continue
        vectors = _of_intervention(one, site, pairs) if isinstance(one, Intervention) else one
        width = find_slot(model, site).width
        if vectors.ndim not in ((1, 2) if isinstance(one, Intervention) else (1,)) or vectors.shape[0] != width:
            raise SpecError(
                f"a direction at {site} has shape ({width},), or is given for each layer: {{{site.layer}: tensor}}; "
                f"found {tuple(vectors.shape)}"
            )
        found[site] = vectors.detach().float().cpu()
    return found


def fitted_directions(
    given: Mapping[Site, DirectionGiven], norms: Mapping[Site, float], contrasts: Mapping[Site, Contrast]
) -> list[SteeringVector]:
    """Return the direction at each site.

    Args:
        given: what it is made of.
        norms: the unit of doses at each.
        contrasts: what was read of contrastive prompts; empty without such.

    Raises:
        SpecError: there is none.
    """
    found = []
    for site, one in given.items():
        contrast = contrasts.get(site)
        if isinstance(one, str):
            assert contrast is not None  # `given_directions` has seen to that
            vector = contrast.fit(one)
        elif one.ndim == 1:
            vector = one
        else:
            vector = one[:, 0] if contrast is None else one @ (one.T @ contrast.mean)
        length = float(vector.norm())
        if not (length > 0 and math.isfinite(length)):
            raise SpecError(f"there is no direction at {site}: what was found or given is {length:.3g} long")
        found.append(SteeringVector(site, vector / length, norms[site], length / norms[site], contrast))
    return found


def _fit(how: str, pairs: Pairing) -> FittedBy:
    if pairs is None:
        raise SpecError(
            f"direction={how!r} is fitted to prompts that show what to steer towards, and the contrary: give "
            "positive=... and negative=..."
        )
    if how == "pca" and pairs[0] != pairs[1]:
        raise SpecError(f"direction='pca' is of pairs: there are {pairs[0]} positive and {pairs[1]} negative prompts")
    return how  # type: ignore[return-value]  # its words are checked with the call


def _of_intervention(given: Intervention, site: Site, pairs: Pairing) -> Tensor:
    """Return what an intervention adds, or an orthonormal basis of the subspace that it works in.

    Raises:
        SpecError: it has neither, or it is not known which direction of the subspace is meant.
    """
    added = getattr(given, "direction", None)
    added = given.source_representation if added is None else added
    if isinstance(added, Tensor) and added.ndim == 1:
        return added
    basis = getattr(given, "rotation", None)
    if not isinstance(basis, Tensor) or basis.ndim != 2 or basis.shape[1] >= basis.shape[0]:
        raise SpecError(
            f"{type(given).__name__} for {site} has no direction: one has a vector that it adds, or a subspace of "
            "fewer dimensions than there are coordinates"
        )
    if basis.shape[1] > 1 and pairs is None:
        raise SpecError(
            f"the subspace of {type(given).__name__} for {site} has {basis.shape[1]} dimensions: with positive=... and "
            "negative=... the direction is that of their difference in it"
        )
    return torch.linalg.qr(basis.detach().double())[0]

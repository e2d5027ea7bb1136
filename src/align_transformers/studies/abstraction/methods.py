"""Methods: how the subspace of a hypothesis is found, by name or as a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._errors import SpecError, UnknownNameError, near_misses
from ...interventions import (
    BoundlessRotatedSpaceIntervention,
    Intervention,
    LowRankRotatedSpaceIntervention,
    PCARotatedSpaceIntervention,
    SigmoidMaskIntervention,
    TrainableIntervention,
    VanillaIntervention,
)
from ...interventions.build import build_intervention
from ...learning.held import seeded
from ...models import find_slot
from ...sites import Site
from ...subspaces import Dictionary
from .hypothesis import Candidate, Hypothesis
from .latents import LatentChoice
from .task import Container, Task

Make = Callable[[int, int | None], Intervention]
"""From the width of what is edited (all units side by side) and a rank to a fresh intervention."""

METHODS: Mapping[str, str] = {
    "swap": "the whole vector",
    "das": "a learned subspace of a rank (Geiger et al. 2023, arXiv:2303.02536)",
    "boundless": "the first coordinates of a learned rotation, how many is learned (Wu et al. 2023, arXiv:2305.08809)",
    "mask": "the neurons that a learned mask selects (Davies et al. 2023, arXiv:2307.03637)",
    "pca": "the first principal components of the activations of the training inputs",
    "probe": "the directions of a linear probe of the variable (ridge regression of its values)",
    "sae": "the latents of a given dictionary whose swap lowers the loss most (Marks et al. 2024, arXiv:2403.19647)",
}
"""The methods that have a name; those with a rank are `das`, `pca`, `probe` and `sae`."""

RANKED = ("das", "pca", "probe", "sae")
Dictionaries = Dictionary | Mapping[Site, Dictionary]
"""One for all sites, or by site."""


@dataclass(frozen=True, eq=False)
class Methods:
    """The methods of a search.

    Args:
        asked: names from `METHODS`, or by a name of the user's a function from width and rank to an intervention.
        ranks: of those that have one.
        dictionaries: of the method `sae`.
    """

    asked: Mapping[str, Make | None]
    ranks: tuple[int, ...]
    dictionaries: Dictionaries | None = None

    @classmethod
    def of(
        cls,
        asked: str | Sequence[str] | Mapping[str, Make | None],
        ranks: int | Sequence[int],
        dictionaries: Dictionaries | None = None,
    ) -> Methods:
        """Read what a caller wrote.

        Raises:
            UnknownNameError: there is no such method.
            SpecError: none is named, a rank is no number from 1, or there are dictionaries and nothing needs them.
        """
        listed = {asked: None} if isinstance(asked, str) else asked
        named = dict(listed) if isinstance(listed, Mapping) else dict.fromkeys(listed)
        for name, make in named.items():
            if make is None and name not in METHODS:
                raise UnknownNameError(f"there is no method {name!r}; {near_misses(name, METHODS)}")
        if dictionaries is not None and named.get("sae", "") is not None:
            raise SpecError(f"dictionaries are for the method 'sae', which methods={asked!r:.80} does not name")
        several = (ranks,) if isinstance(ranks, int) else tuple(ranks)
        if not named or not several or any(type(rank) is not int or rank < 1 for rank in several):
            raise SpecError(
                f"methods and ranks name at least one each, ranks are numbers from 1; found {asked!r}, {ranks!r}"
            )
        return cls(named, tuple(dict.fromkeys(several)), dictionaries)

    def needs_dictionary(self, method: str) -> bool:
        """Whether a method swaps latents of a given dictionary."""
        return method == "sae" and self.asked.get(method) is None

    def dictionary(self, model: nn.Module, container: Container) -> Dictionary:
        """Return the dictionary of a container.

        Raises:
            SpecError: there is none, it is a transcoder, or it is one of vectors of another width.
        """
        given, site = self.dictionaries, container.site
        found = given.get(site) if isinstance(given, Mapping) else given
        if found is None:
            known = (
                f"given are those for {', '.join(map(str, given))}" if isinstance(given, Mapping) else "none is given"
            )
            raise SpecError(
                f"dictionaries: the method 'sae' needs one for {site}; {known}: "
                f"dictionaries={{{site!r}: Dictionary.from_saelens(folder)}}"
            )
        slot = find_slot(model, site)
        width = slot.width if container.head is None or slot.heads is None else slot.heads.shape[1]
        if found.inputs is not None:
            raise SpecError(f"dictionaries: that for {site} is a transcoder, whose latents are those of another vector")
        if width is not None and width != found.width:
            raise SpecError(f"dictionaries: that for {site} is for vectors of {found.width}; they have {width} there")
        return found

    def check(self, model: nn.Module, hypotheses: Sequence[Hypothesis]) -> None:
        """Refuse hypotheses whose dictionary is missing or does not fit, before anything is run.

        Raises:
            SpecError: one is, or has fewer latents than are asked for.
        """
        for one in (part for hypothesis in hypotheses for part in hypothesis.alone):
            if self.needs_dictionary(one.method):
                latents = self.dictionary(model, one.container).size
                if one.rank is not None and one.rank > latents:
                    raise SpecError(f"{one}: {one.rank} latents of {latents} that the dictionary has")

    def ranks_of(self, method: str) -> tuple[int | None, ...]:
        """Return the ranks that a method is tried with."""
        return self.ranks if method in RANKED or self.asked.get(method) is not None else (None,)

    def candidate(self, task: Task, hypothesis: Hypothesis) -> Candidate:
        """Return a hypothesis with a fresh intervention, of the same draws for the same seed.

        Raises:
            SpecError: the container has fewer dimensions than are asked for, or several variables cannot share it.
        """
        if hypothesis.parts:
            return Candidate.at_several(hypothesis, [self.candidate(task, one) for one in hypothesis.parts])
        units, width = task.width(hypothesis.container)
        whole, count = units * width, len(hypothesis.variables)
        rank = hypothesis.rank
        if rank is not None and rank * count > whole and not self.needs_dictionary(hypothesis.method):
            raise SpecError(f"{hypothesis}: {rank * count} dimensions of {whole} that there are")
        if count > 1 and not joint(hypothesis.method):
            raise SpecError(
                f"{hypothesis}: several variables share a container by blocks of one rotation: use the method 'das'"
            )
        with seeded(hypothesis.seed):
            return Candidate(hypothesis, self._made(task, hypothesis, units, width))

    def _made(self, task: Task, hypothesis: Hypothesis, units: int, width: int) -> Intervention:
        method, rank, count = hypothesis.method, hypothesis.rank, len(hypothesis.variables)
        make = self.asked.get(method)
        if make is not None:
            made = make(units * width, rank)
            made.keep_last_dim = made.keep_last_dim and units == 1  # it was told the width of all units side by side
            return made
        kinds: dict[str, Any] = {
            "swap": VanillaIntervention,
            "das": LowRankRotatedSpaceIntervention,
            "boundless": BoundlessRotatedSpaceIntervention,
            "mask": SigmoidMaskIntervention,
        }
        if method in kinds:
            partition = None if count == 1 else [[n * rank, (n + 1) * rank] for n in range(count)] if rank else None
            options = {
                "embed_dim": width,
                "low_rank_dimension": rank if rank is None else rank * count,
                "subspace_partition": partition,
            }
            return build_intervention(kinds[method], options, units=units)
        assert rank is not None
        if method == "sae":
            return LatentChoice(self.dictionary(task.model, hypothesis.container), rank)
        keep = {"keep_last_dim": units == 1}
        seen = states_in_training(task, hypothesis)
        if method == "pca":
            return PCARotatedSpaceIntervention.fit(seen, rank, standardise=False, **keep)
        directions = probed(seen, values_in_training(task, hypothesis), rank)
        probe = LowRankRotatedSpaceIntervention(embed_dim=units * width, low_rank_dimension=rank, **keep)
        probe.rotate_layer.set_weight(directions.to(seen))
        return probe.requires_grad_(False)


def joint(method: str) -> bool:
    """Whether several variables can share a container under a method."""
    return method == "das"


def learns(candidate: Candidate) -> bool:
    """Whether a candidate has something to be fitted."""
    one = candidate.intervention
    return isinstance(one, TrainableIntervention) and any(p.requires_grad for p in one.parameters())


def hard(candidate: Candidate) -> Candidate:
    """Return a candidate with the hard version of its mask; itself where it has none."""
    if candidate.hypothesis.parts:
        parts = [hard(one) for one in candidate.parts]
        soft = any(a.intervention is not b.intervention for a, b in zip(parts, candidate.parts, strict=True))
        return Candidate.at_several(candidate.hypothesis, parts) if soft else candidate
    one = candidate.intervention
    if not isinstance(one, TrainableIntervention) or one.dimensions is None:
        return candidate
    return Candidate(candidate.hypothesis, one.hardened())


def random_like(candidate: Candidate, seed: int) -> Candidate | None:
    """Return the swap of a random subspace of as many dimensions in the same container; `None` where there is none.

    Args:
        candidate: with the weights that were found.
        seed: of the draw.

    Of several containers those that have no subspace stay as they are; `None` where none has.
    """
    if candidate.hypothesis.parts:
        drawn = [random_like(one, seed + 1000 * number) for number, one in enumerate(candidate.parts)]
        parts = [found or one for found, one in zip(drawn, candidate.parts, strict=True)]
        return Candidate.at_several(candidate.hypothesis, parts) if any(drawn) else None
    one = candidate.intervention
    rotation = getattr(one, "rotation", None)
    dimensions = one.dimensions if isinstance(one, TrainableIntervention) else None
    latents = getattr(one, "coordinates", None)
    dimensions = len(latents) if dimensions is None and isinstance(latents, list) else dimensions
    width = rotation.shape[-2] if isinstance(rotation, Tensor) else getattr(one, "embed_dim", None)
    rank = dimensions if dimensions is not None else None if not isinstance(rotation, Tensor) else rotation.shape[-1]
    if rank is None or width is None or not 0 < rank < width:
        return None
    with seeded(seed):
        basis = torch.linalg.qr(torch.randn(int(width), int(rank))).Q
    return swap_of(candidate, basis)


def swap_of(candidate: Candidate, basis: Tensor) -> Candidate:
    """Return the swap of what lies in a subspace, at the same container.

    Args:
        candidate: of which all else is taken.
        basis: `(width, k)` orthonormal columns.
    """
    one = candidate.intervention
    with seeded(0):  # what is drawn is replaced
        made = LowRankRotatedSpaceIntervention(
            embed_dim=basis.shape[0],
            low_rank_dimension=basis.shape[1],
            keep_last_dim=one.keep_last_dim,
            subspace_partition=one.subspace_partition if len(candidate.hypothesis.variables) > 1 else None,
        )
    device = next((parameter.device for parameter in one.parameters()), basis.device)
    made.rotate_layer.set_weight(basis)
    return Candidate(candidate.hypothesis, made.to(device))


def states_in_training(task: Task, hypothesis: Hypothesis) -> Tensor:
    """Return the activations of the training inputs at a hypothesis' container, each once, units side by side."""
    return task.states(hypothesis.container)[_training(task)].flatten(1)


def values_in_training(task: Task, hypothesis: Hypothesis) -> Tensor:
    """Return the number of the value that the variable has in each training input."""
    values = task.values(hypothesis.variables[0])
    known = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([known[values[number]] for number in _training(task)])


def _training(task: Task) -> list[int]:
    pairs = task.parts["train"]
    seen = dict.fromkeys(pairs.base.tolist())
    for numbers in pairs.sources.values():
        seen |= dict.fromkeys(numbers.tolist())
    return list(seen)


def probed(states: Tensor, values: Tensor, rank: int) -> Tensor:
    """Return an orthonormal basis of the directions that tell the values of a variable apart, `(width, rank)`.

    A ridge regression of the values, one-hot, on the centred activations; of its weights the strongest directions.

    Args:
        states: `(n, width)`.
        values: `(n,)` from 0.
        rank: how many directions.
    """
    centred = (states - states.mean(0)).double()
    wanted = torch.nn.functional.one_hot(values).double()
    wanted -= wanted.mean(0)
    gram = centred.T @ centred
    ridge = 1e-3 * gram.diagonal().mean() + 1e-12
    weights = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), centred.T @ wanted.to(gram.device)
    )
    left = torch.linalg.svd(weights, full_matrices=True).U
    return left[:, :rank].float()

"""The edits along a probe's directions: swaps with a partner, and erasure, as runs whose examples are cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..interventions import Intervention, SubspaceIntervention, VanillaIntervention
from ..operations import Swap, Zero
from ..plan import Edit, Read, Run
from ._cell_run import CellRun
from ._probe_draws import LabelledPrompts, ProbeDraw
from ._probe_fits import KINDS, Erasure, FittedDirections, PlaceFit, fit_place
from ._probe_places import ProbedPlace


@dataclass(frozen=True, eq=False)
class PlaceDirections:
    """The probes of a place, and the edits along their directions.

    Args:
        place: where.
        fits: of each draw.
        origin: mean of the states.
    """

    place: ProbedPlace
    fits: tuple[PlaceFit, ...]
    origin: np.ndarray

    @classmethod
    def of(
        cls,
        place: ProbedPlace,
        x: np.ndarray,
        prompts: LabelledPrompts,
        draws: Sequence[ProbeDraw],
        estimator: Any,
        erasure: Erasure,
    ) -> PlaceDirections:
        """Fit the probes of all draws."""
        return cls(place, tuple(fit_place(x, prompts, draw, estimator, erasure) for draw in draws), x.mean(0))

    def interventions(self) -> dict[str, Intervention]:
        """Return the swap and the erasure in this place's directions, whose members go by kind, draw and fold."""
        stacks = [
            np.stack([fold for kind in KINDS for fit in self.fits for fold in getattr(fit, side)[kind]])
            for side in ("into", "back")
        ]
        held = FittedDirections(*(torch.from_numpy(one).float() for one in (*stacks, self.origin)))
        return {
            f"swap {self.place}": SubspaceIntervention(Swap(), held),
            f"erase {self.place}": SubspaceIntervention(Zero(), held),
            "whole": VanillaIntervention(),
        }

    def runs(self, draws: Sequence[ProbeDraw]) -> Iterator[CellRun]:
        """Yield the runs: each prompt in each draw is a cell."""
        yield self._run("swap", KINDS[:3], draws)
        yield self._run("whole", ("whole_swap",), draws)
        yield self._run("erase", KINDS[3:], draws)

    def _run(self, what: str, kinds: Sequence[str], draws: Sequence[ProbeDraw]) -> CellRun:
        place, site = self.place, self.place.site
        count, folds = len(draws[0].partners), len(draws[0].folds)
        lines = [(kind, draw, prompt) for kind in kinds for draw in range(len(draws)) for prompt in range(count)]
        cells, partners, members = [], [], []
        for kind, draw, prompt in lines:
            partners.append(int(draws[draw].partners[prompt]))
            cells.append({**place.cell, "kind": kind, "draw": draw, "prompt": prompt, "partner": partners[-1]})
            if kind in KINDS:
                group = (KINDS.index(kind) * len(draws) + draw) * folds
                members.append((group + int(draws[draw].tested_in[prompt]),))
        prompts = tuple(prompt for *_, prompt in lines)
        name, here = f"{what} {place}", place.at(prompts)
        source = None if what == "erase" else Read("clean", site, place.at(partners), tuple(partners))
        edit = Edit(name, site, "whole" if what == "whole" else name, here, tuple(members) or None, source)
        return CellRun(Run(name, "prompts", (edit,), prompts), tuple(cells))

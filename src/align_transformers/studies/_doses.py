"""Prompts steered in doses, and what a metric of the next token is worth then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from ..engine import Planner
from ..interventions import AdditionIntervention
from ..metrics import Metric
from ..plan import Constant, Edit, Logits, Run
from ..positions import Positions
from ..sites import Site
from ._cell_run import CellRun
from ._directions import SteeringVector
from ._prompts import Prompts
from ._scoring import MetricsByName, tokens_of, values_of
from ._sweep import Clean, Measurement, Scorer, Sweep


class DosedCell(NamedTuple):
    """What is steered how.

    Args:
        layer: where.
        dose: how much.
        prompt: which one.
        control: along a random direction.
    """

    layer: int | None
    dose: float
    prompt: int
    control: bool


class Doses:
    """The vectors that are added.

    Args:
        amounts: the doses.
        vectors: the direction at each site.
        prompts: how many.
        seed: of random directions beside; `None` without such.
    """

    def __init__(
        self, amounts: Sequence[float], vectors: Sequence[SteeringVector], prompts: int, seed: int | None
    ) -> None:
        self.amounts, self.vectors, self.prompts = amounts, vectors, prompts
        self._random: dict[Site, Tensor] = {}
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            for one in vectors:
                drawn = torch.randn(prompts, len(one.vector), generator=generator)
                self._random[one.site] = drawn / drawn.norm(dim=-1, keepdim=True)

    @property
    def controlled(self) -> bool:
        """Whether there are random directions."""
        return bool(self._random)

    def added(self, one: SteeringVector, dose: float, prompt: int, control: bool) -> Tensor:
        """Return what is added."""
        return dose * one.norm * (self._random[one.site][prompt] if control else one.vector)


def next_token(
    model: nn.Module,
    prompts: Prompts,
    rows: Sequence[tuple[int, ...]],
    doses: Doses,
    metrics: MetricsByName,
    planner: Planner | None,
    passes: Counter[str],
) -> dict[DosedCell, float]:
    """Return the metric of every cell; those of dose 0 are of the unsteered model."""
    runs, constants = [], {}

    def steered(site: Site, name: str, value: Tensor, chosen: Sequence[int], dose: float, control: bool) -> CellRun:
        constants[name] = value
        at = Positions(tuple(rows[prompt] for prompt in chosen))
        edit = Edit(name, site, "add", at, source=Constant(name))
        cells = tuple(DosedCell(site.layer, dose, prompt, control)._asdict() for prompt in chosen)
        return CellRun(Run(name, "prompts", (edit,), tuple(chosen)), cells)

    everyone = range(doses.prompts)
    for one in doses.vectors:
        for dose in filter(None, doses.amounts):
            name = f"{one.site}: {dose:g}"
            runs.append(steered(one.site, name, doses.added(one, dose, 0, False), everyone, dose, False))
            for prompt in everyone if doses.controlled else ():
                value = doses.added(one, dose, prompt, True)
                runs.append(steered(one.site, f"{name}, random, {prompt}", value, [prompt], dose, True))
    sweep = Sweep(
        "steer",
        {"prompts": prompts.inputs},
        (Run("clean", "prompts"),),
        tuple(runs),
        {"add": AdditionIntervention()},
        _NextTokenScoring(metrics),
        Logits(tokens_of(metrics, model)),
        constants,
    )
    table = sweep.table(model, planner=planner)
    passes.update(table.meta["passes"])
    found = {DosedCell(*(row[name] for name in DosedCell._fields)): row["metric"] for row in table.rows()}
    for one in doses.vectors:
        for control in (False, True) if doses.controlled else (False,):
            found |= {DosedCell(one.site.layer, 0.0, n, control): value for n, value in enumerate(table.meta["clean"])}
    return found


@dataclass(frozen=True, eq=False)
class _NextTokenScoring:
    """Makes the scorer when the clean run is in."""

    metrics: MetricsByName

    def __call__(self, clean: Clean) -> _NextTokenScorer:
        return _NextTokenScorer(self.metrics[""], clean)


@final
@dataclass(frozen=True, eq=False)
class _NextTokenScorer(Scorer):
    """The metric of each prompt, steered and not.

    Args:
        metrics: of each prompt.
        clean: what the unsteered run gave.
    """

    metrics: Sequence[Metric]
    clean: Clean

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the metric of each cell."""
        prompts = [cell["prompt"] for cell in found.cells]
        plain = self.clean.logits["clean"][prompts]
        yield from (
            {"metric": value}
            for value in values_of([self.metrics[n] for n in prompts], found.logits, plain, self.clean.tokens)
        )

    def meta(self) -> dict[str, Any]:
        """Return the metric of the unsteered prompts."""
        plain = self.clean.logits["clean"]
        return {"clean": values_of(self.metrics, plain, plain, self.clean.tokens)}

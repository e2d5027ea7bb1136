"""What `grid` and `attribution` are asked alike: which swaps between which pairs of prompts, and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..engine import bind
from ..interventions import Intervention
from ..plan import Logits, Plan, Run
from ._cell_run import CellRun
from ._cells import Selection, width_of
from ._pairs import Pairs, pair_up
from ._prompts import ReadAt
from ._scoring import Scoring, answers_for, answers_metric, logits_wanted, metrics_for
from ._sweep import Sweep

CLEAN = (Run("base", "base"), Run("source", "source"))


@dataclass(frozen=True, eq=False)
class Swaps:
    """Swaps of activations between pairs of prompts.

    Args:
        asked: which ones.
        pairs: of prompts.
        runs: the swaps, all of a site and a direction in one.
        interventions: by the names that these have for them.
        scoring: what logits are worth.
        logits: which are wanted.
        at: where the metric is read.
        facts: what makes them what they are, for a store.
    """

    asked: Selection
    pairs: Pairs
    runs: tuple[CellRun, ...]
    interventions: dict[str, Intervention]
    scoring: Scoring
    logits: Logits
    at: ReadAt
    facts: dict[str, Any]

    @property
    def inputs(self) -> dict[str, Any]:
        """The inputs of both sides."""
        return {"base": self.pairs.base.inputs, "source": self.pairs.source.inputs}

    def sweep(self, name: str, runs: Sequence[CellRun] | None = None) -> Sweep:
        """Return the sweep that makes these swaps, or some of them.

        Args:
            name: of the study.
            runs: some of these; `None` for all.
        """
        chosen = self.runs if runs is None else tuple(runs)
        return Sweep(
            name,
            self.inputs,
            CLEAN,
            chosen,
            self.interventions,
            self.scoring,
            self.logits,
            facts={
                **self.facts,
                "components, layers or directions": [(one.run.name, len(one)) for one in chosen],
                "positions, heads or neurons": [one.cells for one in chosen],
            },
        )

    def check(self, model: nn.Module) -> None:
        """Refuse what cannot be swapped in this model: one swap of each run is bound.

        Args:
            model: the user's.

        Raises:
            AlignError: as `bind` does.
        """
        runs = [one.part(0, 1).run for one in self.runs if len(one)]
        bind(model, Plan((*CLEAN, *runs), tuple(run.name for run in (*CLEAN, *runs))), self.inputs, self.interventions)


def asked_swaps(
    model: nn.Module, asked: Selection, prompts: tuple[Any, ...], measured: tuple[Any, Any, Any], top: int, at: ReadAt
) -> Swaps:
    """Return the swaps that a caller means.

    Args:
        model: the user's.
        asked: which cells.
        prompts: base, source, tokenizer, columns, positions, last and align, as `grid` takes them.
        measured: metric, metrics and answers, likewise.
        top: how many of the most probable tokens are told.
        at: where the metric is read.

    Raises:
        AlignError: as `grid` does.
    """
    asked.check()
    base, source, tokenizer, columns, positions, last, align = prompts
    metric, metrics, answers = measured
    pairs = pair_up(base, source, tokenizer, model, columns, positions, last, align)
    given = metrics_for(metric, metrics, len(pairs), "pairs")
    named = answers_for(answers, pairs, given)
    wanted = given or answers_metric(named, tokenizer)
    runs = asked.runs(model, pairs)
    said = {"study": "grid", "window": {name: width_of(asked.window, name) for name in asked.components}}
    scoring = Scoring(pairs, wanted, named, top, tokenizer, asked.neurons, said)
    facts = {
        "columns": [side.columns(at) for side in (pairs.base, pairs.source)],
        "metric": metric if metrics is None else metrics,
        "answers": answers,
        "top": top,
        "prompts": [of.ids for side in (pairs.base, pairs.source) for of in side.sequences.values()],
    }
    logits = logits_wanted(model, wanted, top, pairs, at)
    return Swaps(asked, pairs, runs, asked.interventions(model, pairs), scoring, logits, at, facts)

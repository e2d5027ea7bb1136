"""Estimates of swaps from gradients: differences of activations, contracted with the gradient, cell by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._errors import PositionError, SiteError, SpecError
from ..metrics import Metric
from ..models import find_slot
from ..plan import Edit, Read
from ..sites import Site
from ._attention_fix import AttentionFix
from ._backward_rules import BackwardRules
from ._cell_run import CellRun
from ._gradient_drop import dropping
from ._scoring import GridScorer, metric_values
from ._swaps import Swaps
from ._sweep import Clean
from ._taped import PutThere, Tape, embeddings_of, record
from ._units import Picked, Units


class Estimate(NamedTuple):
    """What is estimated of the cells of a run.

    Args:
        effects: `(cells,)` of the metric, signed.
        changes: `(cells,)` the norm of what the swap changes.
        drops: `(cells,)` the mean size over gradient drops; `None` where none were made.
    """

    effects: Tensor
    changes: Tensor
    drops: Tensor | None = None


@dataclass(frozen=True)
class How:
    """How swaps are estimated.

    Args:
        method: `atp`, `atp*` or `ig`.
        along: of `ig`, from where to where the points lie: `inputs` or `activations`.
        points: of `ig`, how many there are.
        drop: of `atp*`, whether the gradient is also dropped layer by layer.
        switches: of the rule of the backward pass.
    """

    method: str = "atp"
    along: str = "inputs"
    points: int = 5
    drop: bool = True
    switches: tuple[str, ...] = ()

    def weights(self) -> list[tuple[float, float]]:
        """Return the points of the trapezoid rule, from 0 (as it is) to 1 (as swapped), with their weights.

        >>> How("ig", points=3).weights()
        [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)]
        """
        last = self.points - 1
        return [(n / last, (0.5 if n in (0, last) else 1.0) / last) for n in range(self.points)]


@dataclass(eq=False)
class Estimates:
    """Estimates all swaps of a study.

    Args:
        model: the user's.
        swaps: what is estimated.
        how: how.
        passes: counted here: forward passes, and backward ones.
        acted: by switch of the rule how often it acted.
    """

    model: nn.Module
    swaps: Swaps
    how: How
    passes: Counter[str] = field(default_factory=Counter)
    acted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.swaps.check(self.model)
        self._tapes: dict[str, Tape] = {}
        self._columns = {
            name: of.columns(self.swaps.at)
            for name, of in (("base", self.swaps.pairs.base), ("source", self.swaps.pairs.source))
        }

    def of_each(self) -> tuple[list[Estimate], GridScorer]:
        """Return the estimates of each run, and what scores swaps, which knows the clean values.

        Raises:
            SpecError: the metric has no gradient.
        """
        edited = [side for side in ("base", "source") if any(one.run.input == side for one in self.swaps.runs)]
        fix, by_input = self.how.method == "atp*", self.how.method == "ig" and self.how.along == "inputs"
        rules = {side: BackwardRules(self.how.switches) for side in edited}
        drops = dropping(self.model) if fix and self.how.drop else None
        for side in ("base", "source"):
            of_side = [one for one in self.swaps.runs if one.run.input == side]
            sites = self._sites(self.swaps.runs)
            sites += AttentionFix.sites_of(sites) if fix else embeddings_of(self.model) if by_input else []
            own = rules.get(side)
            if own is not None and drops is not None:
                own = replace(own, further=drops.taps(self.model))
            try:
                self._tapes[side] = self._record(side, sites, graph=bool(of_side), rules=own)
            except SiteError as error:
                if not fix or not AttentionFix.sites_of(self._sites(self.swaps.runs)):
                    raise
                raise SpecError(f"method='atp*' needs the scores of queries and keys: {error}; use 'atp'") from error
        clean = {side: tape.logits(self._columns[side]).detach().float() for side, tape in self._tapes.items()}
        says = {side: tuple(logits.argmax(-1).tolist()) for side, logits in clean.items()}
        scorer = self.swaps.scoring(Clean(clean, None, says))
        metrics = scorer.metrics[""]
        found: dict[str, Estimate] = {}
        for side in edited:
            runs = [one for one in self.swaps.runs if one.run.input == side]
            found |= zip((one.run.name for one in runs), self._side(side, runs, metrics, drops), strict=True)
            self._tapes[side] = replace(self._tapes[side], output=self._tapes[side].output.detach(), nodes={})
        return [found[one.run.name] for one in self.swaps.runs], scorer

    def _side(self, side: str, runs: Sequence[CellRun], metrics: Sequence[Metric], drops: Any) -> list[Estimate]:
        """Return the estimates of the runs that edit one side."""
        sites, tape = self._sites(runs), self._tapes[side]
        if self.how.method == "ig" and self.how.along == "inputs":
            gradients = self._along_inputs(side, sites, metrics)
        elif self.how.method == "ig":
            gradients = self._along_activations(side, runs, metrics)
        else:
            total = self._total(side, tape, metrics)
            fix = AttentionFix.sites_of(sites) if self.how.method == "atp*" else []
            gradients = self._back(tape, total, [*sites, *fix], again=drops is not None)
            if drops is not None:
                return self._dropped(runs, gradients, total, drops)
        return [self._estimate(one, gradients) for one in runs]

    def _dropped(
        self, runs: Sequence[CellRun], gradients: Mapping[Site, Tensor], total: Tensor, drops: Any
    ) -> list[Estimate]:
        """Return the estimates with their mean size over gradient drops: sum over layers of |effect| / (layers - 1)."""
        plain = [self._estimate(one, gradients) for one in runs]
        sizes = [torch.zeros_like(one.effects) for one in plain]
        tape, depth = self._tapes[runs[0].run.input], len(drops)
        for layer in range(depth):
            with drops.at(layer):
                there = self._back(tape, total, list(gradients), again=layer + 1 < depth)
            for size, one in zip(sizes, runs, strict=True):
                size += self._estimate(one, there).effects.abs()
        return [one._replace(drops=size / max(1, depth - 1)) for one, size in zip(plain, sizes, strict=True)]

    def _along_inputs(self, side: str, sites: list[Site], metrics: Sequence[Metric]) -> dict[Site, Tensor]:
        """Return the mean gradient over inputs between those of both sides, which are embedded tokens."""
        other = "source" if side == "base" else "base"
        ends = embeddings_of(self.model)
        if not ends:
            raise SpecError("along='inputs': it is not known where this model gets its embeddings; use 'activations'")
        for end in ends:
            shapes = [tuple(self._tapes[name].values[end].shape) for name in (side, other)]
            if shapes[0] != shapes[1] or self._starts(side, end) != self._starts(other, end):
                raise PositionError(
                    f"along='inputs' goes from each token of a prompt to that of the other one, so prompts of a pair "
                    f"are of equal length and padded alike; found {shapes[0]} and {shapes[1]} at {end}"
                )
        sums: dict[Site, Tensor] = {}
        for share, weight in self.how.weights():
            if share == 0:
                tape = self._tapes[side]
            else:
                changes = {end: towards(self._tapes[other].values[end], share) for end in ends}
                rules = BackwardRules(self.how.switches)
                tape = self._record(side, sites, graph=True, rules=rules, changes=changes)
            gradients = self._back(tape, self._total(side, tape, metrics), sites, again=False)
            for site, gradient in gradients.items():
                sums[site] = sums[site] + weight * gradient if site in sums else weight * gradient
        return sums

    def _along_activations(self, side: str, runs: Sequence[CellRun], metrics: Sequence[Metric]) -> dict[Site, Tensor]:
        """Return the mean gradient of each site over what stands there between both sides, all its places at once."""
        targets: dict[Site, Tensor] = {}
        for one in runs:
            for edit in one.run.edits:
                target = targets.setdefault(edit.site, self._tapes[side].values[edit.site].clone())
                pairs, columns, others = self._units(one, edit).tensors()
                target[pairs, columns] = self._tapes[_other(edit)].values[edit.site][pairs, others].to(target.dtype)
        sums: dict[Site, Tensor] = {}
        for share, weight in self.how.weights():
            for site, target in targets.items():
                changes = {site: towards(target, share)}
                rules = BackwardRules(self.how.switches)
                tape = self._record(side, [site], graph=True, rules=rules, changes=changes)
                gradient = self._back(tape, self._total(side, tape, metrics), [site], again=False)[site]
                sums[site] = sums[site] + weight * gradient if site in sums else weight * gradient
        return sums

    def _record(
        self,
        side: str,
        sites: list[Site],
        *,
        graph: bool,
        rules: BackwardRules | None = None,
        changes: Mapping[Site, PutThere] | None = None,
    ) -> Tape:
        self.passes["full"] += 1
        tape = record(
            self.model, self.swaps.inputs[side], sites, graph=graph, rules=rules if graph else None, changes=changes
        )
        if rules is not None and graph:
            self.acted |= rules.acted
        return tape

    def _back(self, tape: Tape, total: Tensor, sites: Sequence[Site], *, again: bool) -> dict[Site, Tensor]:
        self.passes["backward"] += 1
        return tape.gradients(total, sites, again=again)

    def _total(self, side: str, tape: Tape, metrics: Sequence[Metric]) -> Tensor:
        """Return the sum of the metric over all pairs: each number depends on one pair alone."""
        logits = tape.logits(self._columns[side])
        clean = self._tapes[side].logits(self._columns[side]).detach()
        with torch.enable_grad():
            values = metric_values(metrics, logits, clean)
        if not values.requires_grad:
            names = ", ".join(sorted({metric.name for metric in metrics}))
            raise SpecError(
                f"the metric {names} has no gradient (it counts, or takes a largest), so nothing can be estimated from "
                "it: measure with grid, or use logit_difference, probability or another smooth metric"
            )
        return values.sum()

    def _sites(self, runs: Sequence[CellRun]) -> list[Site]:
        return list(dict.fromkeys(edit.site for one in runs for edit in one.run.edits))

    def _starts(self, side: str, site: Site) -> tuple[int, ...]:
        prompts = self.swaps.pairs.base if side == "base" else self.swaps.pairs.source
        return tuple(prompts.tokens(site.sequence).starts)

    def _units(self, one: CellRun, edit: Edit) -> Units:
        into, out_of = self._tapes[one.run.input], self._tapes[_other(edit)]
        return Units.of(one, edit, into.lead(edit.site), out_of.lead(edit.site))

    def _estimate(self, one: CellRun, gradients: Mapping[Site, Tensor]) -> Estimate:
        """Return the estimates of a run's cells: the sum over its edits, each by itself."""
        effects = torch.zeros(len(one), dtype=torch.float64)
        squares = torch.zeros(len(one), dtype=torch.float64)
        for edit in one.run.edits:
            into, out_of = self._tapes[one.run.input], self._tapes[_other(edit)]
            units, slot = self._units(one, edit), find_slot(self.model, edit.site)
            picked = Picked(slot, self.swaps.asked.neurons)
            values = into.values[edit.site], out_of.values[edit.site]
            shares, changed = units.contracted(*values, gradients[edit.site], picked)
            if self.how.method == "atp*" and AttentionFix.is_about(edit.site):
                fix = AttentionFix(edit.site, slot, into, out_of, gradients)
                shares = units.summed(fix.shares(units, self._aligned(one, edit), self.swaps.asked))
            at = units.place_of_cell, units.column_of_cell(edit)
            effects += shares[at].cpu()
            squares += changed[at].cpu()
        return Estimate(effects, squares.sqrt())

    def _aligned(self, one: CellRun, edit: Edit) -> bool:
        """Whether every place has the same number in both prompts."""
        rows, read = edit.positions.rows or (), edit.source
        assert isinstance(read, Read)
        starts = [self._starts(side, edit.site) for side in (one.run.input, read.run)]
        pairs = one.run.examples or ()
        lines = zip(pairs, rows, read.positions.rows or (), strict=True)
        return all(
            a - starts[0][pair] == b - starts[1][pair]
            for pair, mine, theirs in lines
            for a, b in zip(mine, theirs, strict=True)
        )


def _other(edit: Edit) -> str:
    assert isinstance(edit.source, Read)
    return edit.source.run


def towards(target: Tensor, share: float) -> PutThere:
    """Return what goes a share of the way to a target; at 0 and 1 bit for bit."""

    def change(seen: Tensor) -> Tensor:
        there = target.to(seen.dtype)
        return seen if share == 0 else there if share == 1 else seen + share * (there - seen)

    return change


def cells_of(runs: Sequence[CellRun]) -> Iterator[tuple[int, int]]:
    """Yield for each cell of some runs the number of its run, and its own in that."""
    for number, one in enumerate(runs):
        yield from ((number, cell) for cell in range(len(one)))

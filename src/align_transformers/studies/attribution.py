"""Attribution: what a swap at each place would do, estimated from gradients for all places at once, and checked.

Attribution patching: Nanda 2023; Kramar et al. 2024, arXiv:2403.00745 (AtP*). Integrated gradients: Sundararajan et al.
2017, arXiv:1703.01365; Hanna et al. 2024, arXiv:2403.17806. Rules: arXiv:2508.21258 (RelP), arXiv:2505.17630 (GIM).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..metrics import Metrics
from ..table import Table
from ._agreement import CellSample, agreement, check_seed, draw
from ._backward_rules import BackwardRules, Rule, switches_of
from ._cells import DirectionName, Selection
from ._data import PairedPrompt, Prompt
from ._estimates import Estimate, Estimates, How
from ._made_with import made_with
from ._pairs import Align
from ._places import WhichPlaces
from ._prompts import ReadAt, Which
from ._scoring import Answer, GridScorer
from ._screening import flattened, measured
from ._swaps import Swaps, asked_swaps

Method = Literal["atp", "atp*", "ig"]
Along = Literal["inputs", "activations"]
_UNCHECKED = "not checked: verify=0, so it is not known how far these estimates are from what swaps do"


@checked
def attribution(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    components: Sequence[str] = ("block_output",),
    layers: Which = "all",
    positions: WhichPlaces | None = "all",
    heads: Which | None = None,
    neurons: int | None = None,
    window: int | Mapping[str, int] = 1,
    method: Method = "atp",
    rule: Rule | Sequence[Rule] = "true",
    along: Along = "inputs",
    points: int = 5,
    drop: bool = True,
    metric: Metrics | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    directions: Sequence[DirectionName] = ("denoise",),
    last: int | None = None,
    align: Align = None,
    at: ReadAt = -1,
    verify: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Estimate from gradients what every swap of `grid` would do to the metric, and measure some of them.

    With x what stands at a cell's places in the run that is edited, x' in the other, and m the metric, a swap's effect
    m(x') - m(x) is estimated by (x' - x) . g. `atp` takes the gradient g at x: two forward passes and a backward pass
    for all cells. `ig` takes the mean of g over points from x to x', both ends among them, by the trapezoid rule.
    `atp*` goes through the softmax of attention exactly for swaps of queries and keys, and also drops the gradient.

    Args:
        model: as for `grid`; any mode, any `requires_grad`; it is not changed.
        base: as for `grid`.
        source: likewise.
        tokenizer: likewise.
        columns: likewise.
        components: likewise.
        layers: likewise.
        positions: likewise.
        heads: likewise.
        neurons: likewise.
        window: likewise: of several layers that are swapped at once, the estimates of each are added up.
        method: `"atp"`, `"atp*"` or `"ig"`.
        rule: of the backward pass. `"true"`; switches: `"norm"` (norms' scales are constant), `"secant"` (activation
            functions have the slope of their secant), `"half"` (factors of a gated MLP's product get half each),
            `"patterns"` (attention patterns are constant), `"temperature"` (softmax backward at a temperature of 2,
            queries and keys a fourth, values half); several of these; or by name `"frozen_norm"` (the first),
            `"relp"` (the first four), `"gim"` (`norm`, `half`, `temperature`). No rule is best everywhere: look at the
            check.
        along: of `"ig"`, from where to where the points lie. `"inputs"`: all embeddings at once, a pass for each point;
            `"activations"`: what stands at one site, all its places that are asked for at once, a pass for each site
            and point. The estimates of a site add up to the effect of such a swap then, up to the rule's error.
        points: of `"ig"`, how many, from 2.
        drop: of `"atp*"`, whether the gradient is also taken without what one layer adds to the residual stream, for
            each layer; a backward pass each.
        metric: as for `grid`; it has to have a gradient.
        answers: as for `grid`.
        directions: likewise. Each has a gradient of its own, that of the run that is edited.
        last: likewise.
        align: likewise.
        at: likewise.
        verify: so many cells are measured exactly as `grid` does: half of them the strongest, the others drawn.
        seed: of that drawing.
        progress: of that measurement, as for `grid`.
        planner: likewise.

    Returns:
        A `Table` with a row a cell, in the order and with the columns of `grid`, where `metric`, `effect` and
        `recovered` are *estimated*. A positive `effect` moves the metric up, as the swap would; with the default
        metric that is towards the answer of the source. `exact` is the measured effect, `None` where it was not
        measured; `measured` says why it was: `"strongest"` or `"drawn"`. With gradient drop `dropped` is the mean size
        over the layers, sum of |effect| / (layers - 1), by which cells are strong then. `meta["check"]` has Pearson's
        and Spearman's correlation of estimate and exact effect, and the recall of the strongest, each with a 95 %
        interval over other drawings; without a check it says so. `meta["acted"]` counts where the rule acted.

    Raises:
        AlignError: as `grid` does.
        SpecError: the metric has no gradient, the rule acts nowhere, or an argument makes no sense.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> table = attribution(model, base, source, answers=(4, 5), components=["mlp_output"], verify=4)
        >>> len(table), table.meta["passes"]["full"], table.meta["passes"]["backward"]
        (6, 2, 1)
        >>> table.meta["check"]["pearson"] > 0.9
        True
    """
    how = _how(method, along, points, drop, switches_of(rule))
    check_seed(seed)
    if verify < 0:
        raise SpecError(f"verify={verify} is how many cells are measured exactly, from 0")
    asked = Selection(components, layers, heads, neurons, directions, window)
    swaps = asked_swaps(
        model, asked, (base, source, tokenizer, columns, positions, last, align), (metric, None, answers), 0, at
    )
    estimates = Estimates(model, swaps, how)
    found, scorer = estimates.of_each()
    BackwardRules(how.switches, estimates.acted).check(rule)
    strengths = [size for one in found for size in (one.effects.abs() if one.drops is None else one.drops).tolist()]
    drawn = draw(strengths, -(-verify // 2), verify // 2, seed)
    exact = measured(model, swaps, drawn, progress=progress, planner=planner) if verify else None
    flat, meta = flattened(found), _facts(estimates, scorer, rule, seed)
    if exact is None:
        meta["check"] = _UNCHECKED
    else:
        effects = exact.columns["effect"]
        meta["check"] = agreement(drawn, [flat[cell] for cell in drawn.each], effects, seed)
        meta["passes"] |= {f"exact {way}": count for way, count in exact.meta["passes"].items()}
    return Table.from_columns(_columns(swaps, found, scorer, drawn, exact), meta={**made_with(model), **meta})


def _how(method: Method, along: Along, points: int, drop: bool, switches: tuple[str, ...]) -> How:
    """Return how cells are estimated; refuse what makes no sense in any model."""
    if points < 2:
        raise SpecError(f"points={points} of the trapezoid rule, which visits both ends, are 2 or more")
    return How(method, along, points, drop and method == "atp*", switches)


def _columns(
    swaps: Swaps, found: Sequence[Estimate], scorer: GridScorer, drawn: CellSample, exact: Table | None
) -> dict[str, list[Any]]:
    """Return the columns of the table, a row a cell; by columns, since there may be many rows."""
    cells = [cell for one in swaps.runs for cell in one.cells]
    columns: dict[str, list[Any]] = {name: [cell[name] for cell in cells] for name in (cells[0] if cells else ())}
    effects = flattened(found)
    ends = {side: scorer.ends("", side) for side in {one.run.input for one in swaps.runs}}
    clean = [ends[one.run.input] for one in swaps.runs for _ in range(len(one))]
    both = [(own[pair], other[pair]) for (own, other), pair in zip(clean, columns["pair"], strict=True)]
    lines = list(zip(both, effects, strict=True))
    columns["metric"], columns["effect"] = [own + effect for (own, _), effect in lines], effects
    columns["recovered"] = [effect / (other - own) if other != own else None for (own, other), effect in lines]
    columns["change"] = [change for one in found for change in one.changes.tolist()]
    if any(one.drops is not None for one in found):
        columns["dropped"] = [size for one in found for size in ([] if one.drops is None else one.drops.tolist())]
    measured_of: list[Any] = [None] * len(cells)
    columns["exact"], columns["measured"] = list(measured_of), measured_of
    strongest = set(drawn.strongest)
    for number, effect in () if exact is None else zip(drawn.each, exact.columns["effect"], strict=True):
        columns["exact"][number] = effect
        columns["measured"][number] = "strongest" if number in strongest else "drawn"
    return columns


def _facts(estimates: Estimates, scorer: GridScorer, rule: Rule | Sequence[Rule], seed: int) -> dict[str, Any]:
    """Return the facts about the whole table."""
    how = estimates.how
    facts = {**scorer.meta(), "study": "attribution", "method": how.method, "seed": seed}
    facts |= {"rule": rule if isinstance(rule, str) else list(rule), "switches": list(how.switches)}
    facts["acted"] = dict(estimates.acted)
    if how.method == "ig":
        facts |= {"along": how.along, "points": how.points, "integration": "trapezoid rule, both ends visited"}
    if how.method == "atp*":
        facts["drop"] = how.drop
    return {**facts, "passes": dict(estimates.passes)}

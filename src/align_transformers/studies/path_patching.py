"""Path patching: what one part of a model tells another one, along the edges between them and no others.

Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, final

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..interventions import AdditionIntervention, SubtractionIntervention, VanillaIntervention
from ..metrics import Metrics
from ..plan import Run
from ..table import Table
from ._data import PairedPrompt, Prompt
from ._nodes import Node, one_stack, receivers_of, senders_of
from ._pairs import Align, Pairs, pair_up
from ._paths import Freeze, Paths
from ._places import WhichPlaces, places_of
from ._prompts import ReadAt
from ._scoring import Answer, GridScorer, Scoring, answers_for, answers_metric, logits_wanted, metrics_for
from ._sweep import Clean, Measurement, Scorer, Sweep


@checked
def path_patching(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    receivers: str | Sequence[str] = "logits",
    *,
    senders: str | Sequence[str | Sequence[str]] = "heads",
    through: Sequence[str | Sequence[str]] = (),
    freeze: Freeze = "attention",
    positions: WhichPlaces | None = None,
    receiver_positions: WhichPlaces | None = None,
    per_query_head: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    metric: Metrics | None = None,
    metrics: Mapping[str, Metrics] | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    last: int | None = None,
    align: Align = None,
    at: ReadAt = -1,
    store: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | bool | None = None,
    planner: Planner | None = None,
) -> Table:
    """Send a value of the source's run from a sender to receivers in the base's run, and measure what they make of it.

    Three runs for each sender: the source's gives what it sends; in the base's run, with the sender's output exchanged
    and the nodes between *frozen* at their base values, the receivers' inputs are read; in the base's run these inputs
    are put in, and all that follows is free. Nodes are named as in the literature on circuits: `a9.h6` (head 6 of layer
    9), `m9` (an MLP), `b9` (the residual stream behind block 9), `input`, `logits`; a head that receives says with
    which vector it reads, `a9.h6<q>`, `<k>` or `<v>`.

    Args:
        model: a model with one residual stream, in whatever mode; it is not changed.
        base: the prompt, or several: a text, texts, token tensors, pairs, or data with columns, as for `grid`.
        source: the prompt that answers to each base, where `base` does not have it.
        receivers: nodes that read, all at once: `a9.h6<q>`, `m9`, `b9` (what goes into block 9), `logits`. One that
            comes after another one gets what was sent to it, and not what the other makes of it. With `logits` alone
            what is measured is the direct effect: senders write into the stream, and only the final norm and what is
            not frozen read it.
        senders: `"heads"`, `"mlps"`, `"all"` (both and `input`): each by itself, those that come before a receiver; or
            names, those in a tuple together.
        through: nodes between, hop by hop, each a name or several: sender -> first hop -> ... -> receivers.
        freeze: what does not pass on what was sent. `"attention"`: all heads but the senders, MLPs are computed anew
            (the IOI paper's); `"all"`: MLPs, too, so only the residual stream itself leads from node to node;
            `"none"`: nothing, so receivers get what comes on any way. With `receivers="logits"` that is the *total
            effect*, with `"all"` the *direct effect*.
        positions: of senders, as for `grid`: each by itself, a named place at once; `None`: all at once.
        receiver_positions: of receivers and hops, all at once: as `positions`, of the base; `None`: everywhere.
        per_query_head: where several heads share keys and values, the head of `<k>` and `<v>` is the query's, and only
            it reads what is put in. Otherwise it is the kv head, with all heads that read it.
        tokenizer: needed where prompts or answers are texts.
        columns: as for `grid`.
        metric: as for `grid`. Default: logit of the source's answer minus the base's.
        metrics: several by name, as for `grid`.
        answers: the base's answer and the source's, as for `grid`.
        last: compare only the last so many tokens, aligned from the end, as for `grid`.
        align: where an anchor has another number of tokens in the source, as for `grid`.
        at: where the metric is read, as for `grid`.
        store: a folder that parts are written to; an equal call goes on where a killed one was.
        progress: called after every pass with the cells done and the cells in all; `True` for a bar (rich).
        planner: as for `execute`.

    Returns:
        A `Table`, one row a sender (and position, and pair): `sender` (its name), `component`, `layer`, `head`, then
        `metric`, `effect` (minus the base's metric) and `recovered` (as a share of the source's minus the base's).
        `table.pivot("effect", index="layer", columns="head")` is the map by layer and head. Of several pairs,
        `table.mean(("sender", "layer", "head"), value="effect")` has the mean with `low` and `high`, its 95 % bootstrap
        interval over the pairs, and `count`.

    Raises:
        SpecError: no node of that name, none of the senders comes before a receiver, a node on the way behind the next
            one, several stacks (as of an encoder-decoder), or another argument makes no sense.
        PositionError: a layer, head or position does not exist, or lengths differ without `last`.
        SiteError: what is to be frozen is not known.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> table = path_patching(model, base, source, "a1.h0<k>", answers=(4, 5), freeze="all")
        >>> list(table.columns["sender"])
        ['a0.h0', 'a0.h1']
    """
    found = one_stack(model)
    pairs = pair_up(base, source, tokenizer, model, columns, positions, last, align)
    hops = [receivers_of(hop, found, per_query_head=per_query_head, what="through") for hop in through]
    ends = receivers_of(receivers, found, per_query_head=per_query_head, what="receivers")
    _check_hops(hops, ends, freeze)
    columns_put, ends_read = _columns(pairs, receiver_positions), pairs.base.columns(at)
    paths = Paths(found, pairs, [*hops, ends], freeze, columns_put, ends_read, per_query_head)
    given = metrics_for(metric, metrics, len(pairs), "pairs")
    named = answers_for(answers, pairs, given)
    wanted = given or answers_metric(named, tokenizer)
    scoring = Scoring(pairs, wanted, named, 0, tokenizer, None)
    said = {"freeze": freeze, "through": [list(map(str, hop)) for hop in hops], "receivers": list(map(str, ends))}
    sweep = Sweep(
        "path_patching",
        {"base": pairs.base.inputs, "source": pairs.source.inputs},
        (Run("base", "base"), Run("source", "source")),
        tuple(paths.runs(senders_of(senders, found))),
        {"swap": VanillaIntervention(), "add": AdditionIntervention(), "subtract": SubtractionIntervention()},
        _PathScoring(scoring, said),
        logits_wanted(model, wanted, 0, pairs, at),
        facts={
            "columns": [side.columns(at) for side in (pairs.base, pairs.source)],
            "metric": metric if metrics is None else metrics,
            "answers": answers,
        },
    )
    return sweep.table(model, store=store, progress=progress, planner=planner)


def _check_hops(hops: Sequence[Sequence[Node]], ends: Sequence[Node], freeze: Freeze) -> None:
    """Refuse a way that leads nowhere."""
    for one, other in pairwise([*hops, ends]):
        if min(node.writes_at for node in one) >= max(node.reads_at for node in other):
            names = [" and ".join(map(str, nodes)) for nodes in (one, other)]
            raise SpecError(f"through: {names[0]} comes behind {names[1]}, so there is no path from one to the other")
    for node in (node for hop in hops for node in hop):
        if node.kind == "logits" or (node.kind == "block" and freeze != "none"):
            why = (
                "end a path" if node.kind == "logits" else "are all that they hold, so nothing in them could be frozen"
            )
            raise SpecError(f"through: {node} cannot be passed through: {node.kind}s {why}")


def _columns(pairs: Pairs, positions: WhichPlaces | None) -> list[tuple[int, ...]] | None:
    """Return the columns of the base that receivers get something at, for each pair; `None` for all."""
    if positions is None:
        return None
    starts = pairs.base.tokens("").starts
    return [
        tuple(sorted({start + token for place in places for token in place.tokens}))
        for start, places in zip(starts, places_of(pairs.base, "", positions), strict=True)
    ]


# --- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _PathScoring:
    """Makes the scorer when the clean runs are in: metrics as `grid` has them."""

    metrics: Scoring
    said: Mapping[str, Any]

    def __call__(self, clean: Clean) -> _PathScorer:
        return _PathScorer(self.metrics(clean), self.said)


@final
@dataclass(frozen=True, eq=False)
class _PathScorer(Scorer):
    """The metrics of a grid, without the change of an activation: a path has many."""

    metrics: GridScorer
    said: Mapping[str, Any]

    def rows(self, found: Measurement) -> Iterator[dict[str, Any]]:
        """Yield the numbers of each cell."""
        for row in self.metrics.rows(replace(found, effects=found.effects[-1:])):
            yield {name: value for name, value in row.items() if name not in ("change", "fired")}

    def meta(self) -> dict[str, Any]:
        """Return the facts about the whole table."""
        return {**self.metrics.meta(), "study": "path_patching", **self.said}

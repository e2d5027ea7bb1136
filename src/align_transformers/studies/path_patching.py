"""Path patching: what one part of a model tells another one, along the edges between them and no others.

Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from torch import nn
from transformers import PreTrainedTokenizerBase

from .._checked import checked
from .._errors import SpecError
from ..engine import Planner
from ..interventions import AdditionIntervention, SubtractionIntervention, VanillaIntervention
from ..metrics import Metrics
from ..plan import Edit, Read, Run
from ..positions import EVERYWHERE, Positions
from ..sites import Site
from ..table import Table
from ._cell_run import CellRun
from ._data import PairedPrompt, Prompt
from ._nodes import Node, group_size, kv_head, one_stack, others, receivers_of, senders_of
from ._pairs import Align, PairPlace, Pairs, pair_up
from ._places import WhichPlaces, places_of
from ._prompts import ReadAt
from ._scoring import Answer, GridScorer, Scoring, answers_for, answers_metric, logits_wanted, metrics_for, model_name
from ._sweep import Clean, Measurement, Scorer, Sweep

Freeze = Literal["attention", "all", "none"]


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
        `table.pivot("effect", index="layer", columns="head")` is the map by layer and head.

    Raises:
        SpecError: no node of that name, none of the senders comes before a receiver, several stacks, or another
            argument makes no sense.
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
    one_stack(model)
    pairs = pair_up(base, source, tokenizer, model, columns, positions, last, align)
    hops = [receivers_of(hop, model, per_query_head=per_query_head, what="through") for hop in through]
    ends = receivers_of(receivers, model, per_query_head=per_query_head, what="receivers")
    _check_hops(hops, freeze)
    paths = _Paths(model, pairs, [*hops, ends], freeze, _columns(pairs, receiver_positions), per_query_head)
    given = metrics_for(metric, metrics, len(pairs), "pairs")
    named = answers_for(answers, pairs, given)
    wanted = given or answers_metric(named, tokenizer)
    scoring = Scoring(model_name(model), pairs, wanted, named, 0, tokenizer, None)
    said = {"freeze": freeze, "through": [list(map(str, hop)) for hop in hops], "receivers": list(map(str, ends))}
    sweep = Sweep(
        "path_patching",
        {"base": pairs.base.inputs, "source": pairs.source.inputs},
        (Run("base", "base"), Run("source", "source")),
        tuple(paths.runs(senders_of(senders, model))),
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


def _check_hops(hops: Sequence[Sequence[Node]], freeze: Freeze) -> None:
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


# --- the runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sending:
    """A cell: who sends, in which pair, at which places of base and source."""

    senders: tuple[Node, ...]
    pair: int
    place: PairPlace


@dataclass(frozen=True, eq=False)
class _Paths:
    """Makes the runs.

    Args:
        model: the user's.
        pairs: of prompts.
        hops: what is on the way, the receivers last.
        freeze: what does not pass anything on.
        columns: of each pair, where hops and receivers get something; `None`: everywhere.
        per_query_head: keys and values are put in for one head of those that share them.
    """

    model: nn.Module
    pairs: Pairs
    hops: Sequence[tuple[Node, ...]]
    freeze: Freeze
    columns: Sequence[tuple[int, ...]] | None
    per_query_head: bool

    def runs(self, senders: Sequence[tuple[Node, ...]]) -> Iterator[CellRun]:
        """Yield a run for the senders of each site; its cells are these, at their places, in all pairs.

        Raises:
            SpecError: no sender comes before the first hop.
        """
        reached = max(node.reads_at for node in self.hops[0])
        groups: dict[tuple[Site, ...], list[_Sending]] = {}
        places = self.pairs.places("")
        for several in senders:
            if min(node.writes_at for node in several) < reached:
                groups.setdefault(tuple(node.site for node in several), []).extend(
                    _Sending(several, pair, place) for pair, own in enumerate(places) for place in own
                )
        if not groups:
            raise SpecError(f"no sender comes before {' and '.join(map(str, self.hops[0]))}, so there is no path")
        yield from (self._run(lines) for lines in groups.values())

    def _run(self, lines: Sequence[_Sending]) -> CellRun:
        """Return the run whose logits are measured, with those that lead to it."""
        runs = _Runs(self, lines, "+".join(map(str, lines[0].senders)))
        edits = runs.sent()
        writes = min(node.writes_at for node in lines[0].senders)
        for number, hop in enumerate(self.hops):
            frozen = runs.frozen(f"{number}", writes, max(node.reads_at for node in hop))
            if [node.kind for node in hop] == ["logits"]:
                return runs.cells((*frozen, *edits))
            carried = runs.add(f"to hop {number}", (*frozen, *edits, *runs.difference(hop)))
            through = number + 1 < len(self.hops) and self.freeze != "none"
            edits = runs.passed_on(number, hop, carried) if through else runs.arrived(number, hop, carried)
            writes = min(node.writes_at for node in hop)
        return runs.cells(edits)


@dataclass(eq=False)
class _Runs:
    """The runs of some lines: those that lead to the cells, as they are made."""

    paths: _Paths
    lines: Sequence[_Sending]
    name: str
    made: list[Run] = field(default_factory=list)

    @property
    def pairs(self) -> tuple[int, ...]:
        """The pair of each line."""
        return tuple(line.pair for line in self.lines)

    def add(self, name: str, edits: Sequence[Edit]) -> str:
        """Make a run that leads to the cells, and return its name."""
        self.made.append(Run(f"{self.name} {name}", "base", tuple(edits), self.pairs))
        return self.made[-1].name

    def cells(self, edits: Sequence[Edit]) -> CellRun:
        """Return the run of the cells."""
        run = Run(self.name, "base", tuple(edits), self.pairs)
        return CellRun(run, tuple(map(self._cell, self.lines)), tuple(self.made))

    def sent(self) -> tuple[Edit, ...]:
        """Return the edits that put into the base's run what the senders give in the source's."""
        starts = [side.starts for side in (self.paths.pairs.base.tokens(""), self.paths.pairs.source.tokens(""))]
        into, out_of = (
            tuple(tuple(of[line.pair] + place[side] for place in line.place.places) for line in self.lines)
            for side, of in enumerate(starts)
        )
        edits = []
        for number, node in enumerate(self.lines[0].senders):
            several = [line.senders[number].head for line in self.lines]
            heads = None if node.head is None else tuple((head,) for head in several if head is not None)
            read = Read("source", node.site, Positions(out_of, heads), self.pairs)
            edits.append(Edit(f"{self.name} send {number}", node.site, "swap", Positions(into, heads), source=read))
        return tuple(edits)

    def frozen(self, name: str, after: float, before: float) -> Iterator[Edit]:
        """Yield the edits that hold all that writes between two places at its base value."""
        if self.paths.freeze == "none":
            return
        for layer in range(len(one_stack(self.paths.model).stacks[""])):
            for site, at in others(self.paths.model, layer, self.paths.freeze == "all"):
                if after < at < before:
                    read = Read("base", site, EVERYWHERE, self.pairs)
                    yield Edit(f"{self.name} freeze {name} {site}", site, "swap", EVERYWHERE, source=read)

    def arrived(self, number: int, hop: Sequence[Node], carried: str) -> tuple[Edit, ...]:
        """Return the edits that put what was carried into the inputs of a hop's nodes; what they do is free."""
        edits: list[Edit] = []
        for node in sorted(hop, key=lambda node: node.reads_at):
            label = f"{self.name} hop {number} {node}"
            if node.kind == "logits":
                edits.append(self._into_logits(label, carried))
            elif self._is_shared(node):
                same = [one for one in hop if (one.kind, one.layer, one.head) == (node.kind, node.layer, node.head)]
                before = [
                    replace(e, name=f"{label}: {e.name}") for e in edits if (e.site.layer or 0) < (node.layer or 0)
                ]
                own = self.add(label, (*before, *(self._input(f"{label}: {one}", one, carried) for one in same)))
                edits.append(self._output(f"{label} output", replace(node, reads=""), own))
            else:
                edits.append(self._input(label, node, carried))
        return tuple(edits)

    def passed_on(self, number: int, hop: Sequence[Node], carried: str) -> tuple[Edit, ...]:
        """Return the edits that put in what a hop's nodes make of what was carried to them, and else of the base."""
        edits = []
        for writer in dict.fromkeys(writer for node in hop for writer in self._writers(node)):
            label = f"{self.name} hop {number} {writer}"
            inputs = [self._input(f"{label}: {node}", node, carried) for node in hop if writer in self._writers(node)]
            edits.append(self._output(f"{label} output", writer, self.add(f"hop {number} {writer}", inputs)))
        return tuple(edits)

    def difference(self, hop: Sequence[Node]) -> Iterator[Edit]:
        """Yield the edit after which the last block's output is what was sent along the stream, without the base's."""
        if self.paths.freeze != "none" and any(node.kind == "logits" for node in hop):
            site = self._last
            read = Read("base", site, EVERYWHERE, self.pairs)
            yield Edit(f"{self.name} difference", site, "subtract", EVERYWHERE, source=read)

    @property
    def _last(self) -> Site:
        return Site("block_output", len(one_stack(self.paths.model).stacks[""]) - 1)

    def _into_logits(self, name: str, carried: str) -> Edit:
        """Return the edit that puts what came along the stream beside what the other receivers make of it."""
        operation = "swap" if self.paths.freeze == "none" else "add"
        return Edit(name, self._last, operation, EVERYWHERE, source=Read(carried, self._last))

    def _input(self, name: str, node: Node, carried: str) -> Edit:
        """Return the edit that puts what a node got in one run into its input."""
        columns, head = self.paths.columns, node.head
        if self._is_shared(node):
            head = kv_head(node, self.paths.model)
        rows = None if columns is None else tuple(columns[pair] for pair in self.pairs)
        at = Positions(rows, None if head is None else ((head,),) * len(self.lines))
        return Edit(name, node.goes_into, "swap", at, source=Read(carried, node.goes_into, at))

    def _output(self, name: str, node: Node, run: str) -> Edit:
        """Return the edit that puts in what a node gives in another run."""
        at = Positions(heads=None if node.head is None else ((node.head,),) * len(self.lines))
        return Edit(name, node.site, "swap", at, source=Read(run, node.site, at))

    def _is_shared(self, node: Node) -> bool:
        """Whether one head is meant of several that read this key or value."""
        return self.paths.per_query_head and node.reads in ("k", "v") and group_size(node, self.paths.model) > 1

    def _writers(self, node: Node) -> list[Node]:
        """Return the nodes whose outputs depend on what goes into a node."""
        size = group_size(node, self.paths.model) if node.reads in ("k", "v") and not self.paths.per_query_head else 1
        if node.head is None:
            return [node]
        return [Node("head", node.layer, head) for head in range(node.head * size, (node.head + 1) * size)]

    def _cell(self, line: _Sending) -> dict[str, Any]:
        """Return the columns that say which cell it is."""
        one = line.senders[0] if len(line.senders) == 1 else None
        return {
            "sender": "+".join(map(str, line.senders)),
            "component": None if one is None else one.site.component,
            "layer": None if one is None else one.layer,
            "head": None if one is None else one.head,
            **self.paths.pairs.cell("", line.pair, line.place),
            "pair": line.pair,
        }


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

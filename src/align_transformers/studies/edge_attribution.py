"""Edge attribution patching: what the source's value of a sender would do through one receiver alone, by gradient.

Syed et al. 2023, arXiv:2310.10348 (EAP); Hanna et al. 2024, arXiv:2403.17806 (EAP-IG).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._bar import telling
from .._checked import checked
from .._errors import PositionError, SpecError
from ..metrics import Metrics
from ..models import Slot, find_slot, resolve
from ..models.sequence import examples_of
from ..models.shown import shares_of
from ..sites import Site
from ..table import Table
from ._backward_rules import BackwardRules, Rule, switches_of
from ._data import PairedPrompt, Prompt
from ._estimates import How, towards
from ._made_with import made_with
from ._module_kinds import kind_of
from ._pairs import Pairs, pair_up
from ._prompts import ReadAt
from ._scoring import Answer, answers_for, answers_metric, check_told_apart, metric_values, metrics_for, name_of
from ._taped import Tape, embeddings_of, record
from ._units import wide
from .direct_attribution import FrozenNorm
from .graph import CircuitGraph, GraphNode, graph, parts_of, reads_at

_DRAWS = 200
_READS = {"q": "query_output", "k": "key_output", "v": "value_output"}


@checked
def edge_attribution(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    method: Literal["eap", "eap-ig"] = "eap",
    rule: Rule | Sequence[Rule] = "true",
    points: int = 5,
    metric: Metrics | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    at: ReadAt = -1,
    at_once: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Table:
    """Score every edge of `graph(model, experts=False)`: one receiver alone sees what a sender gives in the source.

    With z_u what a sender adds to the residual stream, and x_v what a receiver reads, the score of the edge from u to v
    is (z_u(source) - z_u(base)) . dm / dx_v, summed over tokens: queries, keys and values have an x_v of their own.

    Args:
        model: with one residual stream; not changed.
        base: as for `grid`; both prompts of a pair are of equal length.
        source: likewise.
        tokenizer: likewise.
        columns: likewise.
        method: `"eap"` takes the gradient at the base, `"eap-ig"` its mean over points between the embeddings of base
            and source, by the trapezoid rule, which visits both.
        rule: of the backward pass, as for `attribution`.
        points: of `"eap-ig"`.
        metric: as for `attribution`.
        answers: likewise.
        at: likewise.
        at_once: how many pairs are worked on at a time; memory grows with it.
        seed: of the bootstrap over pairs.
        progress: called with the pairs that are done, and all; `True` for a bar (rich).

    Returns:
        A `Table`, a row an edge: `sender`, `receiver`, `score` (the mean over pairs; positive where the source's value
        moves the metric up), `low`, `high` (95 % bootstrap interval over pairs, `None` for one) and `n`. These are
        estimates and are not checked here; `meta["notes"]` says which nodes are coarse.

    Raises:
        SpecError: the model's graph is not known, or the metric has no gradient.
        PositionError: prompts of a pair differ in length or padding.

    Example:
        >>> import transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> table = edge_attribution(model, base, source, answers=(4, 5))
        >>> len(table), table.columns["sender"][0], table.columns["receiver"][0]
        (46, 'input', 'a0.h0<q>')
    """
    if at_once < 1 or points < 2 or seed < 0:
        raise SpecError(f"at_once is from 1, points from 2, seed from 0; found {at_once}, {points} and {seed}")
    pairs = pair_up(base, source, tokenizer, model, columns, None, None, None)
    _check_alike(pairs)
    given = metrics_for(metric, None, len(pairs), "pairs")
    named = answers_for(answers, pairs, given)
    wanted = given or answers_metric(named, tokenizer)
    how = How("ig" if method == "eap-ig" else "atp", points=points, switches=switches_of(rule))
    edges = _Edges(model, graph(model, experts=False), how)
    scores, names = [], []
    with telling("edge_attribution", progress) as tell:
        for start in range(0, len(pairs), at_once):
            chosen = range(start, min(len(pairs), start + at_once))
            inputs = [examples_of(side.inputs, chosen) for side in (pairs.base, pairs.source)]
            reads = [[side.columns(at)[pair] for pair in chosen] for side in (pairs.base, pairs.source)]
            own = None if wanted is None else [wanted[""][pair] for pair in chosen]
            found, used = edges.scores(inputs, reads, own, tokenizer)
            scores.append(found)
            names += used
            tell(chosen.stop, len(pairs))
    BackwardRules(how.switches, edges.acted).check(rule)
    meta = {
        **made_with(model), "study": "edge_attribution", "method": method,
        "rule": rule if isinstance(rule, str) else list(rule),
        "acted": dict(edges.acted), "metric": name_of(names), "pairs": len(pairs), "passes": dict(edges.passes),
        "notes": edges.graph.notes, "graph": dict(edges.graph.facts), "seed": seed,
        "check": "not checked: scores of edges are estimates by gradient",
        "base": list(pairs.base.texts), "source": list(pairs.source.texts),
    }  # fmt: skip
    return Table.from_rows(_rows(edges.graph, torch.cat(scores, 1), seed), meta=meta)


def _check_alike(pairs: Pairs) -> None:
    base, source = pairs.sides("")
    for number in range(len(pairs)):
        same = len(base.ids[number]) == len(source.ids[number]) and base.starts[number] == source.starts[number]
        if not same:
            raise PositionError(
                f"pair {number}: the base has {len(base.ids[number])} tokens from column {base.starts[number]}, the "
                f"source {len(source.ids[number])} from {source.starts[number]}: edges are scored token by token, so "
                "prompts of a pair are of equal length and padded alike"
            )


def _rows(made: CircuitGraph, scores: Tensor, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the row of each edge; scores are `(edges, pairs)`."""
    count, means = scores.shape[1], scores.mean(1)
    low = high = [None] * len(scores)
    if count > 1:
        drawn = torch.randint(count, (_DRAWS, count), generator=torch.Generator().manual_seed(seed))
        weights = nn.functional.one_hot(drawn, count).sum(1).double() / count
        ends = [
            torch.quantile(part @ weights.T, torch.tensor([0.025, 0.975]).double(), dim=1)
            for part in scores.split(4096)
        ]
        low, high = torch.cat(ends, 1).tolist()
    for (sender, receiver), score, a, b in zip(made.edges(), means.tolist(), low, high, strict=True):
        yield {"sender": sender, "receiver": receiver, "score": score, "low": a, "high": b, "n": count}


@dataclass(eq=False)
class _Edges:
    """Scores the edges of a model, for some pairs at a time.

    Args:
        model: the user's.
        graph: of it.
        how: which gradient is taken.
        passes: counted here.
        acted: by switch of the rule how often it acted.
    """

    model: nn.Module
    graph: CircuitGraph
    how: How
    passes: Counter[str] = field(default_factory=Counter)
    acted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._blocks = resolve(self.model).stacks[""]
        depth = len(self._blocks)
        self._written = [Site("block_input", 0)]
        self._read = [Site("block_output", depth - 1)]
        for layer, block in enumerate(self._blocks):
            whole = any(node.kind == "block" and node.layer == layer for node in self.graph.senders)
            self._read.append(Site("block_input", layer))
            if whole:
                self._written.append(Site("block_output", layer))
                continue
            for part in parts_of(block):
                added = Site(part.replace("_output", "_contribution"), layer)
                self._written.append(added)
                self._read += [added, Site(reads_at(block, part), layer)]
            if any(node.kind == "head" and node.layer == layer for node in self.graph.senders):
                self._written += [Site("attention_value_output", layer), Site("attention_output", layer)]
                self._read += [Site(name, layer) for name in _READS.values()]

    def scores(
        self, inputs: Sequence[Any], columns: Sequence[Sequence[int]], metrics: Any, tokenizer: Any
    ) -> tuple[Tensor, list[Any]]:
        """Return the scores of all edges, `(edges, pairs)`, and the metrics that were taken.

        Args:
            inputs: of bases and sources.
            columns: where logits are read in each.
            metrics: of each pair; `None`: those of the model's own answers.
            tokenizer: for messages.
        """
        ends = embeddings_of(self.model) if self.how.method == "ig" else []
        kept = list(dict.fromkeys((*self._written, *self._read, *ends)))
        base = self._record(inputs[0], kept, {})
        other = record(self.model, inputs[1], list(dict.fromkeys((*self._written, *ends))), graph=False)
        self.passes["full"] += 1
        clean = base.logits(columns[0]).detach().float()
        if metrics is None:
            says = list(
                zip(
                    *(t.logits(c).argmax(-1).tolist() for t, c in zip((base, other), columns, strict=True)), strict=True
                )
            )
            check_told_apart(says, tokenizer)
            metrics = (answers_metric(says, tokenizer) or {})[""]
        moved = self._moved(base, other)
        total: Tensor | None = None
        for share, weight in self.how.weights() if self.how.method == "ig" else [(0.0, 1.0)]:
            changes = {end: towards(other.values[end], share) for end in ends}
            tape = base if share == 0 else self._record(inputs[0], list(dict.fromkeys(self._read)), changes)
            with torch.enable_grad():
                values = metric_values(metrics, tape.logits(columns[0]), clean)
            if not values.requires_grad:
                raise SpecError(f"the metric {name_of(metrics)} has no gradient, so edges cannot be scored by it")
            found = weight * torch.cat(list(self._contracted(tape, values.sum(), moved)))
            total = found if total is None else total + found
        assert total is not None
        return total.double().cpu(), list(metrics)

    def _record(self, inputs: Any, sites: list[Site], changes: Mapping[Site, Any]) -> Tape:
        self.passes["full"] += 1
        rules = BackwardRules(self.how.switches)
        tape = record(self.model, inputs, sites, graph=True, rules=rules, changes=changes)
        self.acted |= rules.acted
        return tape

    def _contracted(self, tape: Tape, total: Tensor, moved: Tensor) -> Iterator[Tensor]:
        """Yield the scores of the edges into each receiver, `(senders, pairs)`.

        Receivers that see the same senders are worked on together: their gradients alone exist at a time.
        """
        self.passes["backward"] += 1
        gradients = tape.gradients(total, list(dict.fromkeys(self._read)), again=True)
        lines = zip(self.graph.receivers, self.graph.visible, strict=True)
        for numbers, group in groupby(lines, key=itemgetter(1)):
            first = numbers == tuple(range(len(numbers)))
            senders = moved[:, : len(numbers)] if first else moved[:, list(numbers)]
            each = [self._gradient(tape, gradients, receiver).flatten(1) for receiver, _ in group]
            made = senders @ torch.stack(each, -1).to(senders.dtype)  # (pairs, senders, receivers)
            yield from made.permute(2, 1, 0).unbind(0)

    def _gradient(self, tape: Tape, gradients: Mapping[Site, Tensor], receiver: GraphNode) -> Tensor:
        """Return the gradient at what a receiver reads of the stream: back from the receiver, no further."""
        layer = receiver.layer
        if layer is None:
            return gradients[Site("block_output", len(self._blocks) - 1)]
        if receiver.kind == "block":
            return gradients[Site("block_input", layer)]
        block, part = self._blocks[layer], self._part(receiver)
        letter = receiver.name.partition("<")[2][:1]
        site = Site(_READS[letter] if letter else reads_at(block, part), layer)
        given = gradients[site]
        if letter:
            slot = find_slot(self.model, site)
            assert slot.heads is not None
            own = slot.heads.flatten() if receiver.number is None else slot.heads[receiver.number]
            mask = torch.zeros(given.shape[-1], dtype=torch.bool, device=given.device)
            mask[own.to(given.device)] = True
            given = given * mask
        stream = tape.nodes[self._stream(layer, part)]
        (found,) = torch.autograd.grad(tape.nodes[site], [stream], given, retain_graph=True)
        return found

    def _part(self, receiver: GraphNode) -> str:
        letter = {"a": "attention_output", "m": "mlp_output", "s": "mixer_output", "e": "moe_output"}
        return letter.get(receiver.name[0], "per_layer_mlp_output")

    def _stream(self, layer: int, part: str) -> Site:
        """Return the last summand of what a part of a block reads: its gradient is that of the sum."""
        first = next(
            n for n, node in enumerate(self.graph.receivers) if node.layer == layer and self._part(node) == part
        )
        seen = [self.graph.senders[number] for number in self.graph.visible[first]]
        own = [node for node in seen if node.layer == layer]
        if not own:
            return Site("block_input", layer)
        return Site(self._part(own[-1]).replace("_output", "_contribution"), layer)

    def _moved(self, base: Tape, other: Tape) -> Tensor:
        """Return what each sender adds in the source's run minus the base's, `(pairs, senders, tokens * width)`."""
        each: list[Tensor] = []
        for node in self.graph.senders:
            if node.kind == "head":
                if node.number == 0:
                    each += list(self._heads(base, other, node).unbind(-2))
                continue
            site = Site("block_input", 0)
            if node.layer is not None:
                name = "block_output" if node.kind == "block" else self._part(node).replace("_output", "_contribution")
                site = Site(name, node.layer)
            each.append(wide(other.values[site]) - wide(base.values[site]))
        return torch.stack([one.flatten(1) for one in each], 1)

    @torch.no_grad()
    def _heads(self, base: Tape, other: Tape, node: GraphNode) -> Tensor:
        """Return what the heads of a layer add in the source's run minus the base's, `(pairs, tokens, heads, size)`."""
        layer = int(node.layer or 0)
        z = Site("attention_value_output", layer)
        slot, share = _projected(find_slot(self.model, z)), resolve(self.model).find(Site("head_contribution", layer))
        assert slot.heads is not None
        shape, count = base.values[z].shape[:2], len(slot.heads)
        if share is not None:  # linear in z
            moved = (other.values[z] - base.values[z]).flatten(0, 1)
            return wide(shares_of(slot, moved) * share[0].scale).unflatten(-1, (count, -1)).unflatten(0, shape)
        added, given = (Site(name, layer) for name in ("attention_contribution", "attention_output"))
        norm, runs = find_slot(self.model, added).module, []
        for tape in (base, other):
            before, after = (tape.values[site].flatten(0, 1) for site in (given, added))
            if kind_of(norm, before) != "norm":
                raise SpecError(f"what each head of {self._blocks[layer].path} adds is not known: {node.note}")
            frozen = FrozenNorm(norm, before, after)
            shares = shares_of(slot, tape.values[z].flatten(0, 1)).unflatten(-1, (count, -1))
            runs.append(torch.stack([frozen(part) for part in shares.unbind(1)], 1).unflatten(0, shape))
        return wide(runs[1]) - wide(runs[0])


def _projected(slot: Slot) -> Slot:
    if slot.side != "input":
        raise SpecError(f"what the heads at {slot} add is not known: they are not what a projection reads")
    return slot

"""Edge attribution patching: what the source's value of a sender would do through one receiver alone, by gradient.

Syed et al. 2023, arXiv:2310.10348 (EAP); Hanna et al. 2024, arXiv:2403.17806 (EAP-IG).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .._bar import Tell, telling
from .._checked import checked
from .._errors import SpecError
from ..metrics import Metric, Metrics
from ..models import resolve
from ..models.sequence import examples_of
from ..sites import Site
from ..table import Table
from ._agreement import agreement, draw
from ._backward_rules import BackwardRules, Rule, switches_of
from ._data import PairedPrompt, Prompt
from ._estimates import How, towards
from ._experts import ExpertCalls, expert_modules
from ._made_with import made_with
from ._pairs import Pairs, pair_up
from ._prompts import ReadAt
from ._readers import readers_of
from ._scoring import Answer, answers_for, answers_metric, metric_values, metrics_for, name_of, own_answers_metric
from ._senders import Ran, Senders
from ._taped import embeddings_of, record
from .circuit_graph import CircuitGraph
from .circuits.circuit_runner import Answered, CircuitRunner, check_alike
from .graph import graph

_DRAWS = 200
_AT_ONCE = 4096
"""Edges whose intervals are worked out at a time."""


@checked
def edge_attribution(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    method: Literal["eap", "eap-ig", "eap-ig-activations"] = "eap",
    rule: Rule | Sequence[Rule] = "true",
    points: int = 5,
    metric: Metrics | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    at: ReadAt = -1,
    heads: bool = True,
    experts: bool = True,
    verify: int | None = None,
    at_once: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Table:
    """Score every edge of `graph(model)`: one receiver alone sees what a sender gives in the source.

    With z_u what a sender adds to the residual stream, and x_v what a receiver reads, the score of the edge from u to v
    is (z_u(source) - z_u(base)) . dm / dx_v, summed over tokens: queries, keys and values have an x_v of their own.

    Args:
        model: with one residual stream; not changed.
        base: as for `grid`; both prompts of a pair are of equal length.
        source: likewise.
        tokenizer: likewise.
        columns: likewise.
        method: `"eap"` takes the gradient at the base, `"eap-ig"` its mean over points between the embeddings of base
            and source, by the trapezoid rule, which visits both. `"eap-ig-activations"` takes it between the values of
            a part of a block (its heads, its MLP), all else as it is: a pass for each part and point.
        rule: of the backward pass, as for `attribution`.
        points: of integrated gradients.
        metric: as for `attribution`.
        answers: likewise.
        at: likewise.
        heads: as for `graph`: each head is a node; `False`: those of a block are one.
        experts: likewise of experts.
        verify: so many edges are measured exactly, each left out of a circuit of all others: half of them the
            strongest, the others drawn. `None`: 32 where a rule is used, else none.
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
    if at_once < 1 or points < 2 or seed < 0 or (verify or 0) < 0:
        numbers = f"{at_once}, {points}, {seed} and {verify}"
        raise SpecError(f"at_once is from 1, points from 2, seed and verify from 0; found {numbers}")
    pairs = pair_up(base, source, tokenizer, model, columns, None, None, None)
    given = metrics_for(metric, None, len(pairs), "pairs")
    named = answers_for(answers, pairs, given)
    wanted = given or answers_metric(named, tokenizer)
    along = "activations" if method == "eap-ig-activations" else "inputs"
    how = How("atp" if method == "eap" else "ig", along, points, switches=switches_of(rule))
    count = verify if verify is not None else 32 if how.switches else 0
    edges = EdgeScores(model, graph(model, heads=heads, experts=experts), how)
    answered = Answered(None if wanted is None else wanted[""], tokenizer, at)
    with telling("edge_attribution", progress) as tell:
        every, names = edges.of_pairs(pairs, answered, at_once, tell)
    BackwardRules(how.switches, edges.acted).check(rule)
    exact, check = _measured(edges, pairs, Answered(names, tokenizer, at), every.mean(1), count, at_once, seed)
    meta = {
        **made_with(model), "study": "edge_attribution", "method": method,
        "rule": rule if isinstance(rule, str) else list(rule),
        "acted": dict(edges.acted), "metric": name_of(names), "pairs": len(pairs), "passes": dict(edges.passes),
        "notes": edges.graph.notes, "graph": dict(edges.graph.facts), "seed": seed,
        "check": check,
        "base": list(pairs.base.texts), "source": list(pairs.source.texts),
    }  # fmt: skip
    columns_made = _columns(edges.graph, every, seed)
    return Table.from_columns(columns_made if exact is None else {**columns_made, "exact": exact}, meta=meta)


def _measured(
    edges: EdgeScores, pairs: Pairs, answered: Answered, scores: Tensor, count: int, at_once: int, seed: int
) -> tuple[Sequence[float | None] | None, dict[str, Any] | str]:
    """Return what some edges do exactly, `None` for the others, and how well scores agree with it.

    Args:
        edges: that were scored.
        pairs: of prompts.
        answered: what is measured.
        scores: `(edges,)`.
        count: how many are measured.
        at_once: pairs of a pass.
        seed: of the drawing.
    """
    if not count:
        return None, "not checked: scores of edges are estimates by gradient (verify=32 measures some)"
    drawn = draw(scores.abs().tolist(), -(-count // 2), count // 2, seed)
    runner = CircuitRunner(edges.model, edges.graph, pairs, answered, at_once=at_once)
    kept = torch.ones(len(drawn.each), len(scores), dtype=torch.bool)
    kept[torch.arange(len(drawn.each)), torch.tensor(drawn.each)] = False
    effects = (runner.measure(kept) - runner.ends[0]).mean(1).tolist()
    edges.passes += runner.passes
    column: list[float | None] = [None] * len(scores)
    for edge, effect in zip(drawn.each, effects, strict=True):
        column[edge] = effect
    return column, agreement(drawn, scores[list(drawn.each)].tolist(), effects, seed)


def _columns(made: CircuitGraph, scores: Tensor, seed: int) -> dict[str, Sequence[Any]]:
    """Return the columns of the table, a row an edge; scores are `(edges, pairs)`."""
    count, names = scores.shape[1], [node.name for node in made.senders]
    columns: dict[str, Sequence[Any]] = {
        "sender": [names[number] for numbers in made.visible for number in numbers],
        "receiver": [node.name for node, seen in zip(made.receivers, made.visible, strict=True) for _ in seen],
        "score": scores.mean(1).tolist(), "low": [None] * len(scores), "high": [None] * len(scores),
        "n": [count] * len(scores),
    }  # fmt: skip
    if count > 1:
        drawn = np.random.default_rng(seed).integers(count, size=(_DRAWS, count))
        weights = np.stack([np.bincount(one, minlength=count) for one in drawn], 1) / count
        ends = [_quantiles(part.numpy() @ weights, (0.025, 0.975)) for part in scores.split(_AT_ONCE)]
        columns["low"], columns["high"] = np.concatenate(ends, 1).tolist()
    return columns


def _quantiles(drawn: Any, shares: Sequence[float]) -> Any:
    """Return quantiles of each line, `(shares, lines)`, between two numbers where they fall there. Sorts the lines.

    NumPy does that far quicker than `torch.quantile`.
    """
    drawn.sort(axis=1)
    places = [share * (drawn.shape[1] - 1) for share in shares]
    below = [int(place) for place in places]
    parts = (np.asarray(places) - below)[:, None]
    lower, upper = drawn.T[below], drawn.T[[number + 1 for number in below]]
    return lower + parts * (upper - lower)


@dataclass(eq=False)
class EdgeScores:
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
        split = any(node.kind == "expert" for node in self.graph.senders)
        self._experts = expert_modules(resolve(self.model).stacks[""] if split else ())
        self._senders = Senders(self.model, self.graph.senders)
        self._readers = readers_of(self.model, self.graph, "norm" in self.how.switches)

    def of_pairs(self, pairs: Pairs, answered: Answered, at_once: int, tell: Tell) -> tuple[Tensor, list[Metric]]:
        """Return the scores of all edges, `(edges, pairs)`, and the metrics that were taken.

        Args:
            pairs: of prompts.
            answered: what is measured of them.
            at_once: how many are worked on at a time.
            tell: called with the pairs that are done, and all.

        Raises:
            PositionError: prompts of a pair differ in length or padding.
        """
        check_alike(pairs)
        scores, names = [], []
        sides, wanted = (pairs.base, pairs.source), answered.metrics
        for start in range(0, len(pairs), at_once):
            chosen = range(start, min(len(pairs), start + at_once))
            inputs = [examples_of(side.inputs, chosen) for side in sides]
            reads = [[side.columns(answered.at)[pair] for pair in chosen] for side in sides]
            own = None if wanted is None else [wanted[pair] for pair in chosen]
            found, used = self.scores(inputs, reads, own, answered.tokenizer)
            scores.append(found)
            names += used
            tell(chosen.stop, len(pairs), "pairs")
        return torch.cat(scores, 1), names

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
        inside = self.how.along == "activations"
        ends = embeddings_of(self.model) if self.how.method == "ig" and not inside else []
        written, read = [*self._senders.sites(), *ends], [site for one in self._readers for site in one.sites()]
        base = self._ran(inputs[0], [*written, *read], graph=True)
        other = self._ran(inputs[1], written, graph=False)
        clean = base.tape.logits(columns[0]).detach().float()
        if metrics is None:
            metrics = own_answers_metric(clean, other.tape.logits(columns[1]), tokenizer)
        self._senders.look(base)
        moved = self._senders.moved(base, other)

        def slopes(ran: Ran) -> Iterator[Tensor]:
            with torch.enable_grad():
                values = metric_values(metrics, ran.tape.logits(columns[0]), clean)
            if not values.requires_grad:
                raise SpecError(f"the metric {name_of(metrics)} has no gradient, so edges cannot be scored by it")
            return self._gradients(ran, values.sum())

        if self.how.method != "ig":
            return self._contracted(slopes(base), moved), list(metrics)
        (_, first), *rest = self.how.weights()
        start = list(slopes(base))
        total: Tensor | None = None
        for sites, senders in self._senders.parts() if inside else [(ends, list(range(len(moved))))]:
            sums = [first * one for one in start]
            for share, weight in rest:
                changes = {site: towards(other.tape.values[site], share) for site in sites}
                ran = self._ran(inputs[0], read, graph=True, changes=changes)
                for kept, one in zip(sums, slopes(ran), strict=True):
                    kept.add_(one, alpha=weight)
            only = (
                torch.zeros_like(moved).index_copy_(0, torch.tensor(senders, device=moved.device), moved[senders])
                if inside
                else moved
            )
            found = self._contracted(sums, only)
            total = found if total is None else total + found
        assert total is not None
        return total, list(metrics)

    def _ran(
        self, inputs: Any, sites: Sequence[Site], *, graph: bool, changes: Mapping[Site, Any] | None = None
    ) -> Ran:
        self.passes["full"] += 1
        rules, calls = BackwardRules(self.how.switches), ExpertCalls(self._experts)
        kept = list(dict.fromkeys(sites))
        tape = record(
            self.model, inputs, kept, graph=graph, rules=rules if graph else None, changes=changes, within=calls.watched
        )
        self.acted |= rules.acted
        return Ran(tape, calls)

    def _gradients(self, ran: Ran, total: Tensor) -> Iterator[Tensor]:
        """Yield for each reader the gradient at what each of its receivers reads, `(receivers, tokens, width)`."""
        self.passes["backward"] += 1
        needing = [one for one in self._readers if one.needs_graph(ran.tape)]
        nodes: dict[Any, Tensor] = {site: ran.tape.nodes[site] for one in self._readers for site in one.asked()}
        for layer, read in ran.calls.read.items():
            nodes |= {(layer, choice): node for choice, node in enumerate(read)}
        found = torch.autograd.grad(total, list(nodes.values()), allow_unused=True, retain_graph=bool(needing))
        pairs = zip(nodes.items(), found, strict=True)
        gradients = {key: torch.zeros_like(node) if one is None else one for (key, node), one in pairs}
        for reader in self._readers:
            yield reader.gradient(ran.tape, gradients, ran.calls)

    def _contracted(self, gradients: Iterable[Tensor], moved: Tensor) -> Tensor:
        """Return the scores of all edges, `(edges, pairs)`."""
        senders, scores = moved.flatten(2).transpose(0, 1), []
        for reader, each in zip(self._readers, gradients, strict=True):
            count = len(reader.visible)
            seen = slice(count) if reader.visible == tuple(range(count)) else list(reader.visible)
            made = torch.bmm(senders[:, seen], each.unflatten(1, (len(senders), -1)).flatten(2).permute(1, 2, 0))
            scores.append(made.permute(2, 1, 0).flatten(0, 1))  # was (pairs, senders, receivers)
        return torch.cat(scores).double().cpu()

"""The search for a circuit: what is measured, how it is scored, what is kept, and what is told of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..._bar import Tell
from ...metrics import Metric, kl_to_clean
from ...models.fingerprint import digest, fingerprint
from ...table import Table
from .._estimates import How
from .._made_with import made_with
from .._pairs import Pairs
from .._prompts import Prompts, ReadAt
from .._scoring import name_of
from ..circuit_graph import CircuitGraph
from ..edge_attribution import EdgeScores
from ..graph import graph
from .acdc import Order, Trying, acdc, order_of
from .circuit import Circuit, connected
from .circuit_runner import Ablation, Answered, CircuitRunner
from .hashes import data_hash, pair_hashes
from .masks import Learning, Masks, learn
from .neurons import NeuronRunner
from .resuming import SearchFolder
from .selecting import beyond, greedy, shortest, strongest
from .tied import NodeRunner

SearchMethod = Literal["eap", "eap-ig", "exact", "acdc", "masks"]
Level = Literal["edges", "nodes", "neurons"]
_NESTED, _GROWS = 64, 1.25
"""Sizes of nested circuits that are all measured, and how they grow beyond that."""


@dataclass(frozen=True)
class _Distance:
    """How far a metric is from that of the whole model."""

    function: Callable[..., Tensor]
    compares: bool

    def __call__(self, logits: Tensor, clean: Tensor) -> Tensor:
        if self.compares:
            return self.function(logits, clean).abs()
        return (self.function(logits) - self.function(clean)).abs()


def distances(metrics: Sequence[Metric] | None, count: int) -> list[Metric]:
    """Return of each pair how far a circuit is from the whole model.

    Args:
        metrics: of each, whose change it is; `None`: the divergence of the distribution of the next token.
        count: of pairs.
    """
    if metrics is None:
        return [kl_to_clean()] * count
    made = {
        id(one): Metric(f"|change of {one.name}|", _Distance(one.function, one.compares), one.tokens, compares=True)
        for one in metrics
    }
    return [made[id(one)] for one in metrics]


@dataclass(frozen=True)
class Wanted:
    """What is asked for, as `circuit` has it.

    Args:
        method: how edges are chosen.
        level: of what the circuit is.
        heads: each is a node.
        experts: likewise.
        count: how many are kept.
        threshold: what is kept.
        select: the strongest, or greedily from the logits down.
        signed: the sign of scores counts.
        orders: of ACDC.
        points: of `eap-ig`.
        steps: of masks.
        rate: of masks.
        ablation: what stands for what is absent.
        seed: of all that is by chance.
    """

    method: SearchMethod
    level: Level
    heads: bool
    experts: bool
    count: int | None
    threshold: float | None
    select: str
    signed: bool
    orders: tuple[Order, ...]
    points: int
    steps: int
    rate: float
    ablation: Ablation
    seed: int


@dataclass(eq=False)
class CircuitSearch:
    """Finds a circuit.

    Args:
        model: the user's.
        pairs: of prompts.
        wanted: what is asked for.
        metrics: of each pair; `None`: none is given.
        at: where logits are read.
        tokenizer: for messages.
        reference: prompts whose mean stands for what is absent.
        at_once: how many pairs are run together.
        store: a folder to go on from.
        tell: called with what is done, of how much, and words.
    """

    model: nn.Module
    pairs: Pairs
    wanted: Wanted
    metrics: Sequence[Metric] | None
    at: ReadAt
    tokenizer: Any
    reference: Prompts | None
    at_once: int
    store: Any
    tell: Tell
    passes: Counter[str] = field(default_factory=Counter)

    def result(self) -> Circuit | Table:
        """Return what is found."""
        started = time.perf_counter()
        find = {"acdc": self._by_trying, "masks": self._by_masks}.get(self.wanted.method, self._by_scores)
        kept, scores, told = find()
        facts = {**self._facts(), **told, "seconds": time.perf_counter() - started}
        return self._made(kept, scores, facts)

    # --- what is run --------------------------------------------------------------------------------------------------

    @cached_property
    def graph(self) -> CircuitGraph:
        """The model's."""
        return graph(self.model, heads=self.wanted.heads, experts=self.wanted.experts)

    @cached_property
    def runner(self) -> CircuitRunner | NodeRunner:
        """What runs circuits of this level."""
        moved = self.wanted.method in ("acdc", "masks")
        metrics = distances(self.metrics, len(self.pairs)) if moved else self.metrics
        answered = Answered(metrics, self.tokenizer, self.at)
        rest = (self.wanted.ablation, self.reference, self.at_once)
        if self.wanted.level == "neurons":
            return NeuronRunner(self.model, self.graph, self.pairs, answered, *rest)
        made = CircuitRunner(self.model, self.graph, self.pairs, answered, *rest)
        return NodeRunner(made) if self.wanted.level == "nodes" else made

    @cached_property
    def folder(self) -> SearchFolder:
        """Where it is kept how far the search is."""
        if self.store is None:
            return SearchFolder(None, {})
        means = None if self.reference is None else self.reference.tokens("").ids
        asked = (self.wanted, self.at_once, self.pairs.base.columns(self.at), self.metrics, means)
        facts = {"model": fingerprint(self.model), "data": self._data, "asked": digest(asked, "what is asked for")}
        return SearchFolder(self.store, facts)

    # --- scores -------------------------------------------------------------------------------------------------------

    def _by_scores(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        scores = self._exact() if self.wanted.method == "exact" else self._estimated()
        worth, direction = scores.abs(), None
        if self.wanted.signed:
            full, empty = (end.mean().item() for end in self.runner.ends)
            direction = 1 if empty >= full else -1
            worth = scores * direction
        kept, selection = self._chosen(worth)
        told = {"signed": self.wanted.signed, "direction": direction}
        means = "change of the metric's mean over pairs without it"
        sure = "exact" if self.wanted.method == "exact" else "estimated by gradient, not checked"
        return kept, scores, {"selection": {**selection, **told}, "scores": f"{means}: {sure}"}

    def _estimated(self) -> Tensor:
        """Return what the metric changes without each, by gradient."""
        wanted, ig = self.wanted, self.wanted.method == "eap-ig"
        if wanted.level != "neurons" and wanted.ablation == "resample":
            edges = EdgeScores(self.model, self.graph, How("ig" if ig else "atp", points=wanted.points))
            answered = Answered(self.metrics, self.tokenizer, self.at)
            scores = edges.of_pairs(self.pairs, answered, self.at_once, self.tell)[0].mean(1)
            self.passes.update(edges.passes)
            return self.runner.gathered(scores) if wanted.level == "nodes" else scores  # type: ignore[union-attr]
        if isinstance(self.runner, NeuronRunner):
            return self.runner.scores(How("ig" if ig else "atp", points=wanted.points))
        _, gradient = self.runner.gradient(torch.ones(self.runner.count))
        return -gradient.double() / len(self.pairs)

    def _exact(self) -> Tensor:
        """Return what the metric changes without each, one absent at a time."""
        runner, count = self.runner, self.runner.count
        stood = self.folder.load("exact")
        found = torch.zeros(0, dtype=torch.float64) if stood is None else stood.tensors["found"]
        words = f"{count} circuits, {-(-count // runner.width) * runner.chunks} passes"
        self.tell(len(found), count, words)
        while len(found) < count:
            some = range(len(found), min(count, len(found) + runner.width))
            kept = torch.ones(len(some), count, dtype=torch.bool)
            kept[range(len(some)), some] = False
            found = torch.cat([found, runner.measure(kept).mean(1)])
            self.folder.save("exact", {"found": found}, {})
            self.tell(len(found), count, words)
        return found - runner.ends[0].mean()

    def _chosen(self, worth: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return what is kept of what is worth so much, and how it was chosen."""
        wanted = self.wanted
        rule: dict[str, Any] = {"rule": wanted.select, "asked": wanted.count, "threshold": wanted.threshold}
        if wanted.level == "edges" and wanted.count is None:
            assert wanted.threshold is not None
            kept, ranked = beyond(self.graph, worth, wanted.threshold)
        elif wanted.level == "edges":
            order = greedy(self.graph, worth) if wanted.select == "greedy" else strongest(worth)
            kept, ranked = shortest(self.graph, order, wanted.count or 0)
        else:
            kept = worth >= (0.0 if wanted.threshold is None else wanted.threshold)
            if wanted.count is not None:
                kept = torch.zeros_like(kept)
                kept[strongest(worth)[: wanted.count]] = True
            ranked = int(kept.sum())
        return kept, {**rule, "ranked": ranked, "kept": int(kept.sum())}

    # --- ACDC ---------------------------------------------------------------------------------------------------------

    def _by_trying(self) -> tuple[Tensor, None, dict[str, Any]]:
        found = [self._tried(number, order) for number, order in enumerate(self.wanted.orders)]
        first = self._pruned(found[0].kept)
        told = []
        for order, one in zip(self.wanted.orders, found, strict=True):
            kept = self._pruned(one.kept)
            same, either = int((kept & first).sum()), int((kept | first).sum())
            told.append({
                "order": order, "tried": one.done, "passes": one.passes, "kept": int(kept.sum()),
                "shared with the first": same, "overlap": same / either if either else 1.0, "distance": one.distance,
            })  # fmt: skip
        return first, None, {"threshold": self.wanted.threshold, "orders": told, "distance": self._distance(first)}

    def _tried(self, number: int, order: Order) -> Trying:
        runner, part = self.runner, f"order-{number}"
        stood = self.folder.load(part)
        at = Trying(torch.ones(runner.count, dtype=torch.bool))
        if stood is not None:
            at = Trying(stood.tensors["kept"], **stood.data)
        name = f"order {number + 1} of {len(self.wanted.orders)}: "

        def after(now: Trying) -> None:
            state = {"done": now.done, "distance": now.distance, "passes": now.passes, "ahead": now.ahead}
            self.folder.save(part, {"kept": now.kept}, state)
            self.tell(now.done, runner.count, f"{name}{int(now.kept.sum())} left, {now.passes} passes")

        numbers = order_of(order, runner.count, self.wanted.seed)
        threshold, edges = self.wanted.threshold or 0.0, self.graph if self.wanted.level == "edges" else None
        return acdc(runner, numbers, threshold, at, graph=edges, after=after)

    # --- masks --------------------------------------------------------------------------------------------------------

    def _by_masks(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        wanted, stood = self.wanted, self.folder.load("masks")
        at = Masks.fresh(self.runner.count)
        if stood is not None:
            at = Masks(stood.tensors, stood.data["done"], stood.data["loss"])

        def after(now: Masks) -> None:
            self.folder.save("masks", now.tensors, {"done": now.done, "loss": now.loss})
            self.tell(now.done, wanted.steps, f"{now.expected:.1f} left, distance {now.loss[-1]:.3g}")

        how = Learning(wanted.count, wanted.threshold or 0.0, wanted.steps, wanted.rate, wanted.seed)
        learn(self.runner, how, at, after)
        if wanted.count is not None:
            kept, selection = self._chosen(at.scores)
        else:
            kept, selection = self._cheapest(at.scores, how.price)
        told = {
            "selection": selection, "scores": "mean over steps of what was learned of its mask",
            "target": wanted.count, "price": wanted.threshold, "steps": at.done, "rate": wanted.rate,
            "expected": at.expected, "open": int((at.tensors["a"] > 0).sum()), "loss": at.loss[-1],
            "distance": self._distance(kept),
        }  # fmt: skip
        return kept, at.scores, told

    def _cheapest(self, scores: Tensor, price: float) -> tuple[Tensor, dict[str, Any]]:
        """Return the one of nested circuits whose distance, and the price of what it has, are least: exactly."""
        each: list[Tensor] = []
        order = strongest(scores)
        for size in _sizes(len(order)):
            kept = torch.zeros(len(order), dtype=torch.bool)
            kept[order[:size]] = True
            kept = self._pruned(kept)
            if not each or not torch.equal(kept, each[-1]):
                each.append(kept)
        found: list[float] = []
        width = self.runner.width
        for start in range(0, len(each), width):
            found += self.runner.measure(torch.stack(each[start : start + width])).mean(1).tolist()
        costs = [distance + price * int(kept.sum()) for distance, kept in zip(found, each, strict=True)]
        best = min(range(len(costs)), key=costs.__getitem__)
        return each[best], {"rule": "cheapest", "price": price, "nested": len(each), "kept": int(each[best].sum())}

    # --- what is told -------------------------------------------------------------------------------------------------

    def _pruned(self, kept: Tensor) -> Tensor:
        return connected(self.graph, kept) if self.wanted.level == "edges" else kept

    def _distance(self, kept: Tensor) -> float:
        return float(self.runner.measure(kept[None]).mean())

    @cached_property
    def _hashes(self) -> list[str]:
        return pair_hashes(self.pairs)

    @property
    def _data(self) -> str:
        return data_hash(self._hashes)

    def _facts(self) -> dict[str, Any]:
        wanted = self.wanted
        runs = self.runner if "runner" in vars(self) else None
        passes = self.passes + (Counter() if runs is None else runs.passes)
        metrics = self.metrics
        if wanted.method in ("acdc", "masks"):
            metrics = distances(metrics, len(self.pairs))
        notes = {**self.graph.notes, **(runs.missing if isinstance(runs, NeuronRunner) else {})}
        return {
            **made_with(self.model), "study": "circuit", "method": wanted.method, "level": wanted.level,
            "ablation": wanted.ablation, "pairs": len(self.pairs), "data": self._data, "pair_hashes": self._hashes,
            "metric": "logit of the source's answer minus the base's, as the model says them"
            if metrics is None else name_of(metrics),
            "passes": dict(passes), "seed": wanted.seed, "notes": notes,
        }  # fmt: skip

    def _made(self, kept: Tensor, scores: Tensor | None, facts: Mapping[str, Any]) -> Circuit | Table:
        if self.wanted.level == "edges":
            return Circuit(self.graph, kept, scores, facts)
        runner = self.runner
        if isinstance(runner, NeuronRunner):
            values = [None] * len(kept) if scores is None else scores.tolist()
            each = zip(runner.rows(), values, kept.tolist(), strict=True)
            return Table.from_rows([{**row, "score": score, "kept": here} for row, score, here in each], meta=facts)
        assert isinstance(runner, NodeRunner)
        told = {} if scores is None else dict(zip(runner.names, scores.tolist(), strict=True))
        names = [name for name, here in zip(runner.names, kept.tolist(), strict=True) if here]
        edges = connected(self.graph, runner.between(kept))
        return Circuit(self.graph, edges, None, {**facts, "nodes": names, "node_scores": told})


def _sizes(count: int) -> Iterator[int]:
    """Yield sizes from none to all: each up to some, then ever larger steps.

    >>> list(_sizes(3)), len(list(_sizes(70_000)))
    ([0, 1, 2, 3], 97)
    """
    size = 0
    while size < count:
        yield size
        size = size + 1 if size < _NESTED else int(size * _GROWS)
    yield count

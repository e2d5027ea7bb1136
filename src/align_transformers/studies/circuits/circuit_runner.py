"""`CircuitRunner`: what circuits are worth on some pairs of prompts, exactly, with all that they share run once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..._errors import PositionError, SpecError
from ...metrics import Metric
from ...models.sequence import examples_of
from .._pairs import Pairs
from .._prompts import Prompts, ReadAt
from .._scoring import metric_values, own_answers_metric
from ..circuit_graph import CircuitGraph
from .exact import CircuitPass, RecordedRun, Replacement, record_run, shares_in
from .wiring import Wiring, wire

Ablation = Literal["resample", "mean", "mean by position", "zero"]
"""What a receiver gets of a sender whose edge is absent: its value in the other run, its mean, or nothing."""
_ROWS = 2**23
"""Numbers of a buffer up to which circuits are copies in one pass: there a pass is mostly overhead."""


@dataclass(frozen=True)
class Answered:
    """What is measured of the pairs.

    Args:
        metrics: of each pair; `None`: the logit of the source's answer minus the base's, as the model gives them.
        tokenizer: for messages.
        at: where logits are read.
    """

    metrics: Sequence[Metric] | None = None
    tokenizer: Any = None
    at: ReadAt = -1


@dataclass(frozen=True, eq=False)
class PairChunk:
    """Some pairs that are run together.

    Args:
        inputs: of the model, the bases'.
        columns: where the logits of each are read.
        clean: `(pairs, vocab)` of the unedited bases.
        metrics: of each pair.
        replacement: what stands for absent edges.
        empty: the metric of each pair without any edge; `None`: it is not known without a pass.
    """

    inputs: Any
    columns: tuple[int, ...]
    clean: Tensor
    metrics: Sequence[Metric]
    replacement: Replacement
    empty: Tensor | None


@dataclass(eq=False)
class CircuitRunner:
    """Runs circuits of a model on some pairs.

    Args:
        model: the user's; it is not changed.
        graph: of it, with one key and value a kv head.
        pairs: base and source of each of equal length, padded alike.
        wanted: what is measured.
        ablation: what stands for an absent edge.
        reference: prompts whose mean stands for them; default: the sources.
        at_once: pairs that are run together; memory grows with it.
        memory: bytes of recorded runs that are kept between calls; beyond that they are made again.

    Attributes:
        passes: how many forward and backward passes were made, by kind.

    Raises:
        SpecError: nodes of the graph cannot be run by themselves, or the metric needs answers that are the same.
        PositionError: prompts of a pair differ in length or padding.
    """

    model: nn.Module
    graph: CircuitGraph
    pairs: Pairs
    wanted: Answered = field(default_factory=Answered)
    ablation: Ablation = "resample"
    reference: Prompts | None = None
    at_once: int = 16
    memory: int = 2**30
    passes: Counter[str] = field(default_factory=Counter)
    units: ClassVar[str] = "edges"

    def __post_init__(self) -> None:
        check_alike(self.pairs)
        self.wiring: Wiring = wire(self.model, self.graph)
        self._where = self.wiring.valid.nonzero(as_tuple=True)
        self._start()

    def _start(self) -> None:
        self._kept: dict[int, PairChunk] = {}
        self._room = self.memory
        self._shares: Replacement | None = None

    def absent(self, kept: Tensor) -> Tensor:
        """Return which edges are absent as a matrix `(..., receivers, senders)`.

        Args:
            kept: `(..., edges)` booleans, or how much of each edge there is, from 0 to 1; in the order of
                `graph.edges()`.
        """
        matrix = torch.zeros(*kept.shape[:-1], *self.wiring.valid.shape)
        matrix[..., self._where[0], self._where[1]] = 1.0 - kept.float()
        return matrix

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The metric of each pair with all edges and with none, both `(pairs,)`."""
        none = torch.zeros(1, self.count, dtype=torch.bool)
        full = torch.cat([self._value(chunk, chunk.clean, 1) for chunk in self._chunks()])
        known = [chunk.empty for chunk in self._chunks()]
        return full, self.measure(none)[0] if any(one is None for one in known) else torch.cat(known)  # type: ignore[arg-type]

    @torch.no_grad()
    def measure(self, kept: Tensor) -> Tensor:
        """Return what circuits are worth on each pair, `(circuits, pairs)`.

        Args:
            kept: `(circuits, edges)` booleans.
        """
        if kept.ndim != 2 or kept.shape[1] != self.count:
            raise SpecError(f"kept is (circuits, {self.count} {self.units}); found {tuple(kept.shape)}")
        found = []
        for chunk in self._chunks():
            size = len(chunk.columns)
            parts = [self._measured(chunk, self.absent(some), size) for some in kept.split(self._copies(size))]
            found.append(torch.cat(parts))
        return torch.cat(found, 1)

    def gradient(self, kept: Tensor, which: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the metric of each pair and the gradient of its sum by how much of each edge there is.

        Args:
            kept: `(edges,)` from 0 to 1.
            which: numbers of chunks (see `chunks`); default: all.

        Returns:
            `(pairs,)` and `(edges,)`.
        """
        values, total = [], torch.zeros(self.count)
        for number in range(self.chunks) if which is None else which:
            chunk = self._chunk(number)
            absent = self.absent(kept)[None].requires_grad_()
            self.passes["circuit"] += 1
            self.passes["backward"] += 1
            with torch.enable_grad():
                logits = self._logits(chunk, chunk.inputs, absent, graph=True)
                value = metric_values(chunk.metrics, logits.float(), chunk.clean)
                (made,) = torch.autograd.grad(value.sum(), [absent])
            values.append(value.detach().cpu())
            total -= self._listed(made[0]).cpu()
        return torch.cat(values), total

    @property
    def count(self) -> int:
        """How many edges there are."""
        return len(self.graph)

    @property
    def width(self) -> int:
        """How many circuits are copies of one pass."""
        return self._copies(min(self.at_once, len(self.pairs)))

    @property
    def chunks(self) -> int:
        """How many parts the pairs are run in."""
        return -(-len(self.pairs) // self.at_once)

    def of_chunk(self, number: int) -> range:
        """Return the numbers of the pairs of a chunk."""
        return range(number * self.at_once, min((number + 1) * self.at_once, len(self.pairs)))

    # --- passes -------------------------------------------------------------------------------------------------------

    def _measured(self, chunk: PairChunk, absent: Tensor, size: int) -> Tensor:
        """Return what some circuits are worth, copies of one pass, `(circuits, pairs)`."""
        copies = len(absent)
        inputs = examples_of(chunk.inputs, [*range(size)] * copies if copies > 1 else None)
        self.passes["circuit"] += 1
        logits = self._logits(chunk, inputs, absent)
        return self._value(chunk, logits, copies).view(copies, size)

    def _logits(self, chunk: PairChunk, inputs: Any, absent: Tensor, *, graph: bool = False) -> Tensor:
        """Return the logits of some circuits, copies of one pass."""
        run = CircuitPass(self.model, self.wiring, chunk.replacement, absent, graph=graph)
        return run.run(inputs, chunk.columns * len(absent))

    def _listed(self, matrix: Tensor) -> Tensor:
        """Return the entries of a matrix as `absent` makes it, `(edges,)`."""
        return matrix[self._where[0], self._where[1]]

    def _recorded(self, inputs: Any) -> RecordedRun:
        """Run the model and return what stands for absent edges, if it is to be had of this run."""
        return record_run(self.model, self.wiring, inputs)

    def _written(self, run: RecordedRun) -> Mapping[int, Tensor]:
        """Return what each sender adds in a run, as `shares_in` does."""
        return shares_in(self.wiring, run)

    def _value(self, chunk: PairChunk, logits: Tensor, copies: int) -> Tensor:
        clean = chunk.clean.repeat(copies, 1) if copies > 1 else chunk.clean
        return metric_values([*chunk.metrics] * copies, logits.detach().float(), clean).double().cpu()

    def _copies(self, size: int) -> int:
        """Return how many circuits are copies in one pass of so many pairs."""
        tokens = size * self.pairs.base.tokens("").length
        width = int(self.graph.facts.get("d_model") or 1024)
        return max(1, min(64, _ROWS // (len(self.graph.senders) * tokens * width)))

    def _chunks(self) -> Iterator[PairChunk]:
        return map(self._chunk, range(self.chunks))

    def _chunk(self, number: int) -> PairChunk:
        """Return some pairs, with what was recorded of them."""
        if number in self._kept:
            return self._kept[number]
        which = self.of_chunk(number)
        sides = self.pairs.base, self.pairs.source
        bases, sources = (examples_of(side.inputs, which) for side in sides)
        columns, others = (tuple(side.columns(self.wanted.at)[one] for one in which) for side in sides)
        resampled, plain = self.ablation == "resample", Wiring((), (), torch.zeros(0, 0))
        base = record_run(self.model, plain, bases)
        source = self._recorded(sources) if resampled else record_run(self.model, plain, sources)
        self.passes["full"] += 2
        clean, other = base.tape.logits(columns).float(), source.tape.logits(others).float()
        metrics = self._metrics(clean, other, which)
        replacement = Replacement(source) if resampled else self._means()
        empty = metric_values(metrics, other, clean).double().cpu() if resampled else None
        made = PairChunk(bases, columns, clean, metrics, replacement, empty)
        held = (*source.values.values(), *source.experts.values())
        size = sum(value.numel() * value.element_size() for value in held)
        if size <= self._room:
            self._room -= size
            self._kept[number] = made
        return made

    def _metrics(self, clean: Tensor, other: Tensor, which: Sequence[int]) -> Sequence[Metric]:
        if self.wanted.metrics is not None:
            return [self.wanted.metrics[one] for one in which]
        return own_answers_metric(clean, other, self.wanted.tokenizer)

    def _means(self) -> Replacement:
        """Return what stands for absent edges where that is not another run, the same for all pairs."""
        if self._shares is None:
            prompts = self.pairs.source if self.reference is None else self.reference
            self._shares = Replacement(shares=self._averaged(prompts))
        return self._shares

    def _averaged(self, prompts: Prompts) -> Mapping[int, Tensor]:
        """Return the mean of what each sender adds, over real tokens or at each column, or zeros."""
        tokens, by_position = prompts.tokens(""), self.ablation == "mean by position"
        lengths = {len(ids) for ids in (*tokens.ids, *self.pairs.base.tokens("").ids)}
        if by_position and len(lengths) > 1:
            raise PositionError(f"a mean by position needs prompts of one length; found {sorted(lengths)} tokens")
        total: dict[int, Tensor] = {}
        count = 0
        for start in range(0, len(prompts), self.at_once):
            which = range(start, min(len(prompts), start + self.at_once))
            run = self._recorded(examples_of(prompts.inputs, which))
            self.passes["full"] += 1
            real = torch.zeros(len(which), tokens.length, dtype=torch.bool)
            for row, one in enumerate(which):
                real[row, tokens.starts[one] : tokens.starts[one] + len(tokens.ids[one])] = True
            for first, shares in self._written(run).items():
                seen = shares.float() * real.to(shares.device)[None, :, :, None]
                total[first] = total.get(first, 0) + seen.sum((1,) if by_position else (1, 2), keepdim=True)
            count += len(which) if by_position else int(real.sum())
            if self.ablation == "zero":
                return {first: torch.zeros_like(one[:, :, :1]) for first, one in total.items()}
        return {first: one / count for first, one in total.items()}


def check_alike(pairs: Pairs) -> None:
    """Refuse pairs whose prompts do not answer to each other token by token.

    Raises:
        PositionError: prompts of a pair differ in length or padding.
    """
    base, source = pairs.sides("")
    for number in range(len(pairs)):
        same = len(base.ids[number]) == len(source.ids[number]) and base.starts[number] == source.starts[number]
        if not same:
            raise PositionError(
                f"pair {number}: the base has {len(base.ids[number])} tokens from column {base.starts[number]}, the "
                f"source {len(source.ids[number])} from {source.starts[number]}: edges are told token by token, so "
                "prompts of a pair are of equal length and padded alike"
            )

"""How good a circuit is, measured exactly: what it keeps, what is left without it, and what other circuits keep.

Wang et al. 2022, arXiv:2211.00593 (faithfulness, completeness, minimality); Mueller et al. 2025, arXiv:2504.13151.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..._bar import telling
from ..._checked import checked
from ..._errors import SpecError
from ...metrics import Metrics
from ...table import Table
from .._data import PairedPrompt, Prompt
from .._made_with import made_with
from .._pairs import pair_up
from .._prompts import ReadAt, encode
from .._scoring import Answer, answers_for, answers_metric, metrics_for, name_of
from ..graph import graph
from .circuit import Circuit, connected
from .circuit_runner import Ablation, Answered, CircuitRunner
from .faithfulness import Faithfulness
from .held_out import HeldOut, chosen, some_pairs
from .sizes import SIZES, ParameterShare, areas, at_random, auroc, nested

_FEW = 64
"""Edges of a circuit up to which each is left out in turn, if nothing else is said."""
_TOGETHER = 8
"""Circuits that are handed to the runner at a time: progress is told between them."""
_BY_SIZE = ("top by score", "top by |score|", "random of a size")


@checked
def evaluate_circuit(
    model: nn.Module,
    circuit: Circuit,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    ablation: Ablation | None = None,
    reference: Prompt | None = None,
    metric: Metrics | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    at: ReadAt = -1,
    held_out: bool = True,
    sizes: Sequence[float] = SIZES,
    controls: int = 5,
    minimality: bool | None = None,
    truth: Circuit | Sequence[tuple[str, str]] | None = None,
    at_once: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Table:
    """Measure what a circuit keeps of what the model does, each number by running that circuit exactly.

    With m the metric, N the whole model and 0 the circuit without edges, the faithfulness of C is the ratio of means
    over pairs f(C) = mean(m(C) - m(0)) / mean(m(N) - m(0)); of each pair by itself it is in `each`, and their median
    beside it. With C_k the circuit of the k strongest edges, pruned to what is connected, and k the shares `sizes`,
    CPR is the integral of f(C_k) over k, edges taken by score, and CMD that of |1 - f(C_k)|, by |score|. CPR rewards a
    circuit that overdoes what the model does, so it stands beside CMD and the range of f.

    Args:
        model: with one residual stream; not changed.
        circuit: of it.
        base: as for `grid`; both prompts of a pair are of equal length.
        source: likewise.
        tokenizer: likewise.
        columns: likewise.
        ablation: what a receiver gets of a sender whose edge is absent: `"resample"` its value in the source's run,
            `"mean"` its mean over `reference`, `"mean by position"` likewise at each token, `"zero"` nothing.
            Default: that with which the circuit was found.
        reference: prompts whose mean is taken; default: the sources.
        metric: as for `grid`. Default: logit of the source's answer minus the base's.
        answers: likewise.
        at: likewise.
        held_out: pairs on which the circuit was found are left out, as long as others remain; which these were is
            known of circuits that come from `circuit`. `meta["held_out"]` says what came of it.
        sizes: shares of all edges, ascending; default: those of the MIB benchmark. `()`, or no scores: no curve.
        controls: how many random connected circuits of as many connected edges are run.
        minimality: leave out each edge in turn, a circuit an edge. Default: of circuits of at most 64 edges.
        truth: the edges that are right, where they are known.
        at_once: how many pairs are run together; memory grows with it.
        seed: of the random circuits and of the bootstrap.
        progress: called with the circuits that are done, and all; `True` for a bar (rich).

    Returns:
        A `Table`, one row a circuit that was run. `circuit` says which: `full`, `empty`, `circuit`, `complement` (what
        is left without it: completeness asks that its faithfulness be near 0), `random`, and where `size` says how many
        edges there are, `top by score`, `top by |score|`, `random of a size`; `without an edge` names its `sender` and
        `receiver`. Then `edges`, their `share` of all, `parameters` (the share of its nodes, embeddings and norms not
        counted), `metric` (mean over pairs), `faithfulness` with `low`, `high` (95 % bootstrap over pairs), its change
        against the circuit `effect` (of an edge left out; minimality asks that it be below 0) with `effect_low`,
        `effect_high`, the `median` of pairs with `median_low`, `median_high`, `n`, and by pair `values` (of the metric)
        and `each` (`None` where full and empty are next to equal). `meta` has `cpr`, `cmd`, `f` (the range), `truth`
        (AUROC, precision, recall), `held_out`, `passes`.

    Raises:
        SpecError: the circuit is of another model, its nodes cannot be run by themselves, sizes are not shares in
            ascending order, or the whole model and the empty circuit have the same mean metric.
        PositionError: prompts of a pair differ in length or padding.
        UnknownNameError: `truth` names an edge that there is not.

    Example:
        >>> import transformers
        >>> from align_transformers import Circuit, graph
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=1, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 9]))
        >>> direct = Circuit.of(graph(model), [("input", "m0"), ("m0", "logits"), ("input", "logits")])
        >>> table = evaluate_circuit(model, direct, base, source, answers=(4, 5), controls=0, minimality=False)
        >>> [(row["circuit"], row["edges"], f"{row['faithfulness']:.1f}") for row in table.rows()][:3]
        [('full', 13, '1.0'), ('empty', 0, '0.0'), ('circuit', 3, '1.0')]
    """
    _check(model, circuit, sizes, controls, at_once, seed)
    known = None if truth is None else (truth if isinstance(truth, Circuit) else Circuit.of(circuit.graph, truth))
    pairs = pair_up(base, source, tokenizer, model, columns, None, None, None)
    given = metrics_for(metric, None, len(pairs), "pairs")
    wanted = given or answers_metric(answers_for(answers, pairs, given), tokenizer)
    told = HeldOut.of(pairs, circuit.facts, leave=held_out)
    how: Ablation = ablation or circuit.facts.get("ablation", "resample")
    runner = CircuitRunner(
        model,
        circuit.graph,
        some_pairs(pairs, told.which),
        Answered(
            None if wanted is None else [wanted[""][one] for one in told.which],
            tokenizer,
            chosen(at, told.which, len(pairs)),
        ),
        ablation=how,
        reference=None if reference is None else encode(reference, tokenizer, model),
        at_once=at_once,
    )
    study = _CircuitEvaluation(circuit, runner, list(sizes), controls, minimality, seed)
    with telling("evaluate_circuit", progress) as tell:
        rows = study.rows(tell)
    meta = {
        **made_with(model), "study": "evaluate_circuit", "ablation": how, "method": circuit.facts.get("method"),
        "metric": "logit(source's answer) - logit(base's), as the model gives them" if wanted is None
        else name_of([wanted[""][one] for one in told.which]),
        "pairs": len(told.which), "edges": len(circuit.graph), "kept": len(circuit),
        "connected": int(connected(circuit.graph, circuit.kept).sum()), "held_out": told.facts(len(pairs)),
        **study.summary(rows, known), "notes": circuit.graph.notes, "seed": seed, "passes": dict(runner.passes),
        "base": [pairs.base.texts[one] for one in told.which],
        "source": [pairs.source.texts[one] for one in told.which],
        "found_with": {name: circuit.facts.get(name) for name in ("model", "identity", "pairs", "data", "seed")},
    }  # fmt: skip
    return Table.from_rows([one.row for one in rows], meta=meta)


def _check(model: nn.Module, circuit: Circuit, sizes: Sequence[float], controls: int, at_once: int, seed: int) -> None:
    """Refuse what makes no sense, before anything is run but a dummy input."""
    shares = list(sizes)
    if shares != sorted(shares) or not all(0 <= one <= 1 for one in shares) or min(controls, at_once - 1, seed) < 0:
        raise SpecError(
            "sizes are shares from 0 to 1 in ascending order, controls and seed from 0, at_once from 1; found "
            f"{shares}, {controls}, {seed} and {at_once}"
        )
    kinds = {node.kind for node in circuit.graph.senders}
    made = graph(model, heads="head" in kinds, experts="expert" in kinds)
    if list(made.edges()) != list(circuit.graph.edges()):
        raise SpecError(f"the circuit has the {len(circuit.graph)} edges of another graph than that of this model")


@dataclass(eq=False)
class _CircuitRun:
    """A circuit that is run.

    Args:
        words: the first columns of its row.
        kept: `(edges,)`.
        values: `(pairs,)`, when it was run.
        row: of the table.
    """

    words: Mapping[str, Any]
    kept: Tensor
    values: Tensor | None = None
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _CircuitEvaluation:
    """Says which circuits are run, runs them, and makes rows of that.

    Args:
        circuit: that is measured.
        runner: runs.
        sizes: of the curve.
        controls: how many random circuits.
        minimality: as for `evaluate_circuit`.
        seed: of random circuits.
    """

    circuit: Circuit
    runner: CircuitRunner
    sizes: Sequence[float]
    controls: int
    minimality: bool | None
    seed: int

    def __post_init__(self) -> None:
        self.graph, self.count = self.circuit.graph, len(self.circuit.graph)
        few = len(self.circuit) <= _FEW
        self.each_edge = few if self.minimality is None else self.minimality

    def rows(self, progress: Callable[[int, int], None] | None) -> list[_CircuitRun]:
        """Run all circuits and return them with their rows."""
        full, empty = self.runner.ends
        self.found = Faithfulness(full, empty, seed=self.seed)
        asked = list(self._asked())
        self._run(asked, full, empty, progress)
        shares = ParameterShare(self.runner.model, self.graph, self.runner.wiring)
        base = next(one for one in asked if one.words["circuit"] == "circuit")
        for one in asked:
            one.row = self._row(one, base, shares)
        return asked

    def _asked(self) -> Iterator[_CircuitRun]:
        kept = self.circuit.kept
        yield _CircuitRun(_words("full"), torch.ones_like(kept))
        yield _CircuitRun(_words("empty"), torch.zeros_like(kept))
        yield _CircuitRun(_words("circuit"), kept)
        yield _CircuitRun(_words("complement"), ~kept)
        generator = torch.Generator().manual_seed(self.seed)
        size = int(connected(self.graph, kept).sum())
        for draw in range(self.controls):
            yield _CircuitRun(_words("random", draw=draw), at_random(self.graph, size, generator))
        if self.circuit.scores is not None and len(self.sizes):
            rankings = (*self._rankings(), torch.rand(self.count, generator=generator))
            for name, ranking in zip(_BY_SIZE, rankings, strict=True):
                for share, row in zip(self.sizes, nested(self.graph, ranking, self.sizes), strict=True):
                    yield _CircuitRun(_words(name, size=share), row)
        for edge in kept.nonzero()[:, 0].tolist() if self.each_edge else ():
            less = kept.clone()
            less[edge] = False
            sender, receiver = self._names[edge]
            yield _CircuitRun(_words("without an edge", sender=sender, receiver=receiver), less)

    def _rankings(self) -> tuple[Tensor, Tensor]:
        """Return the scores so that what leads from the empty circuit to the whole model is above 0, and their sizes.

        Scores are the change of the metric without an edge, so they are turned where the model's metric is the higher
        one. Those of learned masks say how much an edge is wanted: their size is no strength.
        """
        assert self.circuit.scores is not None
        scores = self.circuit.scores.float()
        if self.circuit.facts.get("method") == "masks":
            return scores, scores
        return (-scores if float(self.found.gaps.mean()) > 0 else scores), scores.abs()

    @property
    def _names(self) -> list[tuple[str, str]]:
        return list(self.graph.edges())

    def _run(
        self, asked: Sequence[_CircuitRun], full: Tensor, empty: Tensor, progress: Callable[[int, int], None] | None
    ) -> None:
        """Put in what each circuit is worth; equal ones are run once, the two ends not at all."""
        known: dict[bytes, Tensor] = {_key(asked[0].kept): full, _key(asked[1].kept): empty}
        wanted = {_key(one.kept): one.kept for one in asked}
        new = [key for key in wanted if key not in known]
        for start in range(0, len(new), _TOGETHER):
            some = new[start : start + _TOGETHER]
            values = self.runner.measure(torch.stack([wanted[key] for key in some]))
            known |= dict(zip(some, values, strict=True))
            if progress is not None:
                progress(start + len(some), len(new))
        for one in asked:
            one.values = known[_key(one.kept)]

    def _row(self, one: _CircuitRun, base: _CircuitRun, shares: ParameterShare) -> dict[str, Any]:
        assert one.values is not None
        assert base.values is not None
        found, edges = self.found, int(one.kept.sum())
        value, drawn = float(found.ratio(one.values)), found.ratios(one.values[None])[0]
        low, high = found.bounds(drawn)
        effect: tuple[Any, ...] = (None, None, None)
        if one.words["circuit"] == "without an edge":
            change = drawn - found.ratios(base.values[None])[0]
            effect = (value - float(found.ratio(base.values)), *found.bounds(change))
        middle = found.median(one.values)
        mean, mean_low, mean_high = found.mean(one.values)
        return {
            **one.words, "edges": edges, "share": edges / self.count, "parameters": shares(one.kept),
            "metric": mean, "metric_low": mean_low, "metric_high": mean_high,
            "faithfulness": value, "low": low, "high": high,
            "effect": effect[0], "effect_low": effect[1], "effect_high": effect[2],
            "median": middle[0], "median_low": middle[1], "median_high": middle[2], "n": len(one.values),
            "values": one.values.tolist(),
            "each": [None if value != value else value for value in found.each(one.values).tolist()],
        }  # fmt: skip

    def summary(self, asked: Sequence[_CircuitRun], truth: Circuit | None) -> dict[str, Any]:
        """Return what is to be said of all circuits together.

        Args:
            asked: when they were run.
            truth: as for `evaluate_circuit`.
        """
        gap, gap_low, gap_high = self.found.mean(self.found.gaps)
        said: dict[str, Any] = {
            "gap": {"value": gap, "low": gap_low, "high": gap_high},
            "pairs_without_a_share": int(self.found.each(self.found.full).isnan().sum()),
            "minimality": "measured" if self.each_edge
            else f"not measured: minimality=True runs {len(self.circuit)} more circuits",
            "truth": None if truth is None else self._against(truth),
            "sizes": list(self.sizes), **self._curves(asked),
        }  # fmt: skip
        if not self.found.sure and len(self.found.gaps) > 1:
            said["warning"] = (
                "the 95 % interval of m(full) - m(empty) includes 0, so shares of it have no interval: take more "
                "pairs, or pairs whose answers differ"
            )
        return said

    def _curves(self, asked: Sequence[_CircuitRun]) -> dict[str, Any]:
        curves = {name: [one for one in asked if one.words["circuit"] == name] for name in _BY_SIZE}
        if not all(curves.values()):
            why = "the circuit has no scores to order edges by" if len(self.sizes) else "no sizes were asked for"
            return {"cpr": None, "cmd": None, "f": None, "curve": f"not measured: {why}"}
        found: dict[str, Any] = {"cpr": {}, "cmd": {}}
        for words, key in (("top by score", "cpr"), ("top by |score|", "cmd"), ("random of a size", "random")):
            values = torch.stack([one.values for one in curves[words] if one.values is not None])
            middle, drawn = areas(self.sizes, self.found.ratio(values)), areas(self.sizes, self.found.ratios(values))
            for number, area in enumerate(("cpr", "cmd")):
                if key in (area, "random"):
                    low, high = self.found.bounds(drawn[number])
                    made = {"value": float(middle[number]), "low": low, "high": high}
                    found[area] |= {"random": made["value"]} if key == "random" else made
        span = self.sizes[-1] - self.sizes[0]
        found["cpr"]["full"], found["cmd"]["full"] = span, 0.0
        own = [one.row["faithfulness"] for name in _BY_SIZE[:2] for one in curves[name]]
        return {**found, "f": [min(own), max(own)], "curve": "measured"}

    def _against(self, truth: Circuit) -> dict[str, Any]:
        """Return how the circuit compares with the edges that are right."""
        kept, right, scores = self.circuit.kept, truth.kept, self.circuit.scores
        both = int((kept & right).sum())
        said: dict[str, Any] = {
            "edges": int(right.sum()), "found": both,
            "precision": both / int(kept.sum()) if bool(kept.any()) else None,
            "recall": both / int(right.sum()) if bool(right.any()) else None,
        }  # fmt: skip
        if scores is not None:
            signed, sizes = self._rankings()
            said |= {"auroc": auroc(signed, right), "auroc_of_size": auroc(sizes, right)}
        return said


def _words(circuit: str, **more: Any) -> dict[str, Any]:
    return {"circuit": circuit, "size": None, "draw": None, "sender": None, "receiver": None, **more}


def _key(kept: Tensor) -> bytes:
    return kept.numpy().tobytes()

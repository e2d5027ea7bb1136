"""`circuit`: which edges, nodes or neurons of a model are enough for what it does on some pairs of prompts.

Syed et al. 2023, arXiv:2310.10348 (EAP); Hanna et al. 2024, arXiv:2403.17806 (EAP-IG); Conmy et al. 2023,
arXiv:2304.14997 (ACDC); Bhaskar et al. 2024, arXiv:2406.16778 (Edge Pruning).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..._bar import HowFar, telling
from ..._checked import checked
from ..._errors import SpecError
from ...metrics import Metrics
from ...table import Table
from .._data import PairedPrompt, Prompt
from .._pairs import pair_up
from .._prompts import ReadAt, encode
from .._scoring import Answer, answers_for, answers_metric, metrics_for
from .acdc import Order
from .circuit import Circuit
from .circuit_runner import Ablation
from .circuit_search import CircuitSearch, Level, SearchMethod, Wanted


@checked
def circuit(
    model: nn.Module,
    base: PairedPrompt,
    source: Prompt | None = None,
    *,
    method: SearchMethod = "eap",
    level: Level = "edges",
    heads: bool = True,
    experts: bool = True,
    edges: int | None = None,
    nodes: int | None = None,
    neurons: int | None = None,
    threshold: float | None = None,
    select: Literal["top", "greedy"] = "top",
    signed: bool = False,
    orders: Sequence[Order] = ("backward", "random"),
    points: int = 5,
    steps: int = 300,
    rate: float = 0.05,
    ablation: Ablation = "resample",
    reference: Prompt | None = None,
    metric: Metrics | None = None,
    answers: tuple[Answer, Answer] | Sequence[tuple[Answer, Answer]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    columns: Mapping[str, str] | None = None,
    at: ReadAt = -1,
    at_once: int = 16,
    seed: int = 0,
    store: str | os.PathLike[str] | None = None,
    progress: HowFar | bool | None = None,
) -> Circuit | Table:
    """Find the edges (or nodes, or neurons) of a model that are enough for what it does.

    What is not in the circuit is absent: its readers get its value of the other run instead. A circuit is run exactly.
    It is pruned to what is connected: every edge of it lies on a path from the embeddings to the logits.

    Args:
        model: with one residual stream; not changed.
        base: the prompts whose behaviour is explained, as for `grid`; both prompts of a pair are of equal length.
        source: what absent edges carry instead.
        method: how it is found. From scores, each of which is the change of the metric's mean without one edge:
            `"eap"` and `"eap-ig"` (by gradient, see `edge_attribution`) and `"exact"` (one circuit an edge: small
            graphs only; the bar tells how many passes). `"acdc"`: edges are left out for good, one after the other, if
            the distance from the whole model grows by less than `threshold`. `"masks"`: learned hard concrete masks.
        level: of what it is. A node's absent value stands for it everywhere: all edges that leave it are absent. The
            embeddings are always there. Neurons are the coordinates of MLPs' activations and of heads' values.
        heads: as for `graph`: each head is a node; `False`: those of a block are one.
        experts: likewise of experts.
        edges: of level `"edges"`, how many are kept. From scores: as few of the strongest as have a connected part of
            that size. Where one edge connects many, the weakest go again, but none on which a stronger one hangs: so
            there may be a few more. Of `"masks"`: the target, too.
        nodes: likewise of level `"nodes"`, the embeddings not counted.
        neurons: likewise of level `"neurons"`.
        threshold: from scores, the smallest size of a score that is kept. Of `"acdc"` and `"masks"`, how much distance
            one edge is worth: masks then have no target, and of the nested circuits of the edges that held out longest
            that one is taken, exactly measured, whose distance and price are least.
        select: `"top"`: the strongest. `"greedy"`: from the logits down, edges into what is kept alone.
        signed: only edges that help count: those without which the metric goes the way it goes without all of them.
        orders: of `"acdc"`, in which orders edges are tried: `"backward"` (from the logits down), `"forward"`,
            `"random"`. The first one gives the circuit; of the others is told how many edges they share with it.
        points: of `"eap-ig"`.
        steps: of `"masks"`, each on `at_once` pairs.
        rate: of `"masks"`, of Adam.
        ablation: what stands for what is absent: `"resample"`, the source's value of the same token; `"mean"`, the
            mean over tokens of `reference`; `"mean by position"`; `"zero"`.
        reference: prompts whose mean is taken; default: the sources.
        metric: as for `attribution`; default: the logit of the source's answer minus the base's. Of `"acdc"` and
            `"masks"` the distance is the mean size of its change; default: the divergence KL(model || circuit) of the
            distribution of the next token, in nats.
        answers: the base's and the source's, of which the metric is made; of `"acdc"` and `"masks"`, too, if given.
        tokenizer: as for `grid`.
        columns: likewise.
        at: where logits are read.
        at_once: how many pairs are run together; memory grows with it.
        seed: of all that is by chance.
        store: a folder that a killed search goes on from: `"exact"`, `"acdc"` and `"masks"`.
        progress: called with what is done and all; `True` for a bar (rich).

    Returns:
        A `Circuit`, whose `facts` tell how it was found: `selection`, `passes`, `data` (a hash of the tokens), and of
        `"acdc"` and `"masks"` the `distance` of the circuit, not of the masks. Of nodes it has the edges between kept
        nodes, which is the same model, and `facts["node_scores"]`. Of neurons, of which there are no edges, a `Table`
        with a row each: `component`, `layer`, `head`, `neuron`, `score`, `kept`.

    Raises:
        SpecError: arguments do not fit the method, or the model's nodes cannot be run by themselves.
        PositionError: prompts of a pair differ in length or padding.

    Example:
        >>> import torch, transformers
        >>> _ = torch.manual_seed(0)
        >>> sizes = dict(vocab_size=50, n_embd=16, n_head=2, n_layer=2, n_positions=8)
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
        >>> base, source = ({"input_ids": torch.tensor([ids])} for ids in ([1, 2, 3], [1, 7, 3]))
        >>> circuit(model, base, source, edges=10, answers=(4, 5))
        Circuit(10 of 46 edges)
    """
    counts = {"edges": edges, "nodes": nodes, "neurons": neurons}
    wanted = Wanted(
        method, level, heads, experts, counts.pop(level), threshold, select, signed, tuple(orders), points, steps, rate,
        ablation, seed,
    )  # fmt: skip
    _check(wanted, {name: count for name, count in counts.items() if count is not None}, at_once)
    pairs = pair_up(base, source, tokenizer, model, columns, None, None, None)
    given = metrics_for(metric, None, len(pairs), "pairs")
    moved = method in ("acdc", "masks") and answers is None
    named = None if moved else answers_for(answers, pairs, given)
    metrics = given or answers_metric(named, tokenizer)
    if reference is not None and ablation not in ("mean", "mean by position"):
        raise SpecError(f"reference= are prompts whose mean stands for what is absent; ablation={ablation!r} has none")
    means = None if reference is None else encode(reference, tokenizer, model, columns)
    with telling("circuit", progress) as tell:
        search = CircuitSearch(
            model, pairs, wanted, None if metrics is None else metrics[""], at, tokenizer, means, at_once, store, tell,
        )  # fmt: skip
        return search.result()


def _check(wanted: Wanted, others: Mapping[str, int], at_once: int) -> None:
    """Refuse arguments that do not fit each other, before any pass.

    Args:
        wanted: what is asked for.
        others: numbers for another level.
        at_once: pairs that are run together.
    """
    method, level = wanted.method, wanted.level
    if others:
        raise SpecError(f"{next(iter(others))}= is for level={next(iter(others))!r}; this is level={level!r}")
    least = {"points": 2, "steps": 1, "at_once": 1, "seed": 0}
    given = {"points": wanted.points, "steps": wanted.steps, "at_once": at_once, "seed": wanted.seed}
    for name, low in least.items():
        if given[name] < low:
            raise SpecError(f"{name} is from {low}; found {given[name]}")
    if not 0 < wanted.rate < float("inf"):
        raise SpecError(f"rate is above 0; found {wanted.rate}")
    if wanted.count is not None and wanted.count < 0:
        raise SpecError(f"{level}= is how many may be kept, from 0; found {wanted.count}")
    if method == "acdc" and wanted.count is not None:
        raise SpecError(f"method='acdc' keeps what is worth threshold=; found {level}={wanted.count}")
    if (wanted.count is None) == (wanted.threshold is None):
        which = "threshold=" if method == "acdc" else f"either {level}= or threshold="
        raise SpecError(f"method={method!r} needs {which}; found {level}={wanted.count}, threshold={wanted.threshold}")
    if wanted.threshold is not None and not 0 < wanted.threshold < float("inf"):
        raise SpecError(f"threshold is a number above 0; found {wanted.threshold}")
    if method == "acdc" and not wanted.orders:
        raise SpecError("orders= names at least one order; found none")
    if wanted.select == "greedy" and (level != "edges" or wanted.count is None or method in ("acdc", "masks")):
        raise SpecError("select='greedy' takes edges= from the logits down, by scores of edges")
    if wanted.signed and method in ("acdc", "masks"):
        raise SpecError(f"signed=True is about the sign of scores; method={method!r} has none")
    if method == "eap-ig" and wanted.ablation != "resample":
        raise SpecError(f"method='eap-ig' goes from base to source: ablation='resample'; found {wanted.ablation!r}")

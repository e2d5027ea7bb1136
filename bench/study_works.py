"""Works of the contestant `ours`: the studies, each in one call; the values that come first are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from work import Task, load

import align_transformers as at

Noted = tuple[Tensor, dict[str, Any]]  # values, and what else is told of the work


def told(table: at.Table, values: Sequence[float], **more: Any) -> Noted:
    """Return values with the passes that they took."""
    return torch.tensor(values), {"passes": dict(table.meta.get("passes", {})), **more}


def prompt(task: Task) -> dict[str, Tensor]:
    """Return the first base."""
    return {"input_ids": task.bases[:1]}


def causal_tracing(task: Task) -> Callable[..., Noted]:
    """All cells of some layers and places, by component, layer and place."""

    def once(
        components: Any, subject: list[int], draws: int, window: int, layers: Any = "all", places: Any = "all"
    ) -> Noted:
        options = {"layers": layers, "positions": places, "window": window, "draws": draws, "answers": task.answers[0]}
        table = at.causal_tracing(load(task), prompt(task), subject, components=components, **options)
        return told(table, table.columns["restored"])

    return once


def path_patching(task: Task) -> Callable[..., Noted]:
    """All heads of some layers to the logits."""
    metric = at.logit_difference(*task.answers)

    def once(freeze: str, layers: Sequence[int] | None = None) -> Noted:
        heads = range(task.shape.heads)
        senders = "heads" if layers is None else [f"a{layer}.h{head}" for layer in layers for head in heads]
        source = {"input_ids": task.sources[:1]}
        table = at.path_patching(load(task), prompt(task), source, senders=senders, freeze=freeze, metric=metric)
        return told(table, table.columns["metric"])

    return once


def logit_lens(task: Task) -> Callable[..., Noted]:
    """Every layer at some places."""

    def once(places: Any) -> Noted:
        table = at.logit_lens(load(task), prompt(task), positions=places, answers=task.answers[0])
        return told(table, table.columns["probability"])

    return once


def attribution(task: Task) -> Callable[..., Noted]:
    """Every head and MLP."""

    def once() -> Noted:
        table = at.direct_logit_attribution(load(task), prompt(task), answers=task.answers[0])
        chosen = ("head_contribution", "mlp_contribution")
        return told(table, [row["contribution"] for row in table.rows() if row["component"] in chosen])

    return once


def scrubbing(task: Task) -> Callable[..., Noted]:
    """A claim about a block at the last token, and one below it about an MLP."""

    def once(layers: Sequence[int], count: int, draws: int) -> Noted:
        ids = task.bases[:count]
        child = at.Claim(at.Site("mlp_output", layers[0]), feature=[n % 2 for n in range(count)], positions=[-1])
        site = at.Site("block_output", layers[1])
        claim = at.Claim(site, feature=[n // 2 for n in range(count)], positions=[-1], children=(child,))
        table = at.causal_scrubbing(load(task), {"input_ids": ids}, [claim], answers=task.answers[0], draws=draws)
        return told(table, table.columns["scrubbed"], **{n: table.columns[n] for n in ("drawn", "unclaimed")})

    return once


WORKS = {
    "causal_tracing": causal_tracing,
    "path_patching": path_patching,
    "logit_lens": logit_lens,
    "attribution": attribution,
    "scrubbing": scrubbing,
}

"""Attribution: what gradients tell of swaps and edges, against two forward passes and a backward pass by hand.

All prompts are cut to their last `TOKENS` tokens. The values that are compared are of each MLP over all tokens, as
means over pairs: by hand gradient times difference; of edges the sum over all that read it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from work import Task, blocks, load

TOKENS = 16
COMPONENTS = ["attention_output", "mlp_output", "block_output"]
Noted = tuple[Tensor, dict[str, Any]]


def _ids(task: Task, pairs: int) -> tuple[Tensor, Tensor]:
    return task.bases[:pairs, -TOKENS:], task.sources[:pairs, -TOKENS:]


def by_hand(task: Task) -> Callable[..., Tensor]:
    """Two forward passes, one of them with a graph, and a backward pass; or only the latter."""

    def once(pairs: int = 16, alone: bool = False) -> Tensor:
        model, (base, source) = load(task), _ids(task, pairs)
        seen: list[Tensor] = []
        ends = [
            block.mlp.register_forward_hook(lambda _module, _args, out: seen.append(out))
            for block in blocks(task, model)
        ]
        try:
            with torch.no_grad():
                there = [] if alone else [model(source).logits, *seen][1:]
            seen.clear()
            embeds = model.get_input_embeddings()(base).detach().requires_grad_()
            logits = model(inputs_embeds=embeds).logits[:, -1]
        finally:
            for end in ends:
                end.remove()
        first, second = task.answers
        total = (logits[:, second] - logits[:, first]).sum()
        gradients = torch.autograd.grad(total, seen)
        moved = [torch.zeros_like(own) for own in seen] if alone else [b - a for a, b in zip(seen, there, strict=True)]
        return torch.stack([(g * d).sum() / pairs for g, d in zip(gradients, moved, strict=True)])

    return once


def _prompts(task: Task, pairs: int) -> dict[str, Any]:
    base, source = _ids(task, pairs)
    return {"base": {"input_ids": base}, "source": {"input_ids": source}, "answers": task.answers}


def swaps(task: Task) -> Callable[..., Noted]:
    """All swaps, estimated and not checked: of every head over all tokens, or of whole states token by token."""
    import align_transformers as at

    def once(heads: bool = False, pairs: int = 16, **options: Any) -> Noted:
        where: dict[str, Any] = {"components": COMPONENTS}
        if heads:
            where = {"components": ["attention_value_output"], "heads": "all", "positions": None}
        table = at.attribution(load(task), **_prompts(task, pairs), **where, **options, verify=0)
        sums = torch.zeros(task.shape.layers)
        if not heads:
            for layer, effect in zip(
                *(table.select("mlp_output").columns[n] for n in ("layer", "effect")), strict=True
            ):
                sums[layer] += effect / pairs
        return sums, {"passes": dict(table.meta["passes"]), "cells": len(table)}

    return once


def edges(task: Task) -> Callable[..., Noted]:
    """All edges."""
    import align_transformers as at

    def once(pairs: int = 16, **options: Any) -> Noted:
        table = at.edge_attribution(load(task), **_prompts(task, pairs), **options)
        sums = torch.zeros(task.shape.layers)
        for sender, score in zip(*(table.columns[name] for name in ("sender", "score")), strict=True):
            if sender[0] == "m":
                sums[int(sender[1:])] += score
        return sums, {"passes": dict(table.meta["passes"]), "edges": len(table)}

    return once


def screening(task: Task) -> Callable[..., Noted]:
    """The 60 strongest of all swaps in one pair, or all of them; the values are numbers of the strongest 20."""
    import align_transformers as at

    def once(screen: int | None = None, layers: Any = "all") -> Noted:
        inputs = {"base": {"input_ids": task.bases[:1]}, "source": {"input_ids": task.sources[:1]}}
        names = ["block_output", "mlp_output", "attention_output"]
        table = at.grid(load(task), **inputs, components=names, layers=layers, answers=task.answers, screen=screen)
        rows = sorted(table.rows(), key=lambda row: -abs(row["effect"]))[:20]
        numbers = [(names.index(r["component"]) * 1000 + r["layer"]) * 1000 + r["position"] for r in rows]
        return torch.tensor(numbers), {"passes": dict(table.meta["passes"]), "cells": len(table)}

    return once


OURS = {"swaps by gradient": swaps, "edges by gradient": edges, "screening": screening}

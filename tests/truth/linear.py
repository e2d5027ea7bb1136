"""A network in which everything is linear: scores of edges are what the edges do, and add up to what the nodes do.

A small GPT-2 without norms and with linear activations, whose queries and keys are 0, so that each token attends to all
before it alike. What one receiver reading a sender's other value does to the metric is had by plain hooks.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from align_transformers import Table, edge_attribution, grid

from .fact import Fact

LAYERS, HEADS, WIDTH, ROUNDING = 3, 2, 16, 1e-4
SIZE, ANSWERS = WIDTH // HEADS, (4, 9)
BASE, SOURCE = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([[1, 7, 3, 8, 5]])


@cache
def _network() -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "n_embd": WIDTH,
        "n_head": HEADS,
        "n_layer": LAYERS,
        "n_positions": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model: Any = GPT2LMHeadModel(GPT2Config(**sizes, activation_function="linear", initializer_range=0.3)).eval()
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * WIDTH] = 0
    model.transformer.ln_f = nn.Identity()
    return model


def _seen(ids: Tensor) -> dict[str, Tensor]:
    """Return what each sender adds to the stream."""
    model, seen, ends = _network(), {}, []
    for layer, block in enumerate(model.transformer.h):

        def heads(module: Any, args: Any, layer: int = layer) -> None:
            for head in range(HEADS):
                own = slice(head * SIZE, (head + 1) * SIZE)
                seen[f"a{layer}.h{head}"] = args[0][..., own] @ module.weight[own]

        ends.append(block.attn.c_proj.register_forward_pre_hook(heads))
        ends.append(block.mlp.register_forward_hook(lambda _m, _a, out, n=f"m{layer}": seen.__setitem__(n, out)))
    first = model.transformer.h[0].register_forward_pre_hook(lambda _m, args: seen.__setitem__("input", args[0]))
    with torch.no_grad():
        model(input_ids=ids)
    for end in (first, *ends):
        end.remove()
    return seen


def _metric(receiver: str = "", change: Tensor | None = None) -> float:
    """Return the metric of the base where one receiver reads the stream with a change."""
    model = _network()
    with ExitStack() as stack, torch.no_grad():
        if receiver == "logits":
            end = model.transformer.ln_f.register_forward_pre_hook(lambda _m, args: (args[0] + change,))
            stack.callback(end.remove)
        elif receiver.startswith("m"):
            end = model.transformer.h[int(receiver[1:])].mlp.register_forward_pre_hook(lambda _m, a: (a[0] + change,))
            stack.callback(end.remove)
        elif receiver:
            place, head = receiver[1:-3].split(".h")
            start = "qkv".index(receiver[-2]) * WIDTH + int(head) * SIZE

            def read(module: Any, args: Any, out: Tensor) -> Tensor:
                new = out.clone()
                new[..., start : start + SIZE] = module.forward(args[0] + change)[..., start : start + SIZE]
                return new

            stack.callback(model.transformer.h[int(place)].attn.c_attn.register_forward_hook(read).remove)
        logits = model(input_ids=BASE).logits[0, -1]
    return float(logits[ANSWERS[1]] - logits[ANSWERS[0]])


@cache
def _table() -> Table:
    return edge_attribution(_network(), {"input_ids": BASE}, {"input_ids": SOURCE}, answers=ANSWERS)


def _edges() -> float:
    """Return the largest difference of a score from what its edge does, as a share of the largest."""
    clean, first, second = _metric(), _seen(BASE), _seen(SOURCE)
    rows = list(_table().rows())
    exact = [_metric(row["receiver"], second[row["sender"]] - first[row["sender"]]) - clean for row in rows]
    apart = max(abs(row["score"] - one) for row, one in zip(rows, exact, strict=True))
    return apart / max(map(abs, exact))


def _nodes() -> float:
    """Return how far the scores of all edges from a sender are from what its swap does, as a share of the largest."""
    sums: dict[str, float] = {}
    for row in _table().rows():
        sums[row["sender"]] = sums.get(row["sender"], 0.0) + row["score"]
    inputs = {"base": {"input_ids": BASE}, "source": {"input_ids": SOURCE}, "answers": ANSWERS, "positions": None}
    exact = {f"m{row['layer']}": row["effect"] for row in grid(_network(), components=["mlp_output"], **inputs).rows()}
    heads = grid(_network(), components=["attention_value_output"], heads="all", **inputs)
    exact |= {f"a{row['layer']}.h{row['head']}": row["effect"] for row in heads.rows()}
    return max(abs(sums[name] - value) for name, value in exact.items()) / max(map(abs, exact.values()))


FACTS = [
    Fact("linear network, scores of edges - what the edges do, of the largest", _edges, 0.0, ROUNDING),
    Fact("linear network, sums over a sender's edges - what its swap does", _nodes, 0.0, ROUNDING),
]

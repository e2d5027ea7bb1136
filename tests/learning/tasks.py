"""A tiny alignment task, and the same fit written out by hand: hooks, QR and a loop; nothing of it is the library's."""

from __future__ import annotations

from typing import Any

import torch
from tests.helpers import VOCAB, new_model, tiny
from torch import Tensor, nn

from align_transformers import IntervenableModel
from align_transformers.interventions import LowRankRotatedSpaceIntervention

LAYER, RANK, LENGTH = 1, 3, 5


def face(
    model: nn.Module | None = None, kind: type = LowRankRotatedSpaceIntervention, seed: int = 0
) -> IntervenableModel:
    """Return an intervenable model with one trainable intervention at layer 1's output."""
    torch.manual_seed(0)
    spec: dict[str, Any] = {"layer": LAYER, "component": "block_output", "intervention_type": kind}
    if kind is LowRankRotatedSpaceIntervention:
        spec["low_rank_dimension"] = RANK
    return IntervenableModel(spec, model=tiny("llama") if model is None else model)


def batches(
    sizes: tuple[int, ...] = (4, 4, 4), seed: int = 0, model: nn.Module | None = None
) -> list[dict[str, Tensor]]:
    """Return batches of random prompts; the label is what the model says of the source."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for size in sizes:
        base, source = (torch.randint(1, VOCAB, (size, LENGTH), generator=generator) for _ in range(2))
        with torch.no_grad():
            labels = (model or tiny("llama"))(input_ids=source).logits[:, -1].argmax(-1)
        made.append(
            {
                "input_ids": base,
                "source_input_ids": source,
                "labels": labels,
                "source_0->base.0.pos": torch.full((size, 1), LENGTH - 1),
                "source_0->base.1.pos": torch.full((size, 1), LENGTH - 1),
            }
        )
    return made


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return several batches as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def examples(parts: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Return each example of some batches on its own, as a dataset."""
    whole = joined(parts)
    return [{name: column[n] for name, column in whole.items()} for n in range(len(whole["labels"]))]


def by_hand(free: Tensor, steps: list[dict[str, Tensor]], family: str = "llama", lr: float = 0.01) -> Tensor:
    """Learn the low-rank rotation with forward hooks and a plain loop; return the free matrix.

    Args:
        free: where it starts.
        steps: one batch a step.
        family: the model.
        lr: constant.
    """
    model = new_model(family).requires_grad_(False)
    block = model.transformer.h[LAYER] if family == "gpt2" else model.model.layers[LAYER]
    free = free.clone().requires_grad_()
    optimizer = torch.optim.AdamW([free], lr=lr, weight_decay=0.0)
    for batch in steps:
        q, r = torch.linalg.qr(free)
        loss = _loss(model, block, batch, q * r.diagonal().sign())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return free.detach()


def _loss(model: nn.Module, block: nn.Module, batch: dict[str, Tensor], rotation: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def first(output: Any) -> Tensor:
        return output[0] if isinstance(output, tuple) else output

    def edit(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = first(output).clone()
        moved = hidden[:, -1] + (seen[0][:, -1] - hidden[:, -1]) @ rotation @ rotation.T
        hidden = torch.cat([hidden[:, :-1], moved[:, None]], dim=1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = block.register_forward_hook(lambda _m, _i, output: seen.append(first(output)))
    model(input_ids=batch["source_input_ids"])
    handle.remove()
    handle = block.register_forward_hook(edit)
    logits = model(input_ids=batch["input_ids"]).logits[:, -1]
    handle.remove()
    return -torch.log_softmax(logits, -1)[torch.arange(len(logits)), batch["labels"]].mean()


def free_matrix(made: IntervenableModel) -> Tensor:
    """Return the parameter that the intervention learns."""
    (parameter,) = made.get_trainable_parameters()
    return parameter.detach().clone()

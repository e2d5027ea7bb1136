"""The contestant `ours`: align-transformers through its public names only."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import work
from peers import hooks
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from work import BATCH, HALF, PLACE, POSITIONS, RANK, Task

import align_transformers as at
from align_transformers.learning import Replaying


def sweep(model: Any, base: Any, source: Any, answers: tuple[int, int], **options: Any) -> Tensor:
    """Return the metric of all cells of `grid`, in the order of its table."""
    table = at.grid(model, base, source, metric=at.logit_difference(*answers), **options)
    return torch.tensor([row["metric"] for row in table.rows()])


def block_grid(task: Task) -> Callable[..., Tensor]:
    """All layers and positions of the first prompt pair, in one call."""
    model = hooks.load(task)

    def once(layers: Any = "all", positions: int = POSITIONS) -> Tensor:
        base, source = ({"input_ids": tokens[:1, :positions]} for tokens in (task.bases, task.sources))
        return sweep(model, base, source, task.answers, layers=layers)

    return once


def pairs_grid(task: Task) -> Callable[..., Tensor]:
    """The same over several prompt pairs, in one call."""
    model, tokenizer = hooks.load(task), AutoTokenizer.from_pretrained(task.checkpoint)

    def once(pairs: int, layers: Any = "all") -> Tensor:
        bases, sources = (work.prompts(kind)[:pairs] for kind in ("bases", "sources"))
        return sweep(model, bases, sources, task.answers, tokenizer=tokenizer, layers=layers)

    return once


def head_grid(task: Task) -> Callable[..., Tensor]:
    """All layers and heads at the last token, in one call."""
    model = hooks.load(task)

    def once() -> Tensor:
        base, source = ({"input_ids": tokens[:1]} for tokens in (task.bases, task.sources))
        options = {"components": ["head_attention_value_output"], "heads": "all", "positions": [-1]}
        return sweep(model, base, source, task.answers, **options)

    return once


def random_grid(_task: Task) -> Callable[..., Tensor]:
    """The block grid of a random model, in one call."""

    def once(layers: int, positions: int) -> Tensor:
        base, source = ({"input_ids": tokens} for tokens in work.random_pair(positions))
        return sweep(work.random_llama(layers), base, source, (1, 2))

    return once


def interchange(task: Task) -> Callable[[], Tensor]:
    """One interchange in a batch of 16, at block 15 and position 12."""
    intervenable = at.IntervenableModel({"layer": 15, "component": "block_output"}, hooks.load(task))
    base, source = {"input_ids": task.bases[:BATCH]}, {"input_ids": task.turned[:BATCH]}

    @torch.no_grad()
    def once() -> Tensor:
        return task.difference(intervenable(base, source, {"sources->base": (PLACE, PLACE)})[1].logits)

    return once


def training(name: str, **options: Any) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step as `fit` makes it from the second epoch on: loss, backwards, Adam."""

    def prepare(task: Task) -> Callable[..., float]:
        kind = getattr(at, name)
        place, answers = torch.full((BATCH, 1), PLACE), torch.full((BATCH,), task.answers[1])
        batch = {"input_ids": task.bases[:BATCH], "source_input_ids": task.turned[:BATCH], "labels": answers}
        batch |= {"source_0->base.0.pos": place, "source_0->base.1.pos": place}
        steps: dict[int, tuple[Any, Any]] = {}

        def once(layer: int) -> float:
            alignment, adam = steps[layer] if layer in steps else steps.setdefault(layer, start(layer))
            adam.zero_grad()
            loss = alignment(**batch)["loss"]
            loss.backward()
            adam.step()
            return loss.item()

        def start(layer: int) -> tuple[Any, Any]:
            intervention = kind(embed_dim=work.WIDTH, **options)
            intervention.rotate_layer.set_weight(work.rotation(options.get("low_rank_dimension", work.WIDTH)))
            config = {"layer": layer, "component": "block_output", "intervention": intervention}
            intervenable = at.IntervenableModel(config, hooks.load(task))
            alignment = at.Alignment(intervenable, forward=Replaying(intervenable))
            return alignment, torch.optim.Adam(intervenable.get_trainable_parameters(), lr=1e-3)

        return once

    return prepare


def generate(task: Task) -> Callable[[], Tensor]:
    """64 tokens, with a direction added after block 15 at every step."""
    vector = work.direction()
    config = {"layer": 15, "component": "block_output", "intervention_type": at.AdditionIntervention}
    intervenable = at.IntervenableModel({**config, "source_representation": vector}, hooks.load(task))

    def once() -> Tensor:
        return intervenable.generate({"input_ids": task.bases[:1]}, **hooks.GENERATION)[1][0, POSITIONS:]

    return once


def overhead(_task: Task) -> Callable[..., list[float]]:
    """Microseconds of an interchange on a tiny model, by hand and with the library, alternating in one process."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=20, **sizes)).eval().requires_grad_(False)
    base, source = (torch.tensor([ids]) for ids in ([1, 2, 3, 4], [1, 7, 3, 4]))
    parts = {"query_output": "self_attn.q_proj", "key_output": "self_attn.k_proj"}
    parts |= {"attention_output": "self_attn.o_proj", "mlp_output": "mlp", "block_output": ""}
    blocks = list(enumerate(model.model.layers))[::-1]  # from the top: no pass can be cut short by much
    sites = [(part, layer, block.get_submodule(path)) for layer, block in blocks for part, path in parts.items()]

    @torch.no_grad()
    def once(edits: int, repeat: int = 30) -> list[float]:
        modules = [module for _, _, module in sites[:edits]]
        config = [{"component": component, "layer": layer} for component, layer, _ in sites[:edits]]
        intervenable = at.IntervenableModel(config, model)

        def by_hand() -> Tensor:
            values = hooks.capture(model, modules, source)
            edit = (lambda output, n=n: hooks.placed(output, 1, values[n][:, 1]) for n in range(edits))
            with hooks.hooked(*zip(modules, edit, strict=True)):
                return model(base).logits

        def with_library() -> Tensor:
            return intervenable({"input_ids": base}, {"input_ids": source}, {"sources->base": (1, 1)})[1].logits

        if not torch.allclose(by_hand(), with_library(), atol=1e-5):
            raise ValueError("the library's interchange differs from the hand-written one")
        times = [(_seconds(by_hand), _seconds(with_library)) for _ in range(repeat)]
        return [1e6 * median(column) for column in zip(*times, strict=True)]

    return once


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


WORKS = {
    "block_grid": block_grid,
    "pairs_grid": pairs_grid,
    "head_grid": head_grid,
    "random_grid": random_grid,
    "interchange": interchange,
    "das": training("LowRankRotatedSpaceIntervention", low_rank_dimension=RANK),
    "rotation": training("RotatedSpaceIntervention", interchange_dim=HALF),
    "boundless": training("BoundlessRotatedSpaceIntervention"),
    "generate": generate,
    "overhead": overhead,
}

"""The contestant `ours`: align-transformers through its public names only."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import circuits
import counterfactuals
import gradients
import searching
import study_works
import torch
import whole_searches
import work
from peers import hooks
from torch import Tensor
from work import NEW_TOKENS, Shape, Task, load

import align_transformers as at
from align_transformers import learning

Noted = tuple[Tensor, dict[str, Any]]  # values, and what else is told of the work


def sweep(task: Task, base: Tensor, source: Tensor, **options: Any) -> Noted:
    """Return the metric of all cells of `grid`, in the order of its table, and the passes that it took."""
    metric = at.logit_difference(*task.answers)
    table = at.grid(load(task), {"input_ids": base}, {"input_ids": source}, metric=metric, **options)
    return torch.tensor([row["metric"] for row in table.rows()]), {"passes": dict(table.meta.get("passes", {}))}


def block_grid(task: Task) -> Callable[..., Noted]:
    """Layers and places of the first prompt pairs, in one call; of `positions`, so many tokens of each prompt."""

    def once(layers: Any = "all", positions: int | None = None, places: Any = "all", pairs: int = 1) -> Noted:
        base, source = (tokens[:pairs, :positions] for tokens in (task.bases, task.sources))
        return sweep(task, base, source, layers=layers, positions=places)

    return once


def head_grid(task: Task) -> Callable[..., Noted]:
    """Layers and all heads at the last token, in one call."""

    def once(layers: Any = "all") -> Noted:
        options = {"components": ["head_attention_value_output"], "heads": "all", "positions": [-1]}
        return sweep(task, task.bases[:1], task.sources[:1], layers=layers, **options)

    return once


def interchange(task: Task) -> Callable[..., Tensor]:
    """One interchange in a batch, at the middle block (15 of SmolLM2) and one position."""
    intervenable = at.IntervenableModel({"layer": task.middle, "component": "block_output"}, load(task))

    @torch.no_grad()
    def once(batch: int = task.batch) -> Tensor:
        base, source = {"input_ids": task.bases[:batch]}, {"input_ids": task.turned[:batch]}
        places = {"sources->base": (task.place, task.place)}
        return task.difference(intervenable(base, source, places)[1].logits)

    return once


def training(name: str, columns: str, swapped_half: bool = False) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step as `fit` makes it from the second epoch on: loss, backwards, Adam.

    Args:
        name: of the intervention.
        columns: `rank` or `width`: how many columns the rotation has.
        swapped_half: swap half of the coordinates.
    """

    def prepare(task: Task) -> Callable[..., float]:
        low = {"low_rank_dimension": task.rank} if columns == "rank" else {}
        half = {"interchange_dim": task.shape.width // 2} if swapped_half else {}
        place = torch.full((task.batch, 1), task.place, device=task.device)
        answers = torch.full((task.batch,), task.answers[1], device=task.device)
        batch = {"input_ids": task.bases[: task.batch], "source_input_ids": task.turned[: task.batch]}
        batch |= {"source_0->base.0.pos": place, "source_0->base.1.pos": place, "labels": answers}
        steps: dict[int, tuple[Any, Any]] = {}

        def once(layer: int) -> float:
            alignment, adam = steps[layer] if layer in steps else steps.setdefault(layer, start(layer))
            adam.zero_grad()
            loss = alignment(**batch)["loss"]
            loss.backward()
            adam.step()
            return loss.item()

        def start(layer: int) -> tuple[Any, Any]:
            intervention = getattr(at, name)(embed_dim=task.shape.width, **low, **half).to(task.device)
            intervention.rotate_layer.set_weight(task.rotation(task.rank if low else task.shape.width))
            config = {"layer": layer, "component": "block_output", "intervention": intervention}
            intervenable = at.IntervenableModel(config, load(task))
            alignment = at.Alignment(intervenable, forward=replaying(intervenable))
            return alignment, torch.optim.Adam(intervenable.get_trainable_parameters(), lr=1e-3)

        return once

    return prepare


def replaying(intervenable: Any) -> Any:
    """Return how `fit` runs a batch that it has seen before.

    Raises:
        Pending: this version of the library calls it by another name.
    """
    if not hasattr(learning, "Replaying"):
        raise work.Pending("`learning.Replaying` has another name: tell bench/ours.py")
    return learning.Replaying(intervenable)


def generate(task: Task) -> Callable[..., Tensor]:
    """Tokens with a direction added after the middle block at every step."""
    config = {"layer": task.middle, "component": "block_output", "intervention_type": at.AdditionIntervention}
    intervenable = at.IntervenableModel({**config, "source_representation": task.direction()}, load(task))

    def once(tokens: int = NEW_TOKENS) -> Tensor:
        return intervenable.generate({"input_ids": task.bases[:1]}, **hooks.greedy(tokens))[1][0, task.positions :]

    return once


TINY = Shape("llama", layers=20, width=16, heads=2, kv_heads=2, mlp=32, vocab=64)


def overhead(task: Task) -> Callable[..., Noted]:
    """Microseconds of an interchange on a tiny model, with the library and by hand, alternating in one process.

    The edits are spread over the sites of the model, or are all at one site: the output of a block at many positions.
    By hand these are one gather and one scatter, or (`hooks, each`) a hook for each edit.
    """
    tiny = work.random_task(TINY, positions=4, device=task.device, dtype=task.dtype)
    long = work.random_task(TINY, positions=128, device=task.device, dtype=task.dtype)
    parts = {"query_output": "self_attn.q_proj", "key_output": "self_attn.k_proj"}
    parts |= {"attention_output": "self_attn.o_proj", "mlp_output": "mlp", "block_output": ""}

    def spread(edits: int) -> dict[str, Callable[[], Tensor]]:
        model = load(tiny)
        blocks = list(enumerate(work.blocks(tiny, model)))[::-1]  # from the top: no pass can be cut short by much
        sites = [(part, layer, block.get_submodule(path)) for layer, block in blocks for part, path in parts.items()]
        modules = [module for _, _, module in sites[:edits]]
        config = [{"component": component, "layer": layer} for component, layer, _ in sites[:edits]]

        def by_hand() -> Tensor:
            values = hooks.capture(model, modules, tiny.sources)
            edit = (lambda output, n=n: hooks.placed(output, 1, values[n][:, 1]) for n in range(edits))
            with hooks.hooked(*zip(modules, edit, strict=True)):
                return model(tiny.bases).logits

        return {"hooks": by_hand, "ours": with_library(tiny, config, (1, 1))}

    def at_one_site(edits: int) -> dict[str, Callable[[], Tensor]]:
        model = load(long)
        layer, places = TINY.layers - 2, list(range(edits))  # near the top, as above
        block = work.blocks(long, model)[layer]
        config = [{"component": "block_output", "layer": layer}] * edits

        def by_hand(edit: Callable[[Tensor], Callable[[Tensor], list[Any]]]) -> Callable[[], Tensor]:
            def once() -> Tensor:
                (value,) = hooks.capture(model, [block], long.sources)
                with hooks.hooked(*((block, one) for one in edit(value))):
                    return model(long.bases).logits

            return once

        return {
            "hooks": by_hand(lambda value: [lambda out: hooks.placed(out, places, value[:, places])]),
            "hooks, each": by_hand(
                lambda value: [lambda out, at=at: hooks.placed(out, at, value[:, at]) for at in places]
            ),
            "ours": with_library(long, config, ([[[place]] for place in places],) * 2),
        }

    def with_library(of: Task, config: list[dict[str, Any]], places: Any) -> Callable[[], Tensor]:
        intervenable = at.IntervenableModel(config, load(of))
        base, source = {"input_ids": of.bases}, {"input_ids": of.sources}
        return lambda: intervenable(base, source, {"sources->base": places})[1].logits

    @torch.no_grad()
    def once(edits: int, repeat: int = 30, one_site: bool = False) -> Noted:
        ways = (at_one_site if one_site else spread)(edits)
        truth = ways["hooks"]()
        for name, way in ways.items():
            if not torch.allclose(truth, way(), atol=1e-5 if task.dtype == "float32" else 5e-2):
                raise ValueError(f"{name}: the interchange differs from the hand-written one")
        rounds = [[work.timed(way, task.device)[0] for way in ways.values()] for _ in range(repeat)]
        medians = [1e6 * median(column) for column in zip(*rounds, strict=True)]
        return torch.tensor([]), {"microseconds": dict(zip(ways, medians, strict=True))}

    return once


WORKS = {
    "block_grid": block_grid,
    "head_grid": head_grid,
    "interchange": interchange,
    "das": training("LowRankRotatedSpaceIntervention", "rank"),
    "rotation": training("RotatedSpaceIntervention", "width", swapped_half=True),
    "boundless": training("BoundlessRotatedSpaceIntervention", "width"),
    "generate": generate,
    "overhead": overhead,
    "batching": hooks.batching,
    "counterfactuals": counterfactuals.ours,
    "counterfactual data": counterfactuals.drawn,
    "circuits": circuits.costs,
    **gradients.OURS,
    "fits together": searching.together,
    "fits alone": searching.alone,
    "whole search": whole_searches.whole,
    "search one by one": whole_searches.one_by_one,
    "nominated": whole_searches.nominated,
    **study_works.WORKS,
}

"""The contestant `pyvene`: `IntervenableModel` with a configuration a layer, as its tutorials write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyvene as pv
import torch
import work
from torch import Tensor
from transformers import AutoModelForCausalLM
from work import BATCH, HALF, PLACE, RANK, Task


@cache
def load(checkpoint: str) -> Any:
    """Return the model; transformers 4 looks for the rotary base where transformers 5 does not write it."""
    rope = json.loads(Path(checkpoint, "config.json").read_text())["rope_parameters"]["rope_theta"]
    return work.settled(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, rope_theta=rope))


def intervenable(task: Task, layer: int, kind: type, **options: Any) -> Any:
    """Return the model with one intervention after a block."""
    config = pv.IntervenableConfig(
        representations=[pv.RepresentationConfig(layer, "block_output", "pos", 1, **options)], intervention_types=kind
    )
    model = pv.IntervenableModel(config, load(task.checkpoint))
    model.disable_model_gradients()
    return model


def swapped(model: Any, place: int, bases: Tensor, sources: Tensor) -> Tensor:
    """Return the logits of the edited bases."""
    at = {"sources->base": (place, place)}
    return model({"input_ids": bases}, [{"input_ids": sources}], unit_locations=at)[1].logits


def block_grid(task: Task) -> Callable[..., Tensor]:
    """One call a cell."""

    @torch.no_grad()
    def once(cells: list[tuple[int, int]]) -> Tensor:
        models = {layer: intervenable(task, layer, pv.VanillaIntervention) for layer in {layer for layer, _ in cells}}
        pair = task.bases[:1], task.sources[:1]
        return torch.tensor([task.difference(swapped(models[layer], place, *pair)).item() for layer, place in cells])

    return once


def training(kind: type, swap: int | None = None, **options: Any) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step: one call, backwards, Adam."""

    def prepare(task: Task) -> Callable[..., float]:
        steps: dict[int, tuple[Any, Any]] = {}

        def once(layer: int) -> float:
            model, adam = steps[layer] if layer in steps else steps.setdefault(layer, start(layer))
            adam.zero_grad()
            loss = task.loss(swapped(model, PLACE, task.bases[:BATCH], task.turned[:BATCH]))
            loss.backward()
            adam.step()
            return loss.item()

        def start(layer: int) -> tuple[Any, Any]:
            model = intervenable(task, layer, kind, **options)
            (intervention,) = model.interventions.values()
            intervention.rotate_layer.weight = work.rotation(options.get("low_rank_dimension") or work.WIDTH)
            if swap is not None:
                intervention.set_interchange_dim(swap)
            return model, torch.optim.Adam(intervention.parameters(), lr=1e-3)

        return once

    return prepare


WORKS = {
    "block_grid": block_grid,
    "das": training(pv.LowRankRotatedSpaceIntervention, low_rank_dimension=RANK),
    "rotation": training(pv.RotatedSpaceIntervention, swap=HALF),
    "boundless": training(pv.BoundlessRotatedSpaceIntervention),
}

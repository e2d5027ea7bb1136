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
from work import Task


def load(task: Task) -> Any:
    """Return the model."""
    return work.load(task) if task.checkpoint is None else _from_checkpoint(task.checkpoint)


@cache
def _from_checkpoint(checkpoint: str) -> Any:
    """Return the checkpoint's model; transformers 4 looks for the rotary base where transformers 5 writes none."""
    rope = json.loads(Path(checkpoint, "config.json").read_text())["rope_parameters"]["rope_theta"]
    return work.settled(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, rope_theta=rope))


def intervenable(task: Task, layer: int, kind: type, **options: Any) -> Any:
    """Return the model with one intervention after a block."""
    config = pv.IntervenableConfig(
        representations=[pv.RepresentationConfig(layer, "block_output", "pos", 1, **options)], intervention_types=kind
    )
    model = pv.IntervenableModel(config, load(task))
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


def training(kind: type, columns: str, swapped_half: bool = False) -> Callable[[Task], Callable[..., float]]:
    """Return the work of one training step: one call, backwards, Adam.

    Args:
        kind: of the intervention.
        columns: `rank` or `width`: how many columns the rotation has.
        swapped_half: swap half of the coordinates.
    """

    def prepare(task: Task) -> Callable[..., float]:
        steps: dict[int, tuple[Any, Any]] = {}
        low = {"low_rank_dimension": task.rank} if columns == "rank" else {}

        def once(layer: int) -> float:
            model, adam = steps[layer] if layer in steps else steps.setdefault(layer, start(layer))
            adam.zero_grad()
            loss = task.loss(swapped(model, task.place, task.bases[: task.batch], task.turned[: task.batch]))
            loss.backward()
            adam.step()
            return loss.item()

        def start(layer: int) -> tuple[Any, Any]:
            model = intervenable(task, layer, kind, **low)
            (intervention,) = model.interventions.values()
            intervention.rotate_layer.weight = task.rotation(task.rank if low else task.shape.width)
            if swapped_half:
                intervention.set_interchange_dim(task.shape.width // 2)
            return model, torch.optim.Adam(intervention.parameters(), lr=1e-3)

        return once

    return prepare


WORKS = {
    "block_grid": block_grid,
    "das": training(pv.LowRankRotatedSpaceIntervention, "rank"),
    "rotation": training(pv.RotatedSpaceIntervention, "width", swapped_half=True),
    "boundless": training(pv.BoundlessRotatedSpaceIntervention, "width"),
}

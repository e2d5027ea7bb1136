"""The contestant `nnsight`: one source trace, then a trace a cell; or, batched by hand, a trace a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import work
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from work import LAYERS, Task


@cache
def load(checkpoint: str) -> Any:
    """Return the wrapped model."""
    model = work.settled(AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32))
    return TransformersModel(model, task="text-generation", tokenizer=AutoTokenizer.from_pretrained(checkpoint))


def captured(model: Any, tokens: Tensor) -> list[Tensor]:
    """Return the outputs of all blocks in one trace."""
    with model.trace(tokens):
        states = [model.model.layers[layer].output for layer in range(LAYERS)].save()
    return states


def block_grid(task: Task) -> Callable[..., Tensor]:
    """A trace a cell."""
    model = load(task.checkpoint)
    base, source = task.bases[:1], task.sources[:1]

    @torch.no_grad()
    def once(cells: list[tuple[int, int]]) -> Tensor:
        states = captured(model, source)
        return torch.tensor([task.difference(swapped(states, layer, place)).item() for layer, place in cells])

    def swapped(states: list[Tensor], layer: int, place: int) -> Tensor:
        with model.trace(base):
            model.model.layers[layer].output[:, place] = states[layer][:, place]
            logits = model.output.logits.save()
        return logits

    return once


def block_grid_batched(task: Task) -> Callable[..., Tensor]:
    """A trace a layer: row i of its batch is edited at the i-th of the layer's positions."""
    model = load(task.checkpoint)
    base, source = task.bases[:1], task.sources[:1]

    @torch.no_grad()
    def once(cells: list[tuple[int, int]]) -> Tensor:
        states = captured(model, source)
        places: dict[int, list[int]] = {}
        for layer, place in cells:
            places.setdefault(layer, []).append(place)
        return torch.cat([torch.empty(0), *(swapped(states[layer], layer, at) for layer, at in places.items())])

    def swapped(state: Tensor, layer: int, places: list[int]) -> Tensor:
        rows, at = torch.arange(len(places)), torch.tensor(places)
        with model.trace(base.expand(len(places), -1)):
            model.model.layers[layer].output[rows, at] = state[0, at]
            logits = model.output.logits.save()
        return task.difference(logits)

    return once


WORKS = {"block_grid": block_grid, "block_grid_batched": block_grid_batched}

"""What an alignment is compared with: networks, labels and subspaces in which there is nothing to find."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from ..._errors import SpecError
from ...learning.held import seeded
from ...models import uncompiled
from .task import CounterfactualPairs, Task

_ELSEWHERE = 7919
"""Added to the seed of a new network: a network that was made with the small seeds that people use is another one."""


def permuted_labels(task: Task, part: str, seed: int) -> CounterfactualPairs:
    """Return pairs labelled as if each source entity were another one: the same one in all pairs.

    A fit that learns them as well as the true ones has learned entities by heart. (Labels that are shuffled anew in
    each batch are no such control: what they teach depends on the draw.)

    Args:
        task: the inputs.
        part: whose pairs.
        seed: of the permutation.

    Raises:
        SpecError: there are fewer than two entities.
    """
    pairs, entity = task.parts[part], task.entity
    keys = [tuple(setting[name] for name in entity) for setting in task.settings]
    used = sorted({number for numbers in (pairs.base, *pairs.sources.values()) for number in numbers.tolist()})
    known = list(dict.fromkeys(keys[number] for number in used))
    if len(known) < 2:
        raise SpecError(f"permuted labels need at least two entities in the part {part!r}; found {len(known)}")
    order = np.random.default_rng([seed, 1]).permutation(len(known))
    other = {known[order[n]]: known[order[(n + 1) % len(known)]] for n in range(len(known))}  # a circle: none stays
    sources: dict[str, list[Mapping[str, Any]]] = {
        variable: [
            {**task.settings[number], **dict(zip(entity, other[keys[number]], strict=True))} for number in numbers
        ]
        for variable, numbers in pairs.sources.items()
    }
    return task.relabelled(part, sources)


def reinitialised(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a model with new random weights, as it would begin its training.

    Args:
        model: the user's; it is not changed.
        seed: of the draws.

    Raises:
        SpecError: it has no parameters, or some of its modules do not say how theirs begin.
    """
    inner = uncompiled(model)
    if next(inner.parameters(), None) is None:
        raise SpecError(
            f"{type(inner).__name__} has no parameters, so that there is no random one of its kind: give random_model= "
            "a network to compare with, or controls without 'reinitialised'"
        )
    with seeded(seed + _ELSEWHERE):
        if isinstance(inner, PreTrainedModel):
            made: nn.Module = type(inner)(copy.deepcopy(inner.config))
            first = next(inner.parameters())
            return made.to(device=first.device, dtype=first.dtype).eval()
        made = copy.deepcopy(inner)
        for path, module in made.named_modules():
            own = list(module.parameters(recurse=False))
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif own:
                raise SpecError(
                    f"{path or type(module).__name__} does not say how its parameters begin (it has no "
                    "reset_parameters()): give random_model= a network of the same shape with new weights, or "
                    "controls without 'reinitialised'"
                )
    return made.eval()

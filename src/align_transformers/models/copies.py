"""Models on the meta device: what has shapes and no values is looked at in a copy with random weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .component_map import Block, ComponentMap
from .modules import submodule
from .slot import Slot

LIMIT = 2 * 1024**3
"""Bytes that a copy may take."""
NOTE = (
    "found on a copy with random weights, since the model's are on the meta device: what is said of additivity and of "
    "the heads' outputs was measured on these"
)


def has_no_values(model: nn.Module) -> bool:
    """Whether weights of a model are on the meta device, and nothing fetches them when they are needed."""
    fetched = any(hasattr(module, "_hf_hook") for module in model.modules())  # accelerate fetches what it offloaded
    return not fetched and any(parameter.is_meta for parameter in model.parameters())


def random_copy(model: nn.Module) -> nn.Module | str:
    """Return a model like this one with random weights on the CPU, or why there is none.

    A model of transformers is made anew from its configuration, and has to come out with the same modules; of any other
    one the weights are drawn, which does only where it keeps no further values in buffers.

    Args:
        model: a model on the meta device; it is left as it is.
    """
    size = 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    why = "its weights are on the meta device, so no forward pass can be watched"
    if size > LIMIT:
        return (
            f"{why}, and a copy with random weights would take {size / 1024**3:.1f} GB (limit {LIMIT / 1024**3:.0f} "
            "GB); one with fewer blocks need not be like it. Load the weights, or resolve a small model of the same "
            "class; dotted paths work without them"
        )
    config = getattr(model, "config", None)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if config is None:
            made = _drawn(model)
        else:
            try:
                made = type(model)(copy.deepcopy(config))
            except Exception as error:  # whatever a model says to being made this way
                made = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if isinstance(made, nn.Module) and _shape_of(made) != _shape_of(model):
            made = "its modules are not those that its configuration makes"
        if isinstance(made, str):
            return f"{why}, and there is no copy with random weights: {made}. Load the weights first"
        _stir(made)
    return made.eval()


def _drawn(model: nn.Module) -> nn.Module | str:
    """Return a copy of the modules with weights that are yet to be drawn."""
    held = [name for name, _ in model.named_buffers()]
    if held:
        return f"what its buffers hold is not known ({', '.join(held[:3])})"
    made = copy.deepcopy(model).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    return made


def _stir(model: nn.Module) -> None:
    """Add noise to all weights: what starts at zero would hide what depends on it."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape) * 0.1)


def _shape_of(model: nn.Module) -> Any:
    """Return the classes of all modules and the shapes of all weights, by path."""
    modules = {path: type(module) for path, module in model.named_modules()}
    return modules, {path: tuple(weight.shape) for path, weight in model.named_parameters(remove_duplicate=False)}


def moved(found: ComponentMap, model: nn.Module) -> ComponentMap:
    """Return the map of a copy as one of the model itself.

    Args:
        found: the copy's.
        model: one with the same modules at the same paths.
    """
    stacks = {name: tuple(_moved_block(block, model) for block in blocks) for name, blocks in found.stacks.items()}
    ends = {name: _moved_slot(slot, model, "") for name, slot in found.ends.items()}
    return replace(found, stacks=stacks, ends=ends, note=NOTE)


def _moved_block(block: Block, model: nn.Module) -> Block:
    return replace(block, slots={name: _moved_slot(slot, model, block.path) for name, slot in block.slots.items()})


def _moved_slot(slot: Slot, model: nn.Module, block: str) -> Slot:
    module = submodule(model, slot.path)
    assert module is not None
    return replace(slot, module=module, around=None if slot.around is None else submodule(model, block))

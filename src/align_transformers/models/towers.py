"""Towers: the encoders of pictures and sounds inside a model whose dummy input is text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from .component_map import Block, ComponentMap
from .slot import Slot

NAMES: Mapping[str, str] = {"image": "vision", "audio": "audio"}
"""What transformers calls a modality, and what a site calls its stack."""


def find_towers(
    model: nn.Module, traced: set[nn.Module], resolve: Callable[[nn.Module], ComponentMap]
) -> tuple[dict[str, tuple[Block, ...]], dict[str, str]]:
    """Return the blocks of the towers that a text did not reach, by stack, and why others are missing.

    Args:
        model: a model that may name encoders of other modalities.
        traced: the modules that ran already.
        resolve: how to resolve a tower on its own.
    """
    stacks: dict[str, tuple[Block, ...]] = {}
    missing: dict[str, str] = {}
    for modality, name in NAMES.items():
        tower = _tower(model, modality)
        if tower is None or tower in traced:
            continue
        path = next(path for path, module in model.named_modules() if module is tower)
        found = resolve(tower)
        if not found.stacks:
            missing[name] = found.missing.get("", "no stack of blocks was found in it")
        for key, blocks in found.stacks.items():
            stacks[f"{name}.{key}" if key else name] = tuple(_below(path, block) for block in blocks)
    return stacks, missing


def said_name(model: nn.Module, path: str) -> str:
    """Return what the model itself calls the part that holds a stack; the stack's path if it has no name for it.

    Args:
        model: the model that was traced.
        path: dotted path of the stack.
    """
    asked = [(name, _tower(model, modality)) for modality, name in NAMES.items()]
    asked += [(name, _tower(model, None, f"get_{name}")) for name in ("encoder", "decoder")]
    for name, part in asked:
        home = next((where for where, module in model.named_modules() if module is part), None)
        if home and path.startswith(home + "."):
            return name
    return path


def _tower(model: nn.Module, modality: str | None, method: str = "get_encoder") -> nn.Module | None:
    ask = getattr(model, method, None)
    try:
        tower: Any = None if not callable(ask) else ask() if modality is None else ask(modality)
    except (TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    inside = isinstance(tower, nn.Module) and tower is not model and any(tower is m for m in model.modules())
    return tower if inside else None


def _below(path: str, block: Block) -> Block:
    """Return a block with its paths as the whole model sees them."""
    slots = {name: _moved(path, slot) for name, slot in block.slots.items()}
    how = {name: words.replace(block.path, f"{path}.{block.path}") for name, words in block.how.items()}
    return replace(block, path=f"{path}.{block.path}", slots=slots, how=how)


def _moved(path: str, slot: Slot) -> Slot:
    return replace(slot, path=f"{path}.{slot.path}" if slot.path else path)

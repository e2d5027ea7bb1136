"""Towers: the encoders of pictures and sounds inside a model whose dummy input is text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from .component_map import Block, ComponentMap
from .slot import Slot

NAMES: Mapping[str, str] = {"image": "vision", "audio": "audio"}
"""What transformers calls a modality, and what a site calls its stack."""


@dataclass(frozen=True, eq=False)
class Towers:
    """What was found in towers: as in `ComponentMap`, each name with the tower's in front."""

    stacks: dict[str, tuple[Block, ...]] = field(default_factory=dict)
    ends: dict[str, Slot] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def find_towers(model: nn.Module, traced: set[nn.Module], resolve: Callable[[nn.Module], ComponentMap]) -> Towers:
    """Return what is in the towers that a text did not reach, and why others are missing.

    Args:
        model: a model that may name encoders of other modalities.
        traced: the modules that ran already.
        resolve: how to resolve a tower on its own.
    """
    towers = Towers()
    for modality, name in NAMES.items():
        tower = _tower(model, modality)
        if tower is None or tower in traced:
            continue
        path = next(path for path, module in model.named_modules() if module is tower)
        found = resolve(tower)
        if not found.stacks:
            towers.missing[name] = found.missing.get("", "no stack of blocks was found in it")
        for key, blocks in found.stacks.items():
            towers.stacks[f"{name}.{key}" if key else name] = tuple(_below(path, block) for block in blocks)
        towers.ends.update({f"{name}.{end}": _moved(path, slot) for end, slot in found.ends.items() if end != "logits"})
        gone = {f"{name}.{end}": reason for end, reason in found.missing.items() if end not in ("", "logits")}
        towers.missing.update(gone)
    return towers


def said_name(model: nn.Module, path: str) -> str:
    """Return what the model itself calls the part that holds a stack; the stack's path if it has no name for it.

    Args:
        model: the model that was traced.
        path: dotted path of the stack.
    """
    named = [(name, _tower(model, None, f"get_{name}")) for name in ("encoder", "decoder")]
    named += [(name, _tower(model, modality)) for modality, name in NAMES.items()]
    paths = {id(module): where for where, module in model.named_modules()}
    homes = [(name, paths.get(id(part), "")) for name, part in named]
    around = [(name, home) for name, home in homes if home and path.startswith(home + ".")]
    # The innermost one; where one part has two names, it does more than one modality.
    return max(around, key=lambda found: len(found[1]))[0] if around else path


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

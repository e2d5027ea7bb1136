"""Models: how a site's words meet the modules of a network."""

from .component_map import Block, ComponentMap
from .describe import Description, describe
from .load import load_model
from .lookup import chosen_layers, find_slot
from .modules import evaluating, uncompiled
from .resolve import resolve
from .slot import Slot, find_leaf, replace_leaf

__all__ = [
    "Block",
    "ComponentMap",
    "Description",
    "Slot",
    "chosen_layers",
    "describe",
    "evaluating",
    "find_leaf",
    "find_slot",
    "load_model",
    "replace_leaf",
    "resolve",
    "uncompiled",
]

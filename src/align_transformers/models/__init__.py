"""Models: how a site's words meet the modules of a network."""

from .component_map import Block, ComponentMap
from .load import load_model
from .resolve import find_slot, resolve
from .slot import Slot, find_leaf, replace_leaf

__all__ = ["Block", "ComponentMap", "Slot", "find_leaf", "find_slot", "load_model", "replace_leaf", "resolve"]

"""Models: how a site's words meet the modules of a network."""

from .load import load_model
from .resolve import ComponentMap, component_map, resolve
from .slot import Slot, find_leaf, replace_leaf

__all__ = ["ComponentMap", "Slot", "component_map", "find_leaf", "load_model", "replace_leaf", "resolve"]

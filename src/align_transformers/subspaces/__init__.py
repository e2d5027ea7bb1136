"""Subspaces: the coordinates an intervention works in."""

from .base import Choice, Partition, coordinate_mask

__all__ = ["Choice", "Partition", "coordinate_mask"]

"""Subspaces: the coordinates an intervention works in."""

from .base import Choice, Partition, coordinate_mask
from .basis import Basis, uncast
from .dictionary import Dictionary, read_dictionary, read_saelens
from .mask import boundary_mask, clamp_inward, hard_boundary
from .pca import Components, principal_components
from .rotation import Rotation, orthonormal

__all__ = [
    "Basis",
    "Choice",
    "Components",
    "Dictionary",
    "Partition",
    "Rotation",
    "boundary_mask",
    "clamp_inward",
    "coordinate_mask",
    "hard_boundary",
    "orthonormal",
    "principal_components",
    "read_dictionary",
    "read_saelens",
    "uncast",
]
